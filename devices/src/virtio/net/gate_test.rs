use proptest::prelude::*;

use super::testing::{Bench, DATA, TestNetwork, frame};
use super::*;

/// A restored device behind a shut gate, of a driver that left `frames` in its ring.
fn clone_of(size: u16, cable: bool, frames: u16) -> Bench {
    let mut bench = Bench::new(size, 0);
    for n in 0..frames {
        bench.write(DATA + 0x100 * u64::from(n), &frame(60, n as u8));
        offer(&bench, n);
    }
    bench.device.link = cable;
    let state = bench.device.save();
    let mut device = Net::from_state(&state, None, TestNetwork::default()).unwrap();
    device.shut_gate();
    let mut bench = Bench { device, ..bench };
    bench.call(|device, active| device.restored(active));
    bench
}

fn offer(bench: &Bench, n: u16) {
    bench.offer_chain(TX, n, false, &[(DATA + 0x100 * u64::from(n), 60)]);
}

fn open(bench: &mut Bench) {
    bench.call(|device, active| device.open_gate(Some(active)));
}

/// Bit 0 link, bit 1 announce.
fn status(bench: &Bench) -> u8 {
    let mut status = [0];
    bench.device.read_config(6, &mut status);
    status[0]
}

#[test]
fn what_was_in_the_ring_is_not_sent_however_early_the_gate_opens() {
    for rung in [true, false] {
        let mut bench = clone_of(8, true, 8);
        assert_eq!(status(&bench), 0);
        if rung {
            let _ = bench.doorbell(TX);
        }
        open(&mut bench);
        let _ = bench.doorbell(TX);
        assert!(bench.network().from_guest.is_empty(), "rung: {rung}");
        assert_eq!(bench.used(TX, 0).len(), 8, "the driver has them back");
        assert_eq!(status(&bench), 0b11);
        offer(&bench, 0);
        let _ = bench.doorbell(TX);
        assert_eq!(bench.network().from_guest, [frame(60, 0)]);
    }
}

/// The negative control: without a gate each restored device sends the ring.
#[test]
fn without_a_gate_the_ring_is_sent() {
    let mut bench = clone_of(8, true, 8);
    bench.device.shut = false;
    let _ = bench.doorbell(TX);
    assert_eq!(bench.network().from_guest.len(), 8);
}

#[test]
fn what_waits_for_the_guest_at_the_opening_is_discarded_and_what_comes_later_is_not() {
    let mut bench = clone_of(8, true, 0);
    for n in 0..8 {
        bench.offer_chain(RX, n, true, &[(DATA + 0x2_0000 * u64::from(n), 0x1_1000)]);
    }
    bench.network().to_guest = (0..5).map(|n| frame(900, n)).collect();
    let _ = bench.call(|device, active| device.backend_ready(active));
    assert_eq!(bench.network().to_guest.len(), 5, "it waits");
    open(&mut bench);
    assert!(bench.network().to_guest.is_empty());
    bench.network().to_guest.push_back(frame(100, 9));
    let _ = bench.call(|device, active| device.backend_ready(active));
    assert_eq!(bench.used(RX, 0), [(0, 100)]);
}

#[test]
fn a_cable_that_was_plugged_out_stays_so_at_the_opening() {
    let mut bench = clone_of(8, false, 1);
    open(&mut bench);
    assert_eq!(status(&bench), 0);
    let _ = bench.doorbell(TX);
    assert!(bench.network().from_guest.is_empty());
    bench.interrupts();
    bench.call(|device, active| device.set_link(true, Some(active)));
    assert_eq!((status(&bench), bench.interrupts()), (0b11, [0, 1, 0]));
}

#[test]
fn a_cable_is_plugged_in_and_out_unseen_while_the_gate_is_shut() {
    let mut bench = clone_of(8, false, 0);
    bench.interrupts();
    for up in [true, false, true] {
        bench.call(|device, active| device.set_link(up, Some(active)));
        assert_eq!((status(&bench), bench.interrupts()), (0, [0, 0, 0]));
    }
    assert!(bench.device.save().link, "a snapshot has the cable");
    open(&mut bench);
    assert_eq!((status(&bench), bench.interrupts()), (0b11, [0, 1, 0]));
    // Once.
    open(&mut bench);
    assert_eq!(bench.interrupts(), [0, 0, 0]);
}

#[test]
fn a_gate_opens_without_a_driver_and_with_a_broken_network_or_ring() {
    let mut device = Net::new(
        NetSettings {
            mac: [2; 6],
            mtu: None,
        },
        TestNetwork::default(),
    );
    device.shut_gate();
    device.open_gate(None);
    assert!(device.carrier());
    let mut bench = clone_of(8, true, 1);
    bench.network().broken = Some(5);
    bench.set_avail_index(TX, 99);
    open(&mut bench);
    assert!(bench.device.carrier());
    assert_eq!(bench.interrupts()[2], 1);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Cable(bool),
    Open,
    Send,
    Ring,
    Reset,
}

proptest! {
    /// Nothing goes out before the opening, whatever else happens, and what was sent is what was offered after it.
    #[test]
    fn nothing_passes_a_shut_gate(steps in prop::collection::vec(prop_oneof![
        any::<bool>().prop_map(Step::Cable),
        Just(Step::Open),
        Just(Step::Send),
        Just(Step::Ring),
        Just(Step::Reset),
    ], 0..40)) {
        let mut bench = clone_of(256, true, 3);
        let (mut opened, mut n) = (false, 3);
        for step in steps {
            match step {
                Step::Cable(up) => bench.call(|device, active| device.set_link(up, Some(active))),
                Step::Open => {
                    open(&mut bench);
                    opened = true;
                }
                Step::Send => {
                    offer(&bench, n);
                    n += 1;
                }
                Step::Ring => drop(bench.doorbell(TX)),
                Step::Reset => bench.device.reset(),
            }
            let carrier = opened && bench.device.link;
            prop_assert_eq!(status(&bench) & 1, u8::from(carrier));
            prop_assert!(opened || bench.network().from_guest.is_empty());
        }
    }
}
