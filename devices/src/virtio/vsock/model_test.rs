//! Both sides keep to the rules, in any order: every byte arrives, in its place, and an end only after the last byte.

use proptest::prelude::*;

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::testing::{Guest, HostEnd, answer};

/// What either side does next.
#[derive(Clone, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    HostEnds,
    GuestWrites(usize),
    GuestReads(usize),
    GuestEnds,
    /// The guest offers buffers.
    GuestOffers(usize),
    /// The pipe to the host's program has another size.
    HostHasRoom(usize),
    /// The machine's event loop looks at the host.
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..30_000usize).prop_map(Step::HostWrites),
        4 => (1..30_000usize).prop_map(Step::HostReads),
        1 => Just(Step::HostEnds),
        4 => (1..70_000usize).prop_map(Step::GuestWrites),
        4 => (1..30_000usize).prop_map(Step::GuestReads),
        1 => Just(Step::GuestEnds),
        4 => (1..20usize).prop_map(Step::GuestOffers),
        1 => (0..9_000usize).prop_map(Step::HostHasRoom),
        4 => Just(Step::Poll),
    ]
}

/// The byte at a place of a stream.
fn byte(place: usize) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 13) as u8
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// A socket in the guest, as Linux has it, and the host's program at the other end.
struct Model {
    guest: Guest,
    end: HostEnd,
    request: Header,
    /// Size of the socket's receive buffer.
    alloc: usize,
    /// Arrived in that buffer, and taken out of it by the guest's program.
    arrived: usize,
    taken: usize,
    host_wrote: usize,
    host_read: usize,
    guest_wrote: usize,
    device_alloc: usize,
    device_forwarded: u32,
    host_ended: bool,
    guest_ended: bool,
    /// What the device has told of its ends.
    device_shutdown: u32,
    offered: usize,
}

impl Model {
    fn new(rx_len: u32, alloc: usize, without: u64) -> Self {
        let mut guest = Guest::new(rx_len, without);
        guest.offer(1);
        let end = guest.host.dial(b"CONNECT 52\n");
        guest.run();
        let (request, _) = guest.packets().remove(0);
        let mut model = Self {
            guest,
            end,
            request,
            alloc,
            arrived: 0,
            taken: 0,
            host_wrote: 0,
            host_read: 0,
            guest_wrote: 0,
            device_alloc: request.buf_alloc.get() as usize,
            device_forwarded: 0,
            host_ended: false,
            guest_ended: false,
            device_shutdown: 0,
            offered: 0,
        };
        model.send(op::RESPONSE, 0, &[]);
        assert!(model.end.read(100).starts_with(b"OK "));
        model
    }

    fn send(&mut self, op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            len: (data.len() as u32).into(),
            flags: flags.into(),
            buf_alloc: (self.alloc as u32).into(),
            fwd_cnt: (self.taken as u32).into(),
            ..answer(&self.request, op)
        };
        self.guest.send(header, data);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::HostWrites(len) if !self.host_ended => {
                self.end.write(&bytes(self.host_wrote, len));
                self.host_wrote += len;
            }
            Step::HostReads(len) => {
                let read = self.end.read(len);
                assert_eq!(read, bytes(self.host_read, read.len()), "the host's bytes");
                self.host_read += read.len();
            }
            Step::HostEnds => {
                self.end.end();
                self.host_ended = true;
            }
            Step::GuestWrites(len) if !self.guest_ended => {
                let in_flight = (self.guest_wrote as u32).wrapping_sub(self.device_forwarded);
                let credit = self.device_alloc - in_flight as usize;
                let len = len.min(credit);
                if len > 0 {
                    let data = bytes(self.guest_wrote, len);
                    self.guest_wrote += len;
                    self.send(op::RW, 0, &data);
                }
            }
            Step::GuestReads(len) => {
                self.taken += len.min(self.arrived - self.taken);
                self.send(op::CREDIT_UPDATE, 0, &[]);
            }
            Step::GuestEnds if !self.guest_ended => {
                self.guest_ended = true;
                self.send(op::SHUTDOWN, SHUTDOWN_SEND, &[]);
            }
            Step::GuestOffers(n) => {
                let n = n.min(200 - self.offered);
                self.offered += n;
                self.guest.offer(n);
            }
            Step::HostHasRoom(len) => {
                self.end.set_capacity(len);
                self.end.wake();
            }
            Step::Poll => self.guest.run(),
            _ => {}
        }
        self.take_packets();
    }

    fn take_packets(&mut self) {
        for (header, data) in self.guest.packets() {
            self.offered -= 1;
            self.device_alloc = header.buf_alloc.get() as usize;
            self.device_forwarded = header.fwd_cnt.get();
            let forwarded = self.device_forwarded as usize;
            assert!(forwarded <= self.guest_wrote, "more forwarded than sent");
            match header.op.get() {
                op::RW => {
                    assert_eq!(
                        self.device_shutdown & SHUTDOWN_SEND,
                        0,
                        "data after the end"
                    );
                    assert_eq!(data, bytes(self.arrived, data.len()), "the guest's bytes");
                    self.arrived += data.len();
                    assert!(self.arrived - self.taken <= self.alloc, "more than fits");
                }
                op::SHUTDOWN => {
                    assert!(self.host_ended);
                    assert_eq!(self.arrived, self.host_wrote, "an end before the last byte");
                    self.device_shutdown |= header.flags.get();
                    assert_eq!(self.device_shutdown & SHUTDOWN_RECEIVE, 0);
                }
                op::CREDIT_UPDATE => {}
                op::CREDIT_REQUEST => self.send(op::CREDIT_UPDATE, 0, &[]),
                other => panic!("the device sends {other}"),
            }
        }
    }

    /// All that was begun is done.
    fn finish(&mut self) {
        self.step(&Step::HostEnds);
        self.step(&Step::HostHasRoom(10_000));
        for round in 0.. {
            self.step(&Step::Poll);
            self.step(&Step::HostReads(usize::MAX));
            self.step(&Step::GuestOffers(8));
            self.step(&Step::GuestReads(usize::MAX));
            if self.device_shutdown != 0 && self.host_read == self.guest_wrote {
                break;
            }
            assert!(round < 10_000, "it is stuck");
        }
        assert_eq!(self.arrived, self.host_wrote);
        self.step(&Step::GuestEnds);
        assert!(self.end.at_end(), "the host sees no end");
        self.send(op::SHUTDOWN, SHUTDOWN_BOTH, &[]);
        self.guest.offer(1);
        let (reset, _) = self.guest.packets().remove(0);
        assert_eq!(reset.op, op::RST);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_byte_arrives_in_its_place(
        steps in prop::collection::vec(step(), 0..120),
        rx_len in prop::sample::select(vec![45u32, 100, 1500, 4096, 70_000]),
        alloc in prop::sample::select(vec![1usize, 100, 4096, 65_536, 262_144]),
        event_idx in any::<bool>(),
    ) {
        let without = if event_idx { 0 } else { crate::virtio::F_EVENT_IDX };
        let alloc = alloc.max(if rx_len < 1000 { 1 } else { 100 });
        let mut model = Model::new(rx_len, alloc, without);
        for step in &steps {
            model.step(step);
        }
        // With buffers of a byte, what is left would take for ever.
        if model.host_wrote - model.arrived < 1000 * alloc.min(rx_len as usize - 44) {
            model.finish();
        }
    }
}
