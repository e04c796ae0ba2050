//! The entropy device (virtio 1.2, section 5.4): the host's random bytes for the guest.
//!
//! Linux keeps one request under way at all times, so a guest has up to 64 bytes in its own memory that it has not used yet. A
//! snapshot carries them into every clone; what clones draw after that differs. The guest's kernel mixes them with what a new
//! generation brings (VMGENID).

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{
    ActivateError, Active, F_EVENT_IDX, F_INDIRECT_DESC, GuestMemory, QueueBroken, Turn,
    VirtioDevice, await_doorbell, give_back, mark_used, next_chain, notify_used,
};
use crate::metrics::Counter;
use crate::random::{self, RandomError};
use crate::throttle::Throttle;
use crate::{DeviceState, metrics_group};

/// The sizes of all queues: of the only one, for buffers to be filled.
pub const QUEUE_SIZES: [u16; 1] = [256];
/// The most bytes for one chain; the rest of it stays as it is, and the driver is told (section 5.4.6.2 allows that).
const MAX_CHAIN_BYTES: usize = 4 << 10;
/// The most chains in one turn of the event loop.
const MAX_CHAINS: usize = 64;

/// Fills bytes with random ones.
pub type RandomSource = fn(&mut [u8]) -> Result<(), RandomError>;

/// The device's state in a snapshot: it has none of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {}

impl EntropyState {
    /// What a device offers, as the driver may have it.
    pub const OFFERED: u64 = F_EVENT_IDX | F_INDIRECT_DESC;
}

impl DeviceState for EntropyState {
    const VERSION: u16 = 1;
}

metrics_group! {
    /// The entropy device's metrics. There are no rate limiters, and activations cannot fail: Firecracker's metrics of those are always 0.
    EntropyMetrics {
        /// Activations that failed.
        activate_fails: Counter,
        /// Buffers that got no bytes.
        entropy_event_fails: Counter,
        /// Buffers of the guest's.
        entropy_event_count: Counter,
        /// Random bytes for the guest.
        entropy_bytes: Counter,
        /// The host has given no random bytes.
        host_rng_fails: Counter,
        /// No rate limiters.
        entropy_rate_limiter_throttled: Counter,
        /// No rate limiters.
        rate_limiter_event_count: Counter,
    }
}

/// The entropy device.
#[derive(Debug)]
pub struct Entropy {
    source: RandomSource,
    complaints: Throttle,
    metrics: Arc<EntropyMetrics>,
}

impl Default for Entropy {
    /// Random bytes of the host's operating system.
    fn default() -> Self {
        Self::with_source(random::fill)
    }
}

impl Entropy {
    /// Random bytes from another source.
    pub fn with_source(source: RandomSource) -> Self {
        Self {
            source,
            complaints: Throttle::default(),
            metrics: Arc::default(),
        }
    }

    /// Counts in `metrics` from now on.
    pub fn with_metrics(mut self, metrics: Arc<EntropyMetrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// The device's state.
    pub fn save(&self) -> EntropyState {
        EntropyState {}
    }

    /// Fills what it can of one chain; returns how many bytes. A chain with a buffer outside of memory gets none. Of a chain that is longer
    /// than the queue (section 2.7.5.3.1) the rest is not looked at.
    fn fill(&mut self, chain: DescriptorChain<&GuestMemory>, memory: &GuestMemory) -> u32 {
        let mut pieces = [(GuestAddress(0), 0); QUEUE_SIZES[0] as usize];
        let mut room = 0;
        for (piece, descriptor) in pieces.iter_mut().zip(chain) {
            let len = (descriptor.len() as usize).min(MAX_CHAIN_BYTES - room);
            if !descriptor.is_write_only() || len == 0 {
                continue;
            }
            if !memory.check_range(descriptor.addr(), len) {
                return 0;
            }
            *piece = (descriptor.addr(), len);
            room += len;
        }
        let mut bytes = [0; MAX_CHAIN_BYTES];
        let bytes = &mut bytes[..room];
        if let Err(error) = (self.source)(bytes) {
            self.metrics.host_rng_fails.inc();
            if let Some(more) = self.complaints.allows(Instant::now()) {
                tracing::warn!(%error, more, "no random bytes for the guest");
            }
            return 0;
        }
        let mut rest = &bytes[..];
        for (gpa, len) in pieces {
            let (now, later) = rest.split_at(len);
            // It was there a moment ago, and memory does not go.
            let _ = memory.write_slice(now, gpa);
            rest = later;
        }
        room as u32
    }

    fn serve(&mut self, active: &mut Active<'_>) -> Result<Turn, QueueBroken> {
        let mark = mark_used(active, 0);
        let Active {
            memory,
            queues: [queue, ..],
            interrupt,
            ..
        } = active
        else {
            return Ok(Turn::Done);
        };
        let mut turn = Turn::More;
        for _ in 0..MAX_CHAINS {
            let Some(chain) = next_chain(queue, memory, *interrupt)? else {
                if await_doorbell(queue, memory, *interrupt)? {
                    continue;
                }
                turn = Turn::Done;
                break;
            };
            let head = chain.head_index();
            let len = self.fill(chain, memory);
            self.metrics.entropy_event_count.inc();
            self.metrics.entropy_bytes.add(len.into());
            if len == 0 {
                self.metrics.entropy_event_fails.inc();
            }
            give_back(queue, memory, *interrupt, head, len)?;
        }
        notify_used(active, 0, mark)?;
        Ok(turn)
    }
}

impl VirtioDevice for Entropy {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        EntropyState::OFFERED
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _active: &mut Active<'_>) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn queue_ready(&mut self, _queue: u16, active: &mut Active<'_>) -> Turn {
        // The driver knows already of a queue that is broken.
        self.serve(active).unwrap_or(Turn::Done)
    }
}

#[cfg(test)]
#[path = "entropy_test.rs"]
mod tests;
