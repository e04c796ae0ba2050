//! From the network to the guest.

use std::collections::VecDeque;
use std::io::ErrorKind;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, VolatileSlice};

use super::backend::{FrameBackend, HEADER_LEN, MAX_FAILURES};
use super::ring::{self, Extent, Malformed, QueueError, Segment, Used};
use super::{NetMetrics, Next};
use crate::virtio::GuestMemory;

/// Where the header has its number of buffers, in bytes.
const NUM_BUFFERS: usize = 10;
/// How many pieces one frame is received into at most; one more follows them, and the kernel takes 1,024.
const MAX_SLICES: usize = 1_000;

/// Chains that were taken from the queue and not used yet.
///
/// How long a frame is shows only when it is there. So room for the longest one is taken beforehand, and what the
/// frame leaves is kept for the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    chains: VecDeque<Chain>,
    segments: VecDeque<Segment>,
    bytes: usize,
}

#[derive(Debug)]
struct Chain {
    head: u16,
    extent: Extent,
}

impl Buffers {
    /// Gives everything back to the queue, as if it had never been taken.
    pub(super) fn give_back(&mut self, queue: &mut Queue) {
        // As many as were taken since `next_avail` had its old value; fewer than the queue has.
        let taken = self.chains.len() as u16;
        queue.set_next_avail(queue.next_avail().wrapping_sub(taken));
        self.forget();
    }

    /// Forgets everything: the queue has been reset.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, head: u16, extent: Extent) {
        self.bytes += extent.bytes;
        self.chains.push_back(Chain { head, extent });
    }

    fn pop(&mut self) -> Option<Chain> {
        let chain = self.chains.pop_front()?;
        self.segments.drain(..chain.extent.segments);
        self.bytes -= chain.extent.bytes;
        Some(chain)
    }
}

/// What receiving needs.
pub(super) struct Receive<'a> {
    pub(super) queue: &'a mut Queue,
    pub(super) memory: &'a GuestMemory,
    pub(super) backend: &'a mut dyn FrameBackend,
    pub(super) buffers: &'a mut Buffers,
    pub(super) metrics: &'a NetMetrics,
    /// A frame may lie in several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    pub(super) mergeable: bool,
    /// The longest frame to expect in bytes, with its header.
    pub(super) longest: usize,
}

impl Receive<'_> {
    /// Hands frames to the driver, as long as there are frames and chains, `budget` of both at most. Returns what
    /// is to be waited for, and whether the driver wants an interrupt.
    pub(super) fn run(mut self, mut budget: usize) -> Result<(Next, bool), QueueError> {
        let mut used = Used::new(self.queue);
        let mut failures = 0;
        self.queue.disable_notification(self.memory)?;
        let next = loop {
            if budget == 0 {
                break Next::Again;
            }
            self.take_room(&mut budget, &mut used)?;
            if !self.has_room() {
                if budget > 0 && self.queue.enable_notification(self.memory)? {
                    continue;
                }
                break if budget == 0 {
                    Next::Again
                } else {
                    self.metrics.no_rx_avail_buffer.inc();
                    Next::Driver
                };
            }
            budget = budget.saturating_sub(1);
            match self.receive(&mut used)? {
                Received::Frame => failures = 0,
                // One frame cannot be had, or the network has gone.
                Received::Failure if failures < MAX_FAILURES => failures += 1,
                Received::Failure | Received::Nothing => break Next::Backend,
            }
        };
        Ok((next, used.wants_interrupt(self.queue, self.memory)?))
    }

    /// Whether a frame can be received. A driver whose whole queue is too small for the longest frame gets those
    /// that fit.
    fn has_room(&self) -> bool {
        let chains = self.buffers.chains.len();
        if !self.mergeable {
            return chains > 0;
        }
        self.buffers.bytes >= self.longest
            || self.buffers.segments.len() >= MAX_SLICES
            || chains >= usize::from(self.queue.size())
    }

    /// Takes chains until there is room, or there are no more.
    fn take_room(&mut self, budget: &mut usize, used: &mut Used) -> Result<(), QueueError> {
        while *budget > 0 && !self.has_room() {
            let Some(chain) = ring::next(self.queue, self.memory)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let before = self.buffers.segments.len();
            let segments = &mut self.buffers.segments;
            let extent = ring::walk(self.queue, self.memory, chain, true, |segment| {
                segments.push_back(segment);
            });
            match extent {
                // A shorter one has no room for the header.
                Ok(extent) if extent.bytes >= HEADER_LEN => self.buffers.add(head, extent),
                Ok(_) | Err(Malformed) => {
                    *budget -= 1;
                    self.buffers.segments.truncate(before);
                    self.metrics.rx_fails.inc();
                    used.put(self.queue, self.memory, head, 0)?;
                    used.publish(self.queue, self.memory)?;
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, used: &mut Used) -> Result<Received, QueueError> {
        let memory = self.memory;
        let mut slices = Vec::with_capacity(self.buffers.segments.len() + 1);
        let wanted = match self.buffers.chains.front() {
            Some(first) if !self.mergeable => first.extent.segments,
            _ => self.buffers.segments.len(),
        };
        for segment in self.buffers.segments.iter().take(wanted.min(MAX_SLICES)) {
            // The segment's range was found to be there when it was taken, and memory does not go.
            if ring::view(memory, *segment, &mut slices).is_err() {
                break;
            }
        }
        slices.truncate(MAX_SLICES);
        let room: usize = slices.iter().map(VolatileSlice::len).sum();
        // A frame that is longer than the room shows by this byte.
        let mut beyond = [0_u8];
        slices.push(VolatileSlice::from(&mut beyond[..]));
        let len = match self.backend.receive(&slices) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
            Err(_) => {
                self.metrics.rx_fails.inc();
                self.metrics.tap_read_fails.inc();
                return Ok(Received::Failure);
            }
        };
        if !(HEADER_LEN..=room).contains(&len) {
            self.metrics.rx_fails.inc();
            return Ok(Received::Frame);
        }
        slices.pop();
        self.hand_over(len, &slices, used)?;
        self.metrics.received(len - HEADER_LEN);
        Ok(Received::Frame)
    }

    /// Gives the driver the chains that hold the frame of `len` bytes.
    fn hand_over(
        &mut self,
        len: usize,
        slices: &[VolatileSlice<'_>],
        used: &mut Used,
    ) -> Result<(), QueueError> {
        let mut left = len;
        let mut number: u16 = 0;
        while left > 0 {
            let Some(chain) = self.buffers.pop() else {
                break;
            };
            let part = left.min(chain.extent.bytes);
            left -= part;
            number += 1;
            // A chain has fewer than 2^32 bytes: a frame has.
            used.put(self.queue, self.memory, chain.head, part as u32)?;
        }
        write_at(slices, NUM_BUFFERS, &number.to_le_bytes());
        used.publish(self.queue, self.memory)
    }
}

/// What one look at the network has brought.
enum Received {
    /// A frame, handed over or dropped.
    Frame,
    Failure,
    Nothing,
}

/// Writes `bytes` at `offset` into what `slices` are together.
fn write_at(slices: &[VolatileSlice<'_>], mut offset: usize, mut bytes: &[u8]) {
    for slice in slices {
        if bytes.is_empty() {
            return;
        }
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        // The offset is inside of the slice.
        let written = slice.write(bytes, offset).unwrap_or(bytes.len());
        bytes = &bytes[written..];
        offset = 0;
    }
}
