//! The disk as a driver meets it that keeps to the rules, and as a snapshot does.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk as ids;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Buffer, Harness, readable, writable};
use super::super::{F_EVENT_IDX, VirtioDevice};
use super::request::{S_IOERR, S_OK, S_UNSUPP};
use super::testing::{
    DATA, Driver, SECTORS, TestDisk, UNTOUCHED, bytes, header, request, status, status_byte,
};
use super::{
    Block, BlockError, BlockMetrics, BlockState, CONFIG_LEN, F_DISCARD, F_FLUSH, F_RO,
    F_WRITE_ZEROES, MAX_DISCARD_SECTORS, MAX_REQUEST, MAX_ZERO_SECTORS,
};

const READ: u32 = ids::VIRTIO_BLK_T_IN;
const WRITE: u32 = ids::VIRTIO_BLK_T_OUT;
const FLUSH: u32 = ids::VIRTIO_BLK_T_FLUSH;
const GET_ID: u32 = ids::VIRTIO_BLK_T_GET_ID;
const DISCARD: u32 = ids::VIRTIO_BLK_T_DISCARD;
const WRITE_ZEROES: u32 = ids::VIRTIO_BLK_T_WRITE_ZEROES;

fn active(disk: &TestDisk) -> Driver {
    Harness::active(disk.disk(), 0)
}

/// The range of a discard or of zeros, in guest memory.
fn range(driver: &Driver, sector: u64, count: u32, flags: u32) -> Buffer {
    let put = |offset, value: u64| {
        let gpa = GuestAddress(DATA + offset);
        driver.memory.write_obj(value, gpa).unwrap();
    };
    put(0, sector);
    put(8, u64::from(flags) << 32 | u64::from(count));
    readable(DATA, 16)
}

#[test]
fn a_read_fills_the_pieces_in_their_order() {
    let mut driver = active(&TestDisk::new());
    let pieces = [writable(DATA, 100), writable(DATA + 0x1000, 924)];
    assert_eq!(request(&mut driver, READ, 5, &pieces), (1025, S_OK));
    assert_eq!(bytes(&driver, DATA, 100), vec![5; 100]);
    assert_eq!(bytes(&driver, DATA + 0x1000, 412), vec![5; 412]);
    assert_eq!(bytes(&driver, DATA + 0x1000 + 412, 512), vec![6; 512]);
}

#[test]
fn a_write_takes_the_pieces_in_their_order_and_nothing_else() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    driver
        .memory
        .write_slice(&[0xaa; 512], GuestAddress(DATA))
        .unwrap();
    let pieces = [readable(DATA, 12), readable(DATA + 12, 500)];
    assert_eq!(request(&mut driver, WRITE, 9, &pieces), (1, S_OK));
    disk.with(|store| {
        assert_eq!(store.bytes[8 * 512..9 * 512], [8; 512]);
        assert_eq!(store.bytes[9 * 512..10 * 512], [0xaa; 512]);
        assert_eq!(store.bytes[10 * 512..11 * 512], [10; 512]);
        assert_eq!(store.durable, 0);
    });
}

#[test]
fn header_and_status_may_be_framed_in_any_way() {
    let mut driver = active(&TestDisk::new());
    let whole = header(&driver, 0, READ, 3);
    driver
        .memory
        .write_obj(UNTOUCHED, GuestAddress(DATA + 512))
        .unwrap();
    // The header in two pieces, data and status in one.
    driver.queues[0].send(&[
        readable(whole.gpa, 7),
        readable(whole.gpa + 7, 9),
        writable(DATA, 513),
    ]);
    driver.doorbell(0);
    assert_eq!(driver.queues[0].take_used()[0].1, 513);
    assert_eq!(
        bytes(&driver, DATA, 513),
        [vec![3; 512], vec![S_OK]].concat()
    );
}

#[test]
fn a_flush_reaches_the_backend_where_it_is_offered() {
    let mut disk = TestDisk::new();
    assert_eq!(request(&mut active(&disk), FLUSH, 0, &[]), (1, S_OK));
    assert_eq!(disk.with(|store| store.flushes), 1);
    disk.flushes = false;
    assert_eq!(request(&mut active(&disk), FLUSH, 0, &[]), (1, S_UNSUPP));
}

#[test]
fn what_a_driver_has_done_is_counted_by_its_end() {
    let metrics = Arc::new(BlockMetrics::new());
    let disk = TestDisk::new().disk().with_metrics(Arc::clone(&metrics));
    let mut driver = Harness::active(disk, 0);
    let (into, from) = ([writable(DATA, 1024)], [readable(DATA, 512)]);
    assert_eq!(request(&mut driver, READ, 5, &into).1, S_OK);
    assert_eq!(request(&mut driver, WRITE, 5, &from).1, S_OK);
    assert_eq!(request(&mut driver, FLUSH, 0, &[]).1, S_OK);
    assert_eq!(request(&mut driver, READ, SECTORS, &into).1, S_IOERR);
    assert_eq!(request(&mut driver, 77, 0, &[]).1, S_UNSUPP);
    assert_eq!(
        (metrics.read_count.get(), metrics.read_bytes.get()),
        (1, 1024)
    );
    assert_eq!(
        (metrics.write_count.get(), metrics.write_bytes.get()),
        (1, 512)
    );
    assert_eq!(
        (metrics.flush_count.get(), metrics.invalid_reqs_count.get()),
        (1, 2)
    );
    assert!(metrics.queue_event_count.get() >= 5);
}

#[test]
fn writes_of_a_driver_that_does_not_flush_are_durable() {
    let disk = TestDisk::new();
    let mut driver = Harness::active(disk.disk(), F_FLUSH);
    let data = [readable(DATA, 512)];
    assert_eq!(request(&mut driver, WRITE, 0, &data), (1, S_OK));
    assert_eq!(disk.with(|store| store.durable), 1);
}

#[test]
fn the_name_is_padded_with_zeros_and_cut_at_20_bytes() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    let reply = [writable(DATA, 20)];
    assert_eq!(request(&mut driver, GET_ID, 0, &reply), (21, S_OK));
    assert_eq!(
        bytes(&driver, DATA, 20),
        b"a disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    let long = Block::new("a-name-of-more-than-twenty-bytes", disk);
    let mut driver = Harness::active(long, 0);
    let reply = [writable(DATA, 6), writable(DATA + 6, 30)];
    assert_eq!(request(&mut driver, GET_ID, 0, &reply), (21, S_OK));
    assert_eq!(bytes(&driver, DATA, 21), b"a-name-of-more-than-\0");
    assert_eq!(
        request(&mut driver, GET_ID, 0, &[writable(DATA, 19)]),
        (1, S_IOERR)
    );
}

#[test]
fn discards_and_zeros_reach_the_backend_as_one_range() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        disk.with(|store| store.bytes.fill(0xff));
        let range = range(&driver, 8, 2, flags);
        assert_eq!(request(&mut driver, kind, 0, &[range]), (1, S_OK));
        disk.with(|store| {
            let zeros = store.bytes.iter().filter(|byte| **byte == 0).count();
            assert_eq!(zeros, 1024);
            assert_eq!(store.bytes[8 * 512..10 * 512], [0; 1024]);
        });
    }
}

#[test]
fn ranges_that_break_a_rule_are_refused() {
    let mut driver = active(&TestDisk::new());
    for (kind, sector, count, flags, expected) in [
        (DISCARD, SECTORS - 1, 2, 0, S_IOERR),
        (DISCARD, u64::MAX, 1, 0, S_IOERR),
        (DISCARD, 0, 0, 0, S_IOERR),
        (DISCARD, 0, MAX_DISCARD_SECTORS + 1, 0, S_IOERR),
        (WRITE_ZEROES, 0, MAX_ZERO_SECTORS + 1, 0, S_IOERR),
        (DISCARD, 0, 1, 1, S_UNSUPP),
        (WRITE_ZEROES, 0, u32::MAX, 0, S_IOERR),
        (WRITE_ZEROES, 0, 1, 2, S_UNSUPP),
    ] {
        let range = range(&driver, sector, count, flags);
        let answer = request(&mut driver, kind, 0, &[range]);
        assert_eq!(answer, (1, expected), "{kind} {sector} {count} {flags}");
    }
    // Two ranges where one was announced, and half a one.
    for len in [32, 8] {
        range(&driver, 0, 1, 0);
        let answer = request(&mut driver, DISCARD, 0, &[readable(DATA, len)]);
        assert_eq!(answer, (1, S_IOERR));
    }
}

#[test]
fn transfers_that_break_a_rule_are_refused_and_touch_nothing() {
    let disk = TestDisk::new();
    let before = disk.with(|store| store.bytes.clone());
    let mut driver = active(&disk);
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 1),
    ] {
        let answer = request(&mut driver, READ, sector, &[writable(DATA, len)]);
        assert_eq!(answer, (1, S_IOERR), "read {sector} {len}");
        let answer = request(&mut driver, WRITE, sector, &[readable(DATA, len)]);
        assert_eq!(answer, (1, S_IOERR), "write {sector} {len}");
    }
    for kind in [READ, WRITE] {
        assert_eq!(request(&mut driver, kind, 0, &[]), (1, S_IOERR));
    }
    assert_eq!(disk.with(|store| store.bytes.clone()), before);
    assert_eq!(bytes(&driver, DATA, 1024), [0; 1024]);
}

#[test]
fn a_transfer_has_a_largest_size() {
    let disk = TestDisk::of(2 * u64::from(MAX_REQUEST) / 512);
    let mut driver = active(&disk);
    // All pieces lie on the same mebibyte.
    let mut pieces = vec![writable(0x80000, 0x40000); MAX_REQUEST as usize / 0x40000];
    let rest = MAX_REQUEST % 0x40000;
    pieces.push(writable(0x80000, rest));
    assert_eq!(
        request(&mut driver, READ, 0, &pieces),
        (MAX_REQUEST + 1, S_OK)
    );
    pieces.push(writable(0x80000, 512));
    assert_eq!(request(&mut driver, READ, 0, &pieces), (1, S_IOERR));
}

#[test]
fn an_unknown_request_is_not_supported() {
    let mut driver = active(&TestDisk::new());
    for kind in [2, 3, 5, 7, ids::VIRTIO_BLK_T_SECURE_ERASE, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[]), (1, S_UNSUPP), "{kind}");
    }
}

#[test]
fn a_read_only_disk_is_never_written() {
    let mut disk = TestDisk::new();
    disk.read_only = true;
    let before = disk.with(|store| store.bytes.clone());
    let mut driver = active(&disk);
    let offered = disk.disk().features();
    assert_eq!(offered & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
    assert_eq!(
        request(&mut driver, WRITE, 0, &[readable(DATA, 512)]),
        (1, S_IOERR)
    );
    for kind in [DISCARD, WRITE_ZEROES] {
        let range = range(&driver, 0, 1, 0);
        assert_eq!(request(&mut driver, kind, 0, &[range]), (1, S_UNSUPP));
    }
    // A driver that has not taken the feature is refused as well.
    let mut deaf = Harness::active(disk.disk(), F_RO);
    assert_eq!(
        request(&mut deaf, WRITE, 0, &[readable(DATA, 512)]),
        (1, S_IOERR)
    );
    assert_eq!(disk.with(|store| store.bytes.clone()), before);
}

#[test]
fn the_file_s_errors_become_statuses() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    for (error, expected) in [
        (libc::EIO, S_IOERR),
        (libc::ENOSPC, S_IOERR),
        (libc::EOPNOTSUPP, S_UNSUPP),
    ] {
        disk.with(|store| store.error = Some(error));
        let answer = request(&mut driver, READ, 0, &[writable(DATA, 512)]);
        assert_eq!(answer, (1, expected));
    }
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let mut disk = TestDisk::new();
    let driver = active(&disk);
    let at = |driver: &Driver, offset, len| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&driver.config(offset, len));
        u64::from_le_bytes(bytes)
    };
    assert_eq!(at(&driver, 0, 8), SECTORS);
    assert_eq!(
        at(&driver, 8, 4) * at(&driver, 12, 4),
        u64::from(MAX_REQUEST)
    );
    assert_eq!(at(&driver, 20, 4), 512);
    assert_eq!(at(&driver, 24, 1), 3);
    assert_eq!(at(&driver, 34, 2), 1);
    assert_eq!(
        (at(&driver, 36, 4), at(&driver, 40, 4), at(&driver, 44, 4)),
        (1 << 21, 1, 8)
    );
    assert_eq!(
        (at(&driver, 48, 4), at(&driver, 52, 4), at(&driver, 56, 1)),
        (1 << 15, 1, 1)
    );
    disk.discards = false;
    assert_eq!(active(&disk).config(36, 24), [0; 24]);
    // Reads may begin and end anywhere.
    let whole = driver.config(0, CONFIG_LEN);
    for offset in 0..CONFIG_LEN {
        for len in [1, 2, 4, 8, 100] {
            let end = (offset + len).min(CONFIG_LEN);
            let mut expected = whole[offset..end].to_vec();
            expected.resize(len, 0);
            assert_eq!(driver.config(offset as u64, len), expected);
        }
    }
    let mut far = [7];
    disk.disk().read_config(u64::MAX, &mut far);
}

/// Sends `count` reads of one sector each.
fn send_reads(driver: &mut Driver, count: u64) {
    for slot in 0..count {
        let header = header(driver, slot, READ, slot);
        let data = writable(DATA + slot * 512, 512);
        driver.queues[0].send(&[header, data, status_byte(slot)]);
    }
    driver.doorbell(0);
}

fn statuses(driver: &Driver, count: u64) -> Vec<u8> {
    (0..count).map(|slot| status(driver, slot)).collect()
}

#[test]
fn as_many_requests_are_in_flight_as_the_backend_takes_and_the_rest_follows() {
    let disk = TestDisk::new();
    disk.with(|store| store.held = true);
    let mut driver = active(&disk);
    send_reads(&mut driver, 20);
    assert_eq!(statuses(&driver, 20), [UNTOUCHED; 20]);
    assert_eq!(disk.with(|store| store.most_in_flight), 8);
    // They end in another order than they came in.
    for ended in 1..=20 {
        disk.with(|store| store.end_one(true));
        driver.backend_ready();
        assert_eq!(driver.queues[0].used_idx(), ended);
    }
    assert_eq!(statuses(&driver, 20), [S_OK; 20]);
    for slot in 0..20 {
        let read = bytes(&driver, DATA + slot * 512, 512);
        assert_eq!(read, [slot as u8; 512]);
    }
    assert_eq!(disk.with(|store| store.most_in_flight), 8);
    let mut heads: Vec<u32> = driver.queues[0]
        .take_used()
        .iter()
        .map(|used| used.0)
        .collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..20).map(|n| 3 * n).collect::<Vec<_>>());
}

#[test]
fn one_interrupt_tells_of_a_batch_and_none_of_nothing() {
    let mut driver = active(&TestDisk::new());
    let before = driver.wires.interrupts();
    send_reads(&mut driver, 8);
    assert_eq!(driver.wires.interrupts(), before + 1);
    driver.doorbell(0);
    driver.backend_ready();
    assert_eq!(driver.wires.interrupts(), before + 1);
}

#[test]
fn a_save_ends_what_is_in_flight_once() {
    let disk = TestDisk::new();
    disk.with(|store| store.held = true);
    let mut driver = active(&disk);
    send_reads(&mut driver, 20);
    let before = driver.wires.interrupts();
    driver.saved();
    // What was in flight is done; what was not begun still waits in the queue.
    assert_eq!(driver.queues[0].used_idx(), 8);
    assert!(driver.wires.interrupts() > before);
    disk.with(|store| {
        assert!(store.waiting.is_empty() && store.ended.is_empty());
        assert_eq!(store.syncs, 0, "nothing was written");
        store.held = false;
    });
    // The restored disk goes on where that ended.
    let restored = {
        let state = driver.transport.with_device(|block, _| block.save());
        let backend = disk.clone();
        driver.restore(Block::from_state(&state, backend).unwrap())
    };
    assert_eq!(restored.queues[0].used_idx(), 20);
    assert_eq!(statuses(&restored, 20), [S_OK; 20]);
}

#[test]
fn a_save_makes_durable_what_was_written_since_the_last_one() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    for syncs in 1..3 {
        let data = [readable(DATA, 512)];
        assert_eq!(request(&mut driver, WRITE, 0, &data), (1, S_OK));
        for _ in 0..2 {
            driver.saved();
            let synced = driver.transport.with_device(|block, _| block.sync());
            synced.unwrap();
            assert_eq!(disk.with(|store| store.syncs), syncs);
        }
    }
}

#[test]
fn a_save_makes_durable_what_was_there_before_and_takes_no_heed_of_what_the_driver_may_flush() {
    let mut disk = TestDisk::new();
    disk.flushes = false;
    let driver = active(&disk);
    driver.saved();
    let sync = |driver: &Driver| driver.transport.with_device(|block, _| block.sync());
    sync(&driver).unwrap();
    assert_eq!(disk.with(|store| store.syncs), 1);
    // What the new one has is not known either.
    let other = TestDisk::new();
    driver
        .transport
        .with_device(|block, active| block.replace(other.clone(), active))
        .unwrap();
    sync(&driver).unwrap();
    assert_eq!(other.with(|store| store.syncs), 1);
}

#[test]
fn what_could_not_be_made_durable_is_told_until_the_disk_is_stored_elsewhere() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    let data = [readable(DATA, 512)];
    assert_eq!(request(&mut driver, WRITE, 0, &data), (1, S_OK));
    driver.saved();
    let sync = |driver: &Driver| driver.transport.with_device(|block, _| block.sync());
    disk.with(|store| store.sync_error = Some(libc::EIO));
    let error = sync(&driver).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // The kernel would say now that all is well.
    sync(&driver).unwrap_err();
    assert_eq!(disk.with(|store| store.syncs), 0);
    // The guest has noticed nothing of it.
    assert_eq!(request(&mut driver, WRITE, 0, &data), (1, S_OK));
    let other = TestDisk::new();
    driver
        .transport
        .with_device(|block, active| block.replace(other, active))
        .unwrap();
    sync(&driver).unwrap();
}

#[test]
fn a_task_that_the_host_has_no_room_for_begins_later() {
    let disk = TestDisk::new();
    let mut driver = active(&disk);
    disk.with(|store| store.no_room = 7);
    let answer = request(&mut driver, READ, 5, &[writable(DATA, 512)]);
    assert_eq!(answer, (513, S_OK));
}

#[test]
fn a_doorbell_without_a_request_is_no_interrupt() {
    let mut driver = Harness::active(TestDisk::new().disk(), F_EVENT_IDX);
    let before = driver.wires.interrupts();
    driver.doorbell(0);
    driver.backend_ready();
    assert_eq!(driver.wires.interrupts(), before);
    let data = [writable(DATA, 512)];
    assert_eq!(request(&mut driver, READ, 5, &data), (513, S_OK));
    assert_eq!(driver.wires.interrupts(), before + 1);
    // `VIRTQ_AVAIL_F_NO_INTERRUPT`
    let flags = GuestAddress(driver.queues[0].avail_ring);
    driver.memory.write_obj(1_u16, flags).unwrap();
    assert_eq!(request(&mut driver, READ, 5, &data), (513, S_OK));
    assert_eq!(driver.wires.interrupts(), before + 1);
}

#[test]
fn after_a_reset_nobody_writes_to_the_buffers_of_earlier_requests() {
    let disk = TestDisk::new();
    disk.with(|store| store.held = true);
    let mut driver = active(&disk);
    send_reads(&mut driver, 20);
    driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    disk.with(|store| assert!(store.waiting.is_empty() && store.ended.is_empty()));
    assert_eq!(driver.queues[0].used_idx(), 0);
    assert_eq!(statuses(&driver, 20), [UNTOUCHED; 20]);
    // It works again afterwards.
    disk.with(|store| store.held = false);
    driver.queues[0].start_at(0);
    driver.start(0);
    assert_eq!(driver.queues[0].used_idx(), 0);
    send_reads(&mut driver, 3);
    assert_eq!(statuses(&driver, 3), [S_OK; 3]);
}

#[test]
fn a_driver_is_told_of_another_size_after_a_restore() {
    let state = active(&TestDisk::new())
        .transport
        .with_device(|block, _| block.save());
    let bigger = TestDisk::of(SECTORS + 1);
    let driver = active(&TestDisk::new());
    let driver = driver.restore(Block::from_state(&state, bigger).unwrap());
    assert_eq!(driver.take_interrupt(), 2);
    assert_eq!(driver.config(0, 8), (SECTORS + 1).to_le_bytes());
    let same = TestDisk::new();
    let driver = driver.restore(Block::from_state(&state, same).unwrap());
    assert_eq!(driver.take_interrupt(), 0);
}

#[test]
fn another_backend_takes_over_when_the_old_one_has_ended_its_requests() {
    let disk = TestDisk::new();
    disk.with(|store| store.held = true);
    let mut driver = active(&disk);
    send_reads(&mut driver, 10);
    let other = TestDisk::of(16);
    other.with(|store| store.bytes.fill(0x55));
    driver
        .transport
        .with_device(|block, active| block.replace(other.clone(), active))
        .unwrap();
    assert_eq!(driver.take_interrupt(), 3);
    assert_eq!(driver.config(0, 8), 16_u64.to_le_bytes());
    assert_eq!(bytes(&driver, DATA, 512), [0; 512]);
    assert_eq!(bytes(&driver, DATA + 512, 512), [1; 512]);
    driver.doorbell(0);
    assert_eq!(driver.queues[0].take_used().len(), 10);
    assert_eq!(bytes(&driver, DATA + 8 * 512, 1024), [0x55; 1024]);
    // One that cannot be written is not what the driver was told.
    let mut read_only = TestDisk::new();
    read_only.read_only = true;
    let refused = driver
        .transport
        .with_device(|block, active| block.replace(read_only, active).err());
    assert!(matches!(
        refused,
        Some(BlockError::Access {
            read_only: true,
            ..
        })
    ));
}

#[test]
fn a_state_that_no_disk_has_saved_is_refused() {
    let disk = TestDisk::new();
    let good = disk.disk().save();
    assert!(Block::from_state(&good, disk.clone()).is_ok());
    let with = |features| BlockState {
        features,
        ..good.clone()
    };
    for features in [
        0,
        good.features & !(1 << 2),
        good.features | 1 << 12,
        u64::MAX,
    ] {
        let refused = Block::from_state(&with(features), disk.clone()).err();
        assert!(matches!(refused, Some(BlockError::Features { .. })));
    }
    let refused = Block::from_state(&with(good.features | F_RO), disk).err();
    assert!(matches!(
        refused,
        Some(BlockError::Access {
            read_only: false,
            ..
        })
    ));
}

#[test]
fn what_was_offered_before_a_restore_is_offered_after_it() {
    let disk = TestDisk::new();
    let state = disk.disk().save();
    let mut other = TestDisk::new();
    other.discards = false;
    other.flushes = false;
    let block = Block::from_state(&state, other).unwrap();
    assert_eq!(block.features(), disk.disk().features());
    assert_eq!(block.save(), state);
}
