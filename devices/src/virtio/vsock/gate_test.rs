use zerocopy::IntoBytes;

use super::packet::op;
use super::testing::{Guest, TestHost, to_host};
use super::{TX, Vsock};
use crate::virtio::testing::readable;
use vm_memory::{Bytes, GuestAddress};

/// Where the request of before the snapshot lies.
const OLD: u64 = 0x9_0000;

/// A restored guest behind a shut gate, with a request to the host's port 80 in its ring if it is `asking`.
fn clone_of(asking: bool) -> Guest {
    let mut guest = Guest::ready();
    let state = (guest.harness.transport).with_device(|device, _| device.save());
    if asking {
        let request = to_host(80, op::REQUEST, 0);
        let memory = &guest.harness.memory;
        (memory.write_slice(request.as_bytes(), GuestAddress(OLD))).unwrap();
        let buffer = readable(OLD, request.as_bytes().len() as u32);
        guest.harness.queues[usize::from(TX)].send(&[buffer]);
    }
    let host = TestHost::default();
    host.listen(80);
    let mut device = Vsock::from_state(&state, host.clone()).unwrap();
    device.shut_gate();
    guest.restored(device, host)
}

fn open_to_guest(guest: &Guest) {
    (guest.harness.transport).with_device(|device, active| device.open_gate_to_guest(active));
}

fn open_to_host(guest: &Guest) {
    (guest.harness.transport).with_device(|device, _| device.open_gate_to_host());
}

#[test]
fn the_host_is_refused_until_the_gate_is_open_to_it() {
    let mut guest = clone_of(false);
    guest.events(true);
    for opened in [false, true] {
        if opened {
            open_to_guest(&guest);
        }
        let end = guest.host.dial(b"CONNECT 52\n");
        assert!(guest.receive().is_empty());
        assert!(end.at_end(), "it is told at once");
    }
    open_to_host(&guest);
    guest.connected_from_host(52);
}

#[test]
fn the_guest_is_refused_until_the_gate_is_open_to_it() {
    let mut guest = clone_of(false);
    guest.events(true);
    open_to_host(&guest);
    guest.send(to_host(80, op::REQUEST, 0), &[]);
    assert_eq!(guest.receive_one().0.op.get(), op::RST);
    assert!(guest.host.accepted(80).is_empty());
    open_to_guest(&guest);
    guest.send(to_host(80, op::REQUEST, 0), &[]);
    assert_eq!(guest.receive_one().0.op.get(), op::RESPONSE);
    assert_eq!(guest.host.accepted(80).len(), 1);
}

#[test]
fn what_the_guest_had_asked_for_before_the_snapshot_is_refused_however_early_the_gate_opens() {
    for in_step in [true, false] {
        let mut guest = clone_of(true);
        if in_step {
            guest.events(true);
        }
        open_to_guest(&guest);
        guest.events(true);
        assert_eq!(guest.receive_one().0.op.get(), op::RST, "{in_step}");
        assert!(guest.host.accepted(80).is_empty());
        assert_eq!(guest.harness.queues[usize::from(TX)].take_used().len(), 1);
        guest.send(to_host(80, op::REQUEST, 0), &[]);
        assert_eq!(guest.receive_one().0.op.get(), op::RESPONSE);
    }
}

/// The negative control.
#[test]
fn without_a_gate_the_host_meets_what_the_guest_had_asked_for() {
    let mut guest = clone_of(true);
    (guest.harness.transport).with_device(|device, _| device.muxer.shut = Default::default());
    guest.events(true);
    guest.receive();
    assert_eq!(guest.host.accepted(80).len(), 1);
}

#[test]
fn a_driver_that_begins_anew_at_the_opening_finds_it_open() {
    let guest = clone_of(true);
    open_to_guest(&guest);
    assert!(
        guest
            .harness
            .transport
            .with_device(|d, _| d.muxer.shut.to_guest)
    );
    guest.harness.transport.with_device(|device, _| {
        super::VirtioDevice::reset(device);
        assert!(!device.muxer.shut.to_guest);
    });
}
