//! How all devices take chains of descriptors out of a queue and give them back.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

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

/// Tells the driver of the buffers that were used since the last call, if it wants to know. Once for a batch, after the last
/// `add_used`.
///
/// # Errors
/// [`QueueBroken`].
pub fn notify_used(active: &mut Active<'_>, queue: u16) -> Result<(), QueueBroken> {
    let Some(queue) = active.queues.get_mut(usize::from(queue)) else {
        return Ok(());
    };
    let wanted = queue
        .needs_notification(active.memory)
        .map_err(|error| broken(active.interrupt, &error))?;
    if wanted {
        active.interrupt.used();
    }
    Ok(())
}

fn broken(interrupt: &dyn Interrupt, error: &virtio_queue::Error) -> QueueBroken {
    tracing::debug!(%error, "a driver has broken a queue");
    interrupt.needs_reset();
    QueueBroken
}
