use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;

use super::testing::{Bench, DATA, SEAM, TestNetwork, frame};
use super::{BUDGET, HEADER_LEN, MAX_FRAME_LEN, Net, RX};
use crate::virtio::{F_EVENT_IDX, Turn, VirtioDevice};

const NOT_MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Offers `count` chains of `len` bytes each, a page apart.
fn offer(bench: &Bench, from: u16, count: u16, len: u32) {
    for head in from..from + count {
        bench.offer_chain(RX, head, true, &[(DATA + 0x1000 * u64::from(head), len)]);
    }
}

fn arrive(bench: &mut Bench, frame: Vec<u8>) -> Turn {
    bench.network().to_guest.push_back(frame);
    bench.call(|device, active| device.backend_ready(active))
}

/// The frame as the guest finds it, with the number of its buffers.
fn with_buffers(mut frame: Vec<u8>, buffers: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

#[test]
fn a_short_frame_takes_one_buffer() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1536);
    let _ = bench.doorbell(RX);
    assert_eq!(arrive(&mut bench, frame(100, 5)), Turn::Done);
    assert_eq!(bench.used(RX, 0), [(0, 100)]);
    assert_eq!(bench.bytes(DATA, 100), with_buffers(frame(100, 5), 1));
    assert_eq!(bench.interrupts(), [1, 0, 0]);
    assert_eq!(bench.device.metrics.rx_bytes_count.get(), 88);
}

#[test]
fn a_long_frame_takes_the_buffers_that_it_needs_and_leaves_the_rest_to_the_next() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1500);
    let _ = arrive(&mut bench, frame(3200, 5));
    assert_eq!(bench.used(RX, 0), [(0, 1500), (1, 1500), (2, 200)]);
    let mut bytes = bench.bytes(DATA, 1500);
    bytes.extend(bench.bytes(DATA + 0x1000, 1500));
    bytes.extend(bench.bytes(DATA + 0x2000, 200));
    assert_eq!(bytes, with_buffers(frame(3200, 5), 3));
    let _ = arrive(&mut bench, frame(60, 8));
    assert_eq!(bench.used(RX, 3), [(3, 60)]);
    assert_eq!(
        bench.bytes(DATA + 0x3000, 60),
        with_buffers(frame(60, 8), 1)
    );
}

#[test]
fn the_longest_frame_arrives() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1536);
    let _ = arrive(&mut bench, frame(MAX_FRAME_LEN, 5));
    let used = bench.used(RX, 0);
    assert_eq!(used.len(), MAX_FRAME_LEN.div_ceil(1536));
    let lengths: usize = used.iter().map(|(_, len)| *len as usize).sum();
    assert_eq!(lengths, MAX_FRAME_LEN);
}

#[test]
fn the_number_of_buffers_may_lie_in_several_pieces_and_regions() {
    let mut bench = Bench::new(8, NOT_MERGEABLE);
    let pieces = [(SEAM - 11, 20), (DATA, 1500)];
    bench.offer_chain(RX, 0, true, &pieces);
    let _ = arrive(&mut bench, frame(60, 5));
    assert_eq!(bench.bytes(SEAM - 11, 20)[10..12], [1, 0]);
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one_chain() {
    let mut bench = Bench::new(8, NOT_MERGEABLE);
    bench.offer_chain(RX, 0, true, &[(DATA, 12), (DATA + 0x1000, 1514)]);
    bench.offer_chain(RX, 2, true, &[(DATA + 0x2000, 1526)]);
    let _ = arrive(&mut bench, frame(700, 5));
    assert_eq!(bench.used(RX, 0), [(0, 700)]);
    assert_eq!(bench.bytes(DATA, 12), with_buffers(frame(700, 5), 1)[..12]);
    assert_eq!(bench.bytes(DATA + 0x1000, 688), frame(700, 5)[12..]);
    // This one fits no chain: it is lost, and the chain serves the next.
    let _ = arrive(&mut bench, frame(1527, 5));
    assert_eq!(bench.device.metrics.rx_fails.get(), 1);
    let _ = arrive(&mut bench, frame(1526, 5));
    assert_eq!(bench.used(RX, 1), [(2, 1526)]);
}

#[test]
fn frames_wait_in_the_network_until_there_is_room_for_the_longest() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 3, 1536);
    let _ = arrive(&mut bench, frame(60, 1));
    assert_eq!(bench.network().to_guest.len(), 1);
    offer(&bench, 3, 50, 1536);
    let _ = bench.doorbell(RX);
    assert_eq!(bench.used(RX, 0), [(0, 60)]);
}

#[test]
fn a_queue_that_is_too_small_for_the_longest_frame_gets_those_that_fit() {
    let mut bench = Bench::new(4, 0);
    offer(&bench, 0, 4, 1536);
    let _ = arrive(&mut bench, frame(6000, 1));
    assert_eq!(bench.used(RX, 0).len(), 4);
    offer(&bench, 0, 4, 1536);
    let _ = arrive(&mut bench, frame(6145, 1));
    assert_eq!(bench.device.metrics.rx_fails.get(), 1);
    let _ = arrive(&mut bench, frame(60, 1));
    assert_eq!(bench.used(RX, 4), [(0, 60)]);
}

#[test]
fn chains_in_which_no_frame_fits_come_back_empty() {
    let mut bench = Bench::new(8, NOT_MERGEABLE);
    bench.offer_chain(RX, 0, true, &[(DATA, HEADER_LEN as u32 - 1)]);
    bench.offer_chain(RX, 1, false, &[(DATA, 1536)]);
    bench.offer_chain(RX, 2, true, &[(u64::MAX - 5, 1536)]);
    bench.offer_chain(RX, 3, true, &[(DATA, 1536)]);
    let _ = arrive(&mut bench, frame(60, 1));
    assert_eq!(bench.used(RX, 0), [(0, 0), (1, 0), (2, 0), (3, 60)]);
    assert_eq!(bench.device.metrics.rx_fails.get(), 3);
}

#[test]
fn a_flood_of_frames_or_of_bad_chains_leaves_the_event_loop_its_turn() {
    let mut bench = Bench::new(256, NOT_MERGEABLE);
    offer(&bench, 0, 256, 1536);
    let flood = (0..BUDGET + 10).map(|_| frame(60, 1));
    bench.network().to_guest.extend(flood);
    assert_eq!(bench.doorbell(RX), Turn::More);
    assert_eq!(bench.network().to_guest.len(), 10);

    let mut bench = Bench::new(256, 0);
    for head in 0..256 {
        bench.offer_chain(RX, head, true, &[(DATA, 1)]);
    }
    assert_eq!(bench.doorbell(RX), Turn::More);
    assert_eq!(bench.doorbell(RX), Turn::Done);
}

#[test]
fn a_network_that_fails_is_not_asked_for_ever() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1536);
    bench.network().broken = Some(77);
    assert_eq!(bench.doorbell(RX), Turn::Done);
    bench.network().broken = None;
    let _ = arrive(&mut bench, frame(60, 1));
    assert_eq!(bench.used(RX, 0), [(0, 60)]);
}

#[test]
fn without_a_link_frames_wait_in_the_network() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1536);
    bench.call(|device, active| device.set_link(false, Some(active)));
    assert_eq!(arrive(&mut bench, frame(60, 1)), Turn::Done);
    assert!(bench.used(RX, 0).is_empty());
    bench.call(|device, active| device.set_link(true, Some(active)));
    let _ = bench.call(|device, active| device.backend_ready(active));
    assert_eq!(bench.used(RX, 0), [(0, 60)]);
    assert_eq!(bench.interrupts(), [1, 2, 0]);
}

/// What the device has taken beforehand goes back, and the restored device takes it again.
#[test]
fn a_drained_device_has_taken_nothing_that_it_has_not_used() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1536);
    let _ = arrive(&mut bench, frame(2000, 1));
    assert!(bench.queues[0].next_avail() > 2);
    bench.call(|device, active| device.drain(active));
    assert_eq!(bench.queues[0].next_avail(), 2);
    assert_eq!(bench.queues[0].next_used(), 2);

    let state = bench.device.save();
    bench.device = Net::from_state(&state, None, TestNetwork::default()).unwrap();
    let _ = bench.doorbell(RX);
    let _ = arrive(&mut bench, frame(60, 1));
    assert_eq!(bench.used(RX, 2), [(2, 60)]);
}

#[test]
fn a_reset_device_has_nothing_of_the_old_driver() {
    let mut bench = Bench::new(64, 0);
    offer(&bench, 0, 64, 1536);
    let _ = bench.doorbell(RX);
    bench.device.reset();
    // The queues' reset is the transport's business: this driver has offered nothing yet.
    bench.queues[0].set_next_avail(0);
    bench.set_avail_index(RX, 0);
    bench
        .call(|device, active| device.activate(active))
        .unwrap();
    let _ = arrive(&mut bench, frame(60, 1));
    assert!(bench.used(RX, 0).is_empty());
}

#[test]
fn a_driver_without_event_indices_is_not_asked_to_ring_while_there_is_room() {
    let mut bench = Bench::new(64, F_EVENT_IDX);
    offer(&bench, 0, 64, 1536);
    let _ = arrive(&mut bench, frame(60, 1));
    let flags = bench.queues[0].used_ring();
    assert_eq!(bench.bytes(flags, 2), [1, 0]);
    let index = bench.avail_index(RX);
    bench.queues[0].set_next_avail(index);
    bench.device.buffers.forget();
    let _ = bench.doorbell(RX);
    assert_eq!(bench.bytes(flags, 2), [0, 0]);
}
