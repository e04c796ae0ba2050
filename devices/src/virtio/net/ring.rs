//! What both directions need of a queue: descriptor chains taken apart, and used buffers published together.

use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::virtio::GuestMemory;
use crate::virtio::queue::{Mark, wants_interrupt};

/// Why a queue cannot be used any more. Its driver has broken it, and has to reset the device.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    /// An index that cannot be, or a queue that is not there.
    #[error("a virtqueue is broken")]
    Queue(#[from] virtio_queue::Error),
    /// The rings are outside of guest memory.
    #[error("a virtqueue is not in guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// The driver has made a chain of which nothing can be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A piece of guest memory that a descriptor names: its address and its length in bytes, not zero.
pub(super) type Segment = (GuestAddress, u32);

/// A chain's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// How many segments it has.
    pub(super) segments: usize,
    /// How many bytes they have together.
    pub(super) bytes: usize,
}

/// The next chain that the driver has made available.
pub(super) fn next<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, QueueError> {
    Ok(queue.iter(memory)?.next())
}

/// Hands each segment of `chain` to `segment`: all descriptors must be for the device to write to, or none.
///
/// A chain may have as many descriptors as the queue (virtio 1.2, 2.7.5.3.1 and 2.7.13). A loop has more.
pub(super) fn walk(
    queue: &Queue,
    memory: &GuestMemory,
    mut chain: DescriptorChain<&GuestMemory>,
    writable: bool,
    mut segment: impl FnMut(Segment),
) -> Result<Extent, Malformed> {
    let mut descriptors = 0;
    let mut extent = Extent {
        segments: 0,
        bytes: 0,
    };
    // The iterator ends silently at a descriptor that cannot be read: more was to come then.
    let mut complete = false;
    for descriptor in &mut chain {
        descriptors += 1;
        complete = !descriptor.has_next();
        let len = descriptor.len() as usize;
        if descriptors > queue.size()
            || descriptor.is_write_only() != writable
            || !memory.check_range(descriptor.addr(), len)
        {
            return Err(Malformed);
        }
        if len > 0 {
            extent.segments += 1;
            extent.bytes = extent.bytes.checked_add(len).ok_or(Malformed)?;
            segment((descriptor.addr(), descriptor.len()));
        }
    }
    if complete { Ok(extent) } else { Err(Malformed) }
}

/// Adds the host's view of a segment to `slices`. It may lie across memory regions.
pub(super) fn view<'m>(
    memory: &'m GuestMemory,
    (address, len): Segment,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<(), Malformed> {
    for slice in memory.get_slices(address, len as usize) {
        slices.push(slice.map_err(|_| Malformed)?);
    }
    Ok(())
}

/// Puts the host's view of a whole chain into `slices`, and returns its length in bytes.
pub(super) fn views<'m>(
    queue: &Queue,
    memory: &'m GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    writable: bool,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, Malformed> {
    slices.clear();
    let mut seen = Ok(());
    let extent = walk(queue, memory, chain, writable, |segment| {
        if seen.is_ok() {
            seen = view(memory, segment, slices);
        }
    })?;
    seen.map(|()| extent.bytes)
}

/// Used buffers of one queue during one call.
///
/// [`Queue::add_used`] shows each buffer to the driver at once, but the buffers of one received frame have to
/// appear together: a driver that finds the first expects the others to be there (virtio 1.2, 5.1.6.4).
#[derive(Debug)]
pub(super) struct Used {
    /// The ring's index when the driver was last asked whether it wants an interrupt.
    asked: Mark,
    /// Elements that are written and not shown yet.
    hidden: u16,
}

impl Used {
    /// Nothing is used yet.
    pub(super) fn new(queue: &Queue) -> Self {
        Self {
            asked: Mark::of(queue),
            hidden: 0,
        }
    }

    /// Writes an element that the driver does not see yet. `head` is that of a chain of this queue.
    ///
    /// # Errors
    /// The driver has made up a head beyond the queue's end: there is no way to give that back.
    pub(super) fn put(
        &mut self,
        queue: &Queue,
        memory: &GuestMemory,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        if head >= queue.size() {
            return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
        }
        let slot = queue.next_used().wrapping_add(self.hidden) % queue.size();
        // Two little-endian u32: the chain's head and how many bytes of it were written (virtio 1.2, 2.7.8).
        let element = u64::from(head) | u64::from(len) << 32;
        let address = ring_address(queue.used_ring(), 4 + 8 * u64::from(slot))?;
        memory.write_obj(element.to_le(), address)?;
        self.hidden = self.hidden.wrapping_add(1);
        Ok(())
    }

    /// Shows all elements that were put.
    pub(super) fn publish(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<(), QueueError> {
        if self.hidden == 0 {
            return Ok(());
        }
        let index = queue.next_used().wrapping_add(self.hidden);
        self.hidden = 0;
        queue.set_next_used(index);
        let address = ring_address(queue.used_ring(), 2)?;
        memory.store(index.to_le(), address, Ordering::Release)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    pub(super) fn wants_interrupt(
        &mut self,
        queue: &Queue,
        memory: &GuestMemory,
    ) -> Result<bool, QueueError> {
        let before = std::mem::replace(&mut self.asked, Mark::of(queue));
        Ok(wants_interrupt(queue, memory, before)?)
    }
}

fn ring_address(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    ring.checked_add(offset)
        .map(GuestAddress)
        .ok_or(virtio_queue::Error::AddressOverflow.into())
}
