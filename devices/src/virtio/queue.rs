//! How all devices take chains of descriptors out of a queue and give them back.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Active, GuestMemory, Interrupt};

/// The driver has broken a queue: its rings lie outside of memory, or its index runs away. The driver has been told
/// (`DEVICE_NEEDS_RESET`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the driver has broken the queue")]
pub struct QueueBroken;

/// Takes the next chain of descriptors; none if the driver has offered no more.
///
/// The chain itself is hostile still: its descriptors may lie anywhere, overlap, or end before they should. Its iterator ends in any
/// case, after at most 65,535 descriptors and 4 GiB.
///
/// # Errors
/// [`QueueBroken`].
pub fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
    interrupt: &dyn Interrupt,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, QueueBroken> {
    match queue.iter(memory) {
        Ok(mut chains) => Ok(chains.next()),
        Err(error) => Err(broken(interrupt, &error)),
    }
}

/// Gives a chain back to the driver, with the number of bytes that were written into it.
///
/// # Errors
/// [`QueueBroken`]: also when the head is none that the queue has.
pub fn give_back(
    queue: &mut Queue,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
    head: u16,
    len: u32,
) -> Result<(), QueueBroken> {
    queue
        .add_used(memory, head, len)
        .map_err(|error| broken(interrupt, &error))
}

/// Asks the driver to ring the doorbell for the next chain; true if one has come in the meantime, without a ring. To be called
/// whenever a queue has been found empty: with `EVENT_IDX`, the driver does not ring otherwise.
///
/// # Errors
/// [`QueueBroken`].
pub fn await_doorbell(
    queue: &mut Queue,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
) -> Result<bool, QueueBroken> {
    queue
        .enable_notification(memory)
        .map_err(|error| broken(interrupt, &error))
}

/// Where the used ring of a queue stood before a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Mark(Wrapping<u16>);

impl Mark {
    /// Now.
    pub fn of(queue: &Queue) -> Self {
        Self(Wrapping(queue.next_used()))
    }
}

/// Marks where the used ring of queue number `queue` stands, for [`notify_used`].
pub fn mark_used(active: &Active<'_>, queue: u16) -> Mark {
    let queue = active.queues.get(usize::from(queue));
    queue.map_or(Mark(Wrapping(0)), Mark::of)
}

/// Tells the driver of the buffers that were used since `mark`, if there are any and it wants to know. Once for a batch, after the last
/// buffer.
///
/// # Errors
/// [`QueueBroken`].
pub fn notify_used(active: &mut Active<'_>, queue: u16, mark: Mark) -> Result<(), QueueBroken> {
    let queue = active.queues.get(usize::from(queue));
    let Some(queue) = queue.filter(|queue| queue.ready()) else {
        return Ok(());
    };
    let wanted = wants_interrupt(queue, active.memory, mark)
        .map_err(|error| broken(active.interrupt, &error))?;
    if wanted {
        active.interrupt.used();
    }
    Ok(())
}

/// Whether the driver wants an interrupt for what was used since `mark` (virtio 1.2, section 2.7.7).
///
/// Not [`QueueT::needs_notification`]: without `EVENT_IDX` that one wants an interrupt whether anything was used or not, and does not look at the
/// driver's flag.
pub(super) fn wants_interrupt(
    queue: &Queue,
    memory: &GuestMemory,
    Mark(before): Mark,
) -> Result<bool, virtio_queue::Error> {
    let now = Wrapping(queue.next_used());
    if now == before {
        return Ok(false);
    }
    // The driver sets its wish and then looks at the index; the index must be there before its wish is read.
    fence(Ordering::SeqCst);
    let load = |offset: u64| -> Result<u16, virtio_queue::Error> {
        let gpa = queue.avail_ring().checked_add(offset);
        let gpa = gpa.ok_or(virtio_queue::Error::AddressOverflow)?;
        let value = memory.load(GuestAddress(gpa), Ordering::Relaxed);
        value
            .map(u16::from_le)
            .map_err(virtio_queue::Error::GuestMemory)
    };
    if queue.event_idx_enabled() {
        let event = Wrapping(load(4 + 2 * u64::from(queue.size()))?);
        return Ok(now - event - Wrapping(1) < now - before);
    }
    Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

fn broken(interrupt: &dyn Interrupt, error: &virtio_queue::Error) -> QueueBroken {
    tracing::debug!(%error, "a driver has broken a queue");
    interrupt.needs_reset();
    QueueBroken
}
