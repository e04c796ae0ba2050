//! From the guest to the network.

use std::io::ErrorKind;
use std::time::Instant;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::backend::{FrameBackend, HEADER_LEN, MAX_FRAME_LEN};
use super::ring::{self, Malformed, QueueError, Used};
use super::{NetMetrics, Next};
use crate::virtio::GuestMemory;

/// What sending needs.
pub(super) struct Transmit<'a> {
    pub(super) queue: &'a mut Queue,
    pub(super) memory: &'a GuestMemory,
    pub(super) backend: &'a mut dyn FrameBackend,
    /// Without a link, frames vanish.
    pub(super) link: bool,
    pub(super) metrics: &'a NetMetrics,
}

impl Transmit<'_> {
    /// Sends what the driver has made available, `budget` chains at most. Returns what is to be waited for, and
    /// whether the driver wants an interrupt.
    pub(super) fn run(mut self, mut budget: usize) -> Result<(Next, bool), QueueError> {
        let mut used = Used::new(self.queue);
        let before = budget;
        let next = loop {
            self.queue.disable_notification(self.memory)?;
            match self.send_available(&mut budget, &mut used)? {
                Next::Driver if self.queue.enable_notification(self.memory)? => {}
                next => break next,
            }
        };
        if budget == before && next == Next::Driver {
            self.metrics.no_tx_avail_buffer.inc();
        }
        Ok((next, used.wants_interrupt(self.queue, self.memory)?))
    }

    fn send_available(&mut self, budget: &mut usize, used: &mut Used) -> Result<Next, QueueError> {
        let memory = self.memory;
        let mut slices = Vec::with_capacity(usize::from(self.queue.size()));
        while let Some(chain) = ring::next(self.queue, memory)? {
            if *budget == 0 {
                self.queue.go_to_previous_position();
                return Ok(Next::Again);
            }
            *budget -= 1;
            let head = chain.head_index();
            match ring::views(self.queue, memory, chain, false, &mut slices) {
                Ok(len) if (HEADER_LEN..=MAX_FRAME_LEN).contains(&len) => {
                    match self.send(&slices) {
                        Sent::Yes => self.metrics.sent(len - HEADER_LEN),
                        Sent::Lost => self.metrics.tx_fails.inc(),
                        Sent::NoRoom => {
                            self.queue.go_to_previous_position();
                            return Ok(Next::Backend);
                        }
                    }
                }
                Ok(_) | Err(Malformed) => self.metrics.tx_malformed_frames.inc(),
            }
            used.put(self.queue, memory, head, 0)?;
            used.publish(self.queue, memory)?;
        }
        Ok(Next::Driver)
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> Sent {
        if !self.link {
            return Sent::Lost;
        }
        let begun = Instant::now();
        let sent = self.backend.send(frame);
        self.metrics.tap_write_agg.record(begun.elapsed());
        match sent {
            Ok(()) => Sent::Yes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::NoRoom,
            Err(_) => {
                self.metrics.tap_write_fails.inc();
                Sent::Lost
            }
        }
    }
}

/// What has become of a frame.
enum Sent {
    Yes,
    Lost,
    NoRoom,
}
