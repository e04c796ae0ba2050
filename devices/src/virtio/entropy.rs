//! The entropy device (virtio 1.2, section 5.4): the host's random bytes for the guest.
//!
//! Linux keeps one request under way at all times, so a guest has up to 64 bytes in its own memory that it has not used yet. A
//! snapshot carries them into every clone; what clones draw after that differs. The guest's kernel mixes them with what a new
//! generation brings (VMGENID).

use serde::{Deserialize, Serialize};
use std::io::Write;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;

use super::{
    ActivateError, Active, F_EVENT_IDX, F_INDIRECT_DESC, GuestMemory, QueueBroken, Turn,
    VirtioDevice, await_doorbell, give_back, next_chain, notify_used,
};
use crate::DeviceState;

/// The only queue: buffers to be filled.
const QUEUE_SIZES: [u16; 1] = [256];
/// The most bytes for one chain; the rest of it stays as it is, and the driver is told (section 5.4.6.2 allows that).
const MAX_CHAIN_BYTES: usize = 4 << 10;
/// The most chains in one turn of the event loop.
const MAX_CHAINS: usize = 64;

/// Fills bytes with random ones.
pub type RandomSource = fn(&mut [u8]) -> Result<(), getrandom::Error>;

/// The device's state in a snapshot: it has none of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {}

impl DeviceState for EntropyState {
    const VERSION: u16 = 1;
}

/// The entropy device.
#[derive(Debug)]
pub struct Entropy {
    source: RandomSource,
}

impl Default for Entropy {
    /// Random bytes of the host's operating system.
    fn default() -> Self {
        Self {
            source: getrandom::fill,
        }
    }
}

impl Entropy {
    /// Random bytes from another source.
    pub fn with_source(source: RandomSource) -> Self {
        Self { source }
    }

    /// The device's state.
    pub fn save(&self) -> EntropyState {
        EntropyState {}
    }

    /// Fills what it can of one chain; returns how many bytes. A chain that is malformed gets none.
    fn fill(&self, chain: DescriptorChain<&GuestMemory>, memory: &GuestMemory) -> u32 {
        let Ok(mut writer) = chain.writer(memory) else {
            return 0;
        };
        let mut bytes = [0; MAX_CHAIN_BYTES];
        let bytes = &mut bytes[..writer.available_bytes().min(MAX_CHAIN_BYTES)];
        if let Err(error) = (self.source)(bytes) {
            tracing::warn!(%error, "no random bytes for the guest");
            return 0;
        }
        match writer.write_all(bytes) {
            Ok(()) => bytes.len() as u32,
            Err(_) => 0,
        }
    }

    fn serve(&self, active: &mut Active<'_>) -> Result<Turn, QueueBroken> {
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
            give_back(queue, memory, *interrupt, head, len)?;
        }
        notify_used(active, 0)?;
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
        F_EVENT_IDX | F_INDIRECT_DESC
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
