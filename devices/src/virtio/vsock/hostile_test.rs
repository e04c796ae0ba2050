//! A driver that breaks every rule: nothing panics, piles up or goes on without end.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::packet::Header;
use super::testing::{Guest, answer, to_host};
use super::{EVENTS, RX, TX};
use crate::virtio::testing::{Buffer, HIGH_MEMORY, HIGH_MEMORY_LEN, MEMORY_LEN, NEXT, WRITE};

/// A number at the edges of its range more often than not.
fn edge() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u32::MAX),
        Just(1 << 30),
        Just(64 << 10),
        Just(256 << 10),
        0..2000u32,
        any::<u32>()
    ]
}

prop_compose! {
    fn packet()(
        port in prop::sample::select(vec![80u32, 81, 1 << 30, (1 << 30) + 1, u32::MAX]),
        guest_port in prop::sample::select(vec![0u32, 52, 1000, u32::MAX]),
        kind in prop::sample::select(vec![1u16, 1, 1, 1, 0, 2, 0xffff]),
        op in prop_oneof![0..10u16, Just(5), any::<u16>()],
        cid in prop::sample::select(vec![2u64, 2, 2, 0, 3, u64::MAX]),
        len in edge(), flags in 0..5u32, buf_alloc in edge(), fwd_cnt in edge(),
    ) -> Header {
        Header {
            src_cid: cid.wrapping_add(1).into(),
            dst_cid: cid.into(),
            src_port: guest_port.into(),
            kind: kind.into(),
            len: len.into(),
            flags: flags.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
            ..to_host(port, op, 0)
        }
    }
}

prop_compose! {
    fn buffer()(
        gpa in prop_oneof![
            0..MEMORY_LEN,
            HIGH_MEMORY - 100..HIGH_MEMORY + HIGH_MEMORY_LEN + 100,
            Just(MEMORY_LEN - 10),
            Just(u64::MAX - 3),
            any::<u64>()
        ],
        len in edge(), write in any::<bool>(),
    ) -> Buffer {
        Buffer { gpa, len, write }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A packet whose data are as long as they say, if that is possible.
    Packet(Header),
    /// A packet for the connection that the host began last.
    Answer(Header),
    Chain(u16, Vec<Buffer>),
    /// A descriptor as it comes, and an entry of the available ring.
    Descriptor(u16, Buffer, u16, u16, u16),
    /// The index of the available ring jumps.
    Jump(u16, u16),
    Offer(usize),
    Dial,
    HostCloses,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => packet().prop_map(Step::Packet),
        8 => packet().prop_map(Step::Answer),
        4 => (0..3u16, prop::collection::vec(buffer(), 0..5)).prop_map(|(q, c)| Step::Chain(q, c)),
        4 => (0..3u16, buffer(), 0..8u16, any::<u16>(), 0..300u16)
            .prop_map(|(q, b, i, flags, next)| Step::Descriptor(q, b, i, flags, next)),
        1 => (0..3u16, any::<u16>()).prop_map(|(q, idx)| Step::Jump(q, idx)),
        4 => (1..10usize).prop_map(Step::Offer),
        2 => Just(Step::Dial),
        1 => Just(Step::HostCloses),
        1 => Just(Step::Restore),
    ]
}

fn send(guest: &mut Guest, header: &Header) {
    const GPA: u64 = 0x8_0000;
    let _ = (guest.harness.memory).write_slice(header.as_bytes(), GuestAddress(GPA));
    let len = 44u32.saturating_add(header.len.get().min(0x4_0000));
    let queue = &mut guest.harness.queues[usize::from(TX)];
    queue.send(&[Buffer {
        gpa: GPA,
        len,
        write: false,
    }]);
    guest.harness.doorbell(TX);
}

fn run(steps: Vec<Step>) {
    let mut guest = Guest::new(2048, 0);
    guest.host.listen(80);
    let mut ends = Vec::new();
    let mut request = to_host(80, 1, 0);
    for step in steps {
        match step {
            Step::Packet(header) => send(&mut guest, &header),
            Step::Answer(header) => {
                let ports = answer(&request, 0);
                send(
                    &mut guest,
                    &Header {
                        src_port: ports.src_port,
                        dst_port: ports.dst_port,
                        ..header
                    },
                );
            }
            Step::Chain(queue, buffers) if !buffers.is_empty() => {
                guest.harness.queues[usize::from(queue)].send(&buffers);
                guest.harness.doorbell(queue);
            }
            Step::Descriptor(queue, buffer, index, flags, next) => {
                let driver = &mut guest.harness.queues[usize::from(queue)];
                let flags = flags & (NEXT | WRITE | 4);
                driver.descriptor(index, buffer.gpa, buffer.len, flags, next);
                driver.offer(next);
                driver.offer(index);
                guest.harness.doorbell(queue);
            }
            Step::Jump(queue, idx) => {
                guest.harness.queues[usize::from(queue)].set_avail_idx(idx);
                guest.harness.doorbell(queue);
            }
            Step::Offer(n) => guest.offer(n),
            Step::Dial => {
                ends.push(guest.host.dial(b"CONNECT 52\nand something to read"));
                request.src_port = ((1 << 30) + ends.len() as u32 - 1).into();
                request.dst_port = 52.into();
            }
            Step::HostCloses => {
                if let Some(end) = ends.pop() {
                    end.close();
                }
            }
            Step::Restore => {
                let state = guest
                    .harness
                    .transport
                    .with_device(|device, _| device.save());
                let host = super::testing::TestHost::default();
                host.listen(80);
                let device = super::Vsock::from_state(&state, host.clone()).unwrap();
                guest = guest.restored(device, host);
            }
            Step::Chain(..) => {}
        }
        guest.run();
        let held = (guest.harness.transport).with_device(|device, _| device.muxer.held());
        assert!(held.connections <= super::MAX_CONNECTIONS);
        assert!(held.resets <= 1024);
        assert!(held.ready <= super::MAX_CONNECTIONS);
        assert!(held.largest <= 256 << 10);
    }
    for queue in [RX, TX, EVENTS] {
        guest.harness.doorbell(queue);
    }
}

#[test]
fn connections_that_come_and_go_without_a_buffer_of_the_guests_do_not_pile_up() {
    let mut guest = Guest::new(2048, 0);
    guest.host.listen(80);
    for round in 0..20_000u32 {
        // A request, and at once a reset.
        guest.send_at_once(&[(to_host(80, 1, 0), b""), (to_host(80, 3, 0), b"")]);
        if round % 1000 == 999 {
            let _ = guest.host.accepted(80);
        }
        guest.run();
    }
    let held = (guest.harness.transport).with_device(|device, _| device.muxer.held());
    assert!(held.ready <= super::MAX_CONNECTIONS, "{held:?}");
}

#[test]
fn a_host_with_few_descriptors_lets_a_guest_have_few_connections() {
    let (device, host) = super::testing::device();
    let mut guest = Guest::new(2048, 0).restored(device.with_limit(2), host);
    guest.host.listen(80);
    guest.events(true);
    for port in 1..=5u32 {
        let request = Header {
            src_port: port.into(),
            ..to_host(80, 1, 0)
        };
        guest.send(request, b"");
    }
    let held = (guest.harness.transport).with_device(|device, _| device.muxer.held());
    assert_eq!(held.connections, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_hostile_driver_does_no_harm(steps in prop::collection::vec(step(), 0..60)) {
        run(steps);
    }
}
