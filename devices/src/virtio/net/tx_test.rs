use proptest::prelude::*;
use virtio_queue::QueueT;

use super::testing::{Bench, DATA, INDIRECT, MEMORY, NEXT, SEAM, WRITE, frame};
use super::{BUDGET, CONTROL, HEADER_LEN, MAX_FRAME_LEN, RX, TX};
use crate::virtio::{F_EVENT_IDX, Turn, VirtioDevice};

#[test]
fn a_frame_in_one_piece_is_sent_as_it_is() {
    let mut bench = Bench::new(8, 0);
    let sent = frame(100, 3);
    bench.write(DATA, &sent);
    bench.offer_chain(TX, 0, false, &[(DATA, 100)]);
    assert_eq!(bench.doorbell(TX), Turn::Done);
    assert_eq!(bench.network().from_guest, [sent]);
    assert_eq!(bench.used(TX, 0), [(0, 0)]);
    assert_eq!(bench.interrupts(), [1, 0, 0]);
    let metrics = &bench.device.metrics;
    assert_eq!(
        (metrics.tx_packets_count.get(), metrics.tx_bytes_count.get()),
        (1, 88)
    );
}

#[test]
fn a_frame_in_many_pieces_is_sent_as_one() {
    let mut bench = Bench::new(8, 0);
    let sent = frame(64, 9);
    bench.write(DATA, &sent[..5]);
    bench.write(DATA + 0x1000, &sent[5..12]);
    // The last piece lies across two regions of memory.
    bench.write(SEAM - 10, &sent[12..]);
    let pieces = [(DATA, 5), (DATA + 0x1000, 7), (DATA, 0), (SEAM - 10, 52)];
    bench.offer_chain(TX, 2, false, &pieces);
    let _ = bench.doorbell(TX);
    assert_eq!(bench.network().from_guest, [sent]);
    assert_eq!(bench.used(TX, 0), [(2, 0)]);
}

#[test]
fn a_frame_in_an_indirect_table_is_sent() {
    let mut bench = Bench::new(4, 0);
    let sent = frame(40, 1);
    bench.write(DATA, &sent);
    let table = DATA + 0x2000;
    bench.descriptor(table, 0, (DATA, 12, NEXT, 1));
    bench.descriptor(table, 1, (DATA + 12, 28, 0, 0));
    bench.descriptor(bench.table(TX), 3, (table, 32, INDIRECT, 0));
    bench.offer(TX, 3);
    let _ = bench.doorbell(TX);
    assert_eq!(bench.network().from_guest, [sent]);
}

#[test]
fn a_frame_for_which_the_network_has_no_room_waits_in_its_queue() {
    let mut bench = Bench::new(8, 0);
    bench.network().room = 1;
    for n in 0..2 {
        bench.write(DATA + 0x1000 * n, &frame(60, n as u8));
        bench.offer_chain(TX, n as u16, false, &[(DATA + 0x1000 * n, 60)]);
    }
    assert_eq!(bench.doorbell(TX), Turn::Done);
    assert_eq!(bench.used(TX, 0), [(0, 0)]);
    bench.network().room = 1;
    let _ = bench.call(|device, active| device.backend_ready(active));
    assert_eq!(bench.used(TX, 0), [(0, 0), (1, 0)]);
    assert_eq!(bench.network().from_guest[1], frame(60, 1));
}

#[test]
fn a_frame_that_the_network_refuses_is_lost_and_the_next_one_is_not() {
    let mut bench = Bench::new(8, 0);
    bench.network().broken = Some(libc_eio());
    bench.offer_chain(TX, 0, false, &[(DATA, 60)]);
    let _ = bench.doorbell(TX);
    bench.network().broken = None;
    bench.offer_chain(TX, 1, false, &[(DATA, 60)]);
    let _ = bench.doorbell(TX);
    assert_eq!(bench.used(TX, 0).len(), 2);
    assert_eq!(bench.network().from_guest.len(), 1);
    assert_eq!(bench.device.metrics.tx_fails.get(), 1);
}

fn libc_eio() -> i32 {
    5
}

#[test]
fn chains_that_are_no_frame_come_back_unsent() {
    let mut bench = Bench::new(16, 0);
    let table = bench.table(TX);
    // Too short for the header; too long for a frame; to be written to; outside of memory; a loop; a chain that
    // goes on beyond its queue; an indirect table with a hole.
    bench.offer_chain(TX, 0, false, &[(DATA, HEADER_LEN as u32 - 1)]);
    bench.offer_chain(TX, 1, false, &[(DATA, MAX_FRAME_LEN as u32 + 1)]);
    bench.offer_chain(TX, 2, true, &[(DATA, 60)]);
    bench.offer_chain(TX, 3, false, &[(MEMORY - 10, 60)]);
    bench.descriptor(table, 4, (DATA, 60, NEXT, 4));
    bench.offer(TX, 4);
    bench.descriptor(table, 5, (DATA, 60, NEXT, 999));
    bench.offer(TX, 5);
    bench.descriptor(table, 6, (DATA, 17, INDIRECT, 0));
    bench.offer(TX, 6);
    bench.descriptor(table, 7, (DATA, 60, NEXT, 8));
    bench.descriptor(table, 8, (DATA, 60, WRITE, 0));
    bench.offer(TX, 7);
    let _ = bench.doorbell(TX);
    let heads: Vec<_> = bench.used(TX, 0).iter().map(|used| used.0).collect();
    assert_eq!(heads, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(bench.network().from_guest.is_empty());
    assert_eq!(bench.device.metrics.tx_malformed_frames.get(), 8);
    assert_eq!(bench.interrupts()[2], 0);
}

#[test]
fn a_head_beyond_the_queue_breaks_it() {
    for queue in [RX, TX, CONTROL] {
        let mut bench = Bench::new(8, 0);
        bench.offer(queue, 8);
        assert_eq!(bench.doorbell(queue), Turn::Done);
        assert_eq!(bench.interrupts(), [0, 0, 1]);
        assert!(bench.used(queue, 0).is_empty());
    }
}

#[test]
fn an_index_that_runs_away_breaks_the_queue() {
    let mut bench = Bench::new(8, 0);
    bench.set_avail_index(TX, 9);
    assert_eq!(bench.doorbell(TX), Turn::Done);
    assert_eq!(bench.interrupts(), [0, 0, 1]);
    assert!(bench.used(TX, 0).is_empty());
}

#[test]
fn without_a_link_frames_vanish() {
    let mut bench = Bench::new(8, 0);
    bench.call(|device, active| device.set_link(false, Some(active)));
    bench.offer_chain(TX, 0, false, &[(DATA, 60)]);
    let _ = bench.doorbell(TX);
    assert!(bench.network().from_guest.is_empty());
    assert_eq!(bench.used(TX, 0), [(0, 0)]);
}

#[test]
fn a_flood_leaves_the_event_loop_its_turn() {
    let mut bench = Bench::new(256, 0);
    bench.descriptor(bench.table(TX), 0, (DATA, 60, 0, 0));
    for _ in 0..BUDGET {
        bench.offer(TX, 0);
    }
    let turn = bench.call(|device, active| device.transmit(active, BUDGET - 1));
    assert_eq!(turn, Turn::More);
    assert_eq!(bench.network().from_guest.len(), BUDGET - 1);
    assert_eq!(bench.doorbell(TX), Turn::Done);
    assert_eq!(bench.network().from_guest.len(), BUDGET);
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let mut bench = Bench::new(8, F_EVENT_IDX);
    let flags = bench.queues[usize::from(TX)].avail_ring();
    bench.write(flags, &1_u16.to_le_bytes());
    bench.offer_chain(TX, 0, false, &[(DATA, 60)]);
    let _ = bench.doorbell(TX);
    assert_eq!(bench.used(TX, 0).len(), 1);
    assert_eq!(bench.interrupts(), [0, 0, 0]);
}

#[test]
fn an_interrupt_comes_when_the_index_passes_the_one_that_the_driver_waits_for() {
    let mut bench = Bench::new(8, 0);
    let event = bench.queues[usize::from(TX)].avail_ring() + 4 + 2 * 8;
    bench.write(event, &1_u16.to_le_bytes());
    bench.offer_chain(TX, 0, false, &[(DATA, 60)]);
    let _ = bench.doorbell(TX);
    assert_eq!(bench.interrupts(), [0, 0, 0]);
    bench.offer_chain(TX, 1, false, &[(DATA, 60)]);
    let _ = bench.doorbell(TX);
    assert_eq!(bench.interrupts(), [1, 0, 0]);
}

/// Any descriptor, more often than not one that could be.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        4 => DATA..DATA + 0x1000,
        1 => MEMORY - 0x100..MEMORY + 0x100,
        1 => any::<u64>(),
        // The rings themselves.
        1 => 0x1_0000..0x4_0000_u64,
    ];
    let len =
        prop_oneof![4 => 0..2000_u32, 1 => any::<u32>(), 1 => Just(16_u32), 1 => Just(64_u32)];
    let flags = prop_oneof![4 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..10_u16, 1 => any::<u16>()];
    (address, len, flags, next)
}

proptest! {
    /// Whatever a driver puts into the rings, both directions come back from it, and give nothing to the driver that it
    /// has not offered.
    #[test]
    fn a_hostile_driver_gets_no_more_than_it_has_offered(
        table in prop::collection::vec(descriptor(), 8),
        offers in prop::collection::vec((0_u16..12, 0_u16..3), 0..40),
        frames in prop::collection::vec(0..3000_usize, 0..6),
        jump in prop::option::weighted(0.1, any::<u16>()),
        mergeable in any::<bool>(),
        event_idx in any::<bool>(),
        start in any::<u16>(),
    ) {
        let mut without = 0;
        if !mergeable {
            without |= 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        }
        if !event_idx {
            without |= F_EVENT_IDX;
        }
        let mut bench = Bench::new(8, without);
        for queue in 0..3 {
            bench.queues[usize::from(queue)].set_next_avail(start);
            bench.queues[usize::from(queue)].set_next_used(start);
            bench.set_avail_index(queue, start);
            let ring = bench.queues[usize::from(queue)].used_ring();
            bench.write(ring + 2, &start.to_le_bytes());
            for (index, parts) in table.iter().enumerate() {
                bench.descriptor(bench.table(queue), index as u16, *parts);
            }
        }
        let sent: Vec<_> = frames.iter().map(|len| frame(HEADER_LEN + len, 7)).collect();
        bench.network().to_guest.extend(sent);
        for (head, queue) in &offers {
            bench.offer(*queue, *head);
        }
        if let Some(index) = jump {
            bench.set_avail_index(0, index);
        }
        for queue in [0, 1, 2] {
            let mut turns = 0;
            while bench.doorbell(queue) == Turn::More && turns < 8 {
                turns += 1;
            }
        }
        let _ = bench.call(|device, active| device.backend_ready(active));
        bench.call(|device, active| device.drain(active));
        for queue in &bench.queues {
            // Chains that were used were taken; the rest is back.
            let used = queue.next_used().wrapping_sub(start);
            let taken = queue.next_avail().wrapping_sub(start);
            prop_assert!(used <= taken, "{used} used of {taken}");
        }
        bench.device.reset();
    }
}
