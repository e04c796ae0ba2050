//! The disk as a driver meets it that breaks every rule.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{
    HIGH_MEMORY, HIGH_MEMORY_LEN, Harness, INDIRECT, MEMORY_LEN, NEXT, WRITE, readable, writable,
    write_descriptor,
};
use super::testing::{DATA, SECTORS, STATUS, TestDisk, UNTOUCHED, header, status, status_byte};

/// One descriptor of any kind, more often than not one that makes some sense.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let gpa = prop_oneof![
        4 => 0..MEMORY_LEN,
        2 => Just(super::testing::HEADER),
        1 => HIGH_MEMORY - 600..HIGH_MEMORY + HIGH_MEMORY_LEN,
        1 => MEMORY_LEN - 600..MEMORY_LEN + 8,
        1 => any::<u64>(),
        1 => u64::MAX - 600..=u64::MAX,
    ];
    let len = prop_oneof![
        3 => prop::sample::select(vec![0_u32, 1, 15, 16, 17, 511, 512, 513, 4096, 65536]),
        1 => 0..100_000_u32,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        6 => prop::sample::select(vec![0, NEXT, WRITE, NEXT | WRITE]),
        1 => prop::sample::select(vec![INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE]),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![4 => 0..16_u16, 1 => any::<u16>()];
    (gpa, len, flags, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_chain_makes_the_disk_panic_hang_or_leave_its_bounds(
        table in prop::collection::vec(descriptor(), 16),
        indirect in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(prop_oneof![8 => 0..16_u16, 1 => any::<u16>()], 1..24),
        (kind, sector) in (prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13, 99]),
                           prop_oneof![0..SECTORS + 2, any::<u64>()]),
        jump in prop::option::weighted(0.1, any::<u16>()),
        held in any::<bool>(),
    ) {
        let disk = TestDisk::new();
        disk.with(|store| store.held = held);
        let mut driver = Harness::active(disk.disk(), 0);
        header(&driver, 0, kind, sector);
        let queue = &mut driver.queues[0];
        for (index, &(gpa, len, flags, next)) in (0..).zip(&table) {
            let (gpa, len) = match flags & INDIRECT {
                0 => (gpa, len),
                _ => (0x8000, len & !15),
            };
            queue.descriptor(index, gpa, len, flags, next);
        }
        for (index, &(gpa, len, flags, next)) in (0..).zip(&indirect) {
            write_descriptor(&driver.memory, 0x8000, index, gpa, len, flags, next);
        }
        for &head in &heads {
            queue.offer(head);
        }
        if let Some(jump) = jump {
            queue.set_avail_idx(jump);
        }
        driver.doorbell(0);
        for _ in 0..64 {
            disk.with(|store| store.end_one(true));
            driver.backend_ready();
        }
        let len = disk.with(|store| store.bytes.len());
        prop_assert_eq!(len as u64, SECTORS * 512);
        // It still ends what it has begun, and can be reset.
        driver.saved();
        driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
        disk.with(|store| assert!(store.waiting.is_empty()));
    }

    #[test]
    fn a_read_writes_its_own_pieces_and_nothing_else(
        lens in prop::collection::vec(1..2000_u32, 1..20),
        sector in 0..SECTORS,
    ) {
        let mut driver = Harness::active(TestDisk::new().disk(), 0);
        let total: u32 = lens.iter().sum();
        let header = header(&driver, 0, 0, sector);
        let mut buffers = vec![header];
        for (index, &len) in (0..).zip(&lens) {
            buffers.push(writable(DATA + index * 0x1000, len));
        }
        buffers.push(status_byte(0));
        let mut before = vec![0; 0x10_0000];
        driver.memory.read_slice(&mut before, GuestAddress(0)).unwrap();
        driver.queues[0].send(&buffers);
        driver.doorbell(0);
        let fits = total.is_multiple_of(512) && sector + u64::from(total) / 512 <= SECTORS;
        prop_assert_eq!(status(&driver, 0), u8::from(!fits));
        let mut after = vec![0; 0x10_0000];
        driver.memory.read_slice(&mut after, GuestAddress(0)).unwrap();
        before[STATUS as usize] = u8::from(!fits);
        let mut at = sector * 512;
        for (index, &len) in (0..).zip(&lens).filter(|_| fits) {
            let to = (DATA + index * 0x1000) as usize;
            for byte in &mut before[to..to + len as usize] {
                *byte = (at / 512) as u8;
                at += 1;
            }
        }
        prop_assert!(before == after);
    }
}

/// Sends one request made of descriptors (gpa, len, flags, next), and returns whether it came back, with which length.
fn send(driver: &mut super::testing::Driver, chain: &[(u64, u32, u16, u16)]) -> Vec<(u32, u32)> {
    let queue = &mut driver.queues[0];
    for (index, &(gpa, len, flags, next)) in (0..).zip(chain) {
        queue.descriptor(index, gpa, len, flags, next);
    }
    queue.offer(0);
    driver.doorbell(0);
    driver.queues[0].take_used()
}

#[test]
fn a_chain_without_an_end_or_a_place_for_its_status_is_given_back_untouched() {
    let mut driver = Harness::active(TestDisk::new().disk(), 0);
    let gpa = header(&driver, 0, 0, 0).gpa;
    for chain in [
        // A loop; a loop of one.
        &[(gpa, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 0)][..],
        &[(gpa, 16, NEXT, 0)],
        // Out of the table.
        &[(gpa, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, 9999)],
        // Nothing to write; nothing at all; outside of memory.
        &[(gpa, 16, NEXT, 1), (STATUS, 1, 0, 0)],
        &[(gpa, 0, 0, 0)],
        &[(gpa, 16, NEXT, 1), (MEMORY_LEN, 1, WRITE, 0)],
        &[(gpa, 16, NEXT, 1), (u64::MAX, 2, WRITE, 0)],
        // A table within a table, and one of no descriptors.
        &[(DATA, 32, INDIRECT, 0)],
        &[(DATA, 0, INDIRECT, 0)],
    ] {
        let table = [(gpa, 16, INDIRECT, 0), (STATUS, 1, WRITE, 0)];
        for (index, (gpa, len, flags, next)) in (0..).zip(table) {
            write_descriptor(&driver.memory, DATA, index, gpa, len, flags, next);
        }
        assert_eq!(send(&mut driver, chain), [(0, 0)], "{chain:?}");
        assert_eq!(status(&driver, 0), UNTOUCHED);
    }
}

#[test]
fn a_chain_that_breaks_a_rule_but_has_a_status_is_an_error() {
    let mut driver = Harness::active(TestDisk::new().disk(), 0);
    let gpa = header(&driver, 0, 0, 0).gpa;
    let status_at = |index: u16| (STATUS, 1, WRITE, index);
    for chain in [
        // The device's part before the driver's.
        &[
            (DATA, 512, NEXT | WRITE, 1),
            (gpa, 16, NEXT, 2),
            status_at(0),
        ][..],
        // Half a header.
        &[(gpa, 15, NEXT, 1), status_at(0)],
        // Header or data outside of memory.
        &[(MEMORY_LEN - 8, 16, NEXT, 1), status_at(0)],
        &[
            (gpa, 16, NEXT, 1),
            (MEMORY_LEN - 8, 512, NEXT | WRITE, 2),
            status_at(0),
        ],
        &[
            (gpa, 16, NEXT, 1),
            (u64::MAX - 8, 512, NEXT | WRITE, 2),
            status_at(0),
        ],
    ] {
        header(&driver, 0, 0, 0);
        assert_eq!(send(&mut driver, chain), [(0, 1)], "{chain:?}");
        assert_eq!(status(&driver, 0), 1, "{chain:?}");
    }
}

#[test]
fn pieces_without_bytes_do_no_harm() {
    let mut driver = Harness::active(TestDisk::new().disk(), 0);
    let header = header(&driver, 0, 0, 7);
    driver.queues[0].send(&[
        readable(u64::MAX, 0),
        header,
        writable(DATA, 0),
        writable(DATA, 512),
        status_byte(0),
        writable(u64::MAX, 0),
    ]);
    driver.doorbell(0);
    assert_eq!(driver.queues[0].take_used(), [(0, 513)]);
    assert_eq!(status(&driver, 0), 0);
}

#[test]
fn more_pieces_than_there_can_be_are_refused() {
    let mut driver = Harness::active(TestDisk::new().disk(), 0);
    let gpa = header(&driver, 0, 0, 0).gpa;
    // One that is much too long has no end that anybody would look for.
    for (count, expected) in [
        (512, 0),
        (513, 1),
        (1024, 1),
        (1025, UNTOUCHED),
        (20_000, UNTOUCHED),
    ] {
        // 16 KiB from anywhere, in a table as long as one can be.
        let table = 0x10_0000 / 2;
        write_descriptor(&driver.memory, table, 0, gpa, 16, NEXT, 1);
        for index in 1..count - 1 {
            let len = if index == 1 {
                512 * 64 - (count as u32 - 3)
            } else {
                1
            };
            let len = if count > 600 { 1 } else { len };
            write_descriptor(
                &driver.memory,
                table,
                index,
                DATA,
                len,
                NEXT | WRITE,
                index + 1,
            );
        }
        write_descriptor(&driver.memory, table, count - 1, STATUS, 1, WRITE, 0);
        header(&driver, 0, 0, 0);
        let used = send(&mut driver, &[(table, u32::from(count) * 16, INDIRECT, 0)]);
        assert_eq!(used.len(), 1);
        assert_eq!(status(&driver, 0), expected, "{count}");
    }
}

#[test]
fn a_driver_that_never_ends_does_not_keep_the_event_loop() {
    let mut driver = Harness::active(TestDisk::new().disk(), 0);
    let header = header(&driver, 0, 0, 0);
    for _ in 0..85 {
        driver.queues[0].send(&[header, writable(DATA, 512), status_byte(0)]);
    }
    // 256 chains at once: a full share, after which the device wants to be called again.
    driver.queues[0].set_avail_idx(256);
    assert!(driver.doorbell(0) > 1);
    assert_eq!(driver.queues[0].used_idx(), 256);
}
