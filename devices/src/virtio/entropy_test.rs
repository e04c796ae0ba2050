//! Tests of the entropy device, and of the queues' helpers against drivers that break every rule.

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{
    BUFFERS_LEN, DriverQueue, HIGH_MEMORY, Harness, INDIRECT, MEMORY_LEN, NEXT, WRITE, readable,
    writable, write_descriptor,
};
use super::super::{Transport, VirtioMmio};
use super::*;

fn entropy() -> Harness<Entropy> {
    Harness::active(Entropy::default(), 0)
}

/// Not random, so that tests see where it went.
fn with_ones() -> Harness<Entropy> {
    Harness::active(
        Entropy::with_source(|bytes| {
            bytes.fill(1);
            Ok(())
        }),
        0,
    )
}

fn bytes(device: &Harness<Entropy>, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    device
        .memory
        .read_slice(&mut bytes, GuestAddress(gpa))
        .unwrap();
    bytes
}

#[test]
fn a_buffer_is_filled_and_the_driver_is_told() {
    let mut device = entropy();
    let head = device.queues[0].send(&[writable(0x1000, 64)]);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(head.into(), 64)]);
    assert_eq!(device.take_interrupt(), 1);
    let first = bytes(&device, 0x1000, 64);
    assert!(first.iter().any(|byte| *byte != 0));
    device.queues[0].send(&[writable(0x1000, 64)]);
    device.doorbell(0);
    assert_ne!(bytes(&device, 0x1000, 64), first);
}

#[test]
fn bytes_and_buffers_are_counted() {
    let metrics = Arc::new(EntropyMetrics::new());
    let mut device = Harness::active(Entropy::default().with_metrics(Arc::clone(&metrics)), 0);
    device.queues[0].send(&[writable(0x1000, 64)]);
    device.queues[0].send(&[writable(0x1000, 6)]);
    device.queues[0].send(&[readable(0x1000, 6)]);
    device.doorbell(0);
    assert_eq!(metrics.entropy_bytes.get(), 70);
    assert_eq!(metrics.entropy_event_count.get(), 3);
    assert_eq!(metrics.entropy_event_fails.get(), 1);
}

#[test]
fn all_writable_buffers_of_a_chain_are_filled_in_their_order_and_nothing_else() {
    let mut device = with_ones();
    let buffers = [
        writable(0x1000, 3),
        writable(0x2001, 0),
        writable(0x3000, 5),
    ];
    let head = device.queues[0].send(&buffers);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(head.into(), 8)]);
    assert_eq!(bytes(&device, 0x1000, 4), [1, 1, 1, 0]);
    assert_eq!(bytes(&device, 0x3000, 6), [1, 1, 1, 1, 1, 0]);
}

#[test]
fn a_buffer_that_the_device_may_not_write_is_not_written() {
    let mut device = with_ones();
    let head = device.queues[0].send(&[readable(0x1000, 8)]);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(head.into(), 0)]);
    assert_eq!(bytes(&device, 0x1000, 8), [0; 8]);
}

#[test]
fn a_huge_buffer_gets_a_part_and_many_chains_get_their_turn() {
    let mut device = with_ones();
    let chains: Vec<u16> = (0..200)
        .map(|_| device.queues[0].send(&[writable(0x1000, 0x8_0000)]))
        .collect();
    assert_eq!(device.doorbell(0), 4);
    let used = device.queues[0].take_used();
    let expected: Vec<_> = chains.iter().map(|&head| (head.into(), 4096)).collect();
    assert_eq!(used, expected);
}

#[test]
fn with_event_indices_the_driver_knows_when_to_ring() {
    let mut device = entropy();
    for round in 1..600u16 {
        device.queues[0].send(&[writable(0x1000, 1)]);
        device.doorbell(0);
        let queue = &device.queues[0];
        let avail_event = queue.used_ring + 4 + 8 * u64::from(queue.size);
        let event: u16 = device.memory.read_obj(GuestAddress(avail_event)).unwrap();
        assert_eq!(event, round);
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_for_each_gets_one_for_many() {
    let mut device = entropy();
    for _ in 0..10 {
        device.queues[0].send(&[writable(0x1000, 1)]);
    }
    device.doorbell(0);
    assert_eq!(device.wires.interrupts(), 1);
    // `used_event` is still 0: nothing that comes now was asked for.
    device.queues[0].send(&[writable(0x1000, 1)]);
    device.doorbell(0);
    assert_eq!(device.wires.interrupts(), 1);
}

#[test]
fn the_indices_wrap() {
    let mut device = entropy();
    let mut state = device.saved();
    let before = u16::MAX - 3;
    device.queues[0].start_at(before);
    (state.queues[0].next_avail, state.queues[0].next_used) = (before, before);
    let wires = Box::new(device.wires.clone());
    let memory = device.memory.clone();
    device.transport = VirtioMmio::from_state(Entropy::default(), &state, memory, wires).unwrap();
    for _ in 0..10 {
        device.queues[0].send(&[writable(0x1000, 16)]);
        device.doorbell(0);
        assert_eq!(device.queues[0].take_used().len(), 1);
    }
    assert_eq!(device.queues[0].used_idx(), 6);
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut device = with_ones();
    let queue = &mut device.queues[0];
    queue.descriptor(0, 0x1000, 16, NEXT | WRITE, 1);
    queue.descriptor(1, 0x2000, 16, NEXT | WRITE, 0);
    queue.offer(0);
    device.doorbell(0);
    // 256 descriptors of 16 bytes are as many as one chain gets.
    assert_eq!(device.queues[0].take_used(), [(0, 4096)]);
}

#[test]
fn buffers_outside_of_memory_are_given_back_empty() {
    for (gpa, len) in [
        (MEMORY_LEN - 8, 16),
        (0x30_0000, 1),
        (u64::MAX, 2),
        (u64::MAX - 1, 1),
        (HIGH_MEMORY - 1, 2),
    ] {
        let mut device = entropy();
        let head = device.queues[0].send(&[writable(0x1000, 8), writable(gpa, len)]);
        device.doorbell(0);
        assert_eq!(device.queues[0].take_used(), [(head.into(), 0)], "{gpa:#x}");
        assert_eq!(device.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn indirect_descriptors_are_followed_once_and_no_deeper() {
    let mut device = with_ones();
    let memory = device.memory.clone();
    write_descriptor(&memory, 0x8000, 0, 0x1000, 4, NEXT | WRITE, 1);
    write_descriptor(&memory, 0x8000, 1, 0x2000, 4, WRITE, 0);
    let queue = &mut device.queues[0];
    queue.descriptor(0, 0x8000, 32, INDIRECT, 0);
    queue.offer(0);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(0, 8)]);
    // A table that refers to itself.
    write_descriptor(&memory, 0x8000, 0, 0x8000, 32, INDIRECT, 0);
    device.queues[0].offer(0);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(0, 0)]);
}

#[test]
fn a_head_that_the_queue_does_not_have_breaks_the_device_until_a_reset() {
    let mut device = entropy();
    device.queues[0].offer(256);
    device.doorbell(0);
    assert_ne!(device.status() & NEEDS_RESET, 0);
    assert_eq!(device.take_interrupt(), 2);
    device.queues[0].send(&[writable(0x1000, 8)]);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), []);
    device.queues[0] = DriverQueue::new(&device.memory, 0, 256);
    device.queues[0].start_at(0);
    device.start(0);
    let head = device.queues[0].send(&[writable(0x1000, 8)]);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(head.into(), 8)]);
}

#[test]
fn an_index_that_runs_away_breaks_the_device() {
    let mut device = entropy();
    device.queues[0].set_avail_idx(257);
    device.doorbell(0);
    assert_ne!(device.status() & NEEDS_RESET, 0);
    assert_eq!(device.queues[0].used_idx(), 0);
}

#[test]
fn a_host_without_random_bytes_gives_none() {
    let mut device = Harness::active(
        Entropy::with_source(|_| Err(RandomError(rustix::io::Errno::NOSYS))),
        0,
    );
    let head = device.queues[0].send(&[writable(0x1000, 8)]);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(head.into(), 0)]);
}

#[test]
fn what_was_asked_for_before_a_snapshot_is_answered_after_it() {
    let mut device = entropy();
    let head = device.queues[0].send(&[writable(0x1000, 8)]);
    let mut device = device.restore(Entropy::default());
    assert_eq!(device.queues[0].take_used(), [(head.into(), 8)]);
    assert_eq!(device.take_interrupt(), 1);
}

/// Descriptors of which many mean something.
fn descriptors() -> impl Strategy<Value = Vec<(u16, u64, u32, u16, u16)>> {
    let gpa = prop_oneof![
        4 => 0..BUFFERS_LEN,
        1 => (MEMORY_LEN - 64)..(MEMORY_LEN + 64),
        1 => (HIGH_MEMORY - 64)..(HIGH_MEMORY + 64),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0..256u32, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..16u16, 1 => any::<u16>()];
    prop::collection::vec((0..16u16, gpa, len, flags, next), 0..32)
}

proptest! {
    #[test]
    fn no_chain_harms_anything_but_itself(
        table in descriptors(),
        indirect in descriptors(),
        heads in prop::collection::vec(prop_oneof![8 => 0..16u16, 1 => any::<u16>()], 0..32),
        jump in prop::option::weighted(0.2, any::<u16>()),
    ) {
        let mut device = entropy();
        for (index, gpa, len, flags, next) in table {
            device.queues[0].descriptor(index, gpa, len, flags, next);
        }
        for (index, gpa, len, flags, next) in indirect {
            write_descriptor(&device.memory, 0x8000, index, gpa, len, flags, next);
        }
        device.queues[0].descriptor(3, 0x8000, 16 * 16, INDIRECT, 0);
        for &head in &heads {
            device.queues[0].offer(head);
            device.doorbell(0);
        }
        if let Some(idx) = jump {
            device.queues[0].set_avail_idx(idx);
            device.doorbell(0);
        }
        if heads.iter().all(|head| *head < 256) && jump.is_none() {
            prop_assert_eq!(usize::from(device.queues[0].used_idx()), heads.len());
        }
        let state = device.saved();
        prop_assert_eq!(device.restore(Entropy::default()).transport.save(), state);
    }

    /// Random bytes over descriptors, indices and entries that the device reads next.
    #[test]
    fn chains_that_lie_over_the_rings_themselves_end(
        buffers in prop::collection::vec((0..0x2_0000u64, 0..0x2000u32), 1..8),
    ) {
        let device = &mut entropy();
        let rings = device.queues[0].desc_table;
        for (offset, len) in buffers {
            device.queues[0].send(&[writable(rings + offset, len)]);
            // A driver like this one can keep its device busy for ever, but only turn after turn.
            for _ in 0..4 {
                let _ = device.transport.doorbell(0);
            }
        }
        let state = device.saved();
        prop_assert_eq!(device.saved(), state);
    }
}

#[test]
fn of_a_chain_longer_than_the_queue_the_rest_is_not_looked_at() {
    let mut device = with_ones();
    for index in 0..30_000 {
        let flags = NEXT | WRITE;
        write_descriptor(&device.memory, 0, index, 0x9_0000, 1, flags, index + 1);
    }
    write_descriptor(&device.memory, 0, 30_000, 0x9_0000, 4000, WRITE, 0);
    let queue = &mut device.queues[0];
    queue.descriptor(0, 0, 30_001 * 16, INDIRECT, 0);
    queue.offer(0);
    device.doorbell(0);
    assert_eq!(device.queues[0].take_used(), [(0, 256)]);
}
