//! Virtio devices over MMIO (virtio 1.2; version 1 only, no legacy interface).
//!
//! A device is a [`VirtioDevice`]: what its queues carry and what its configuration space says. The [`VirtioMmio`] transport has
//! the registers, the feature negotiation, the queues and the interrupt, the same for all of them.
//!
//! **Threads.** The transport has one lock, which it holds while it calls the device. Queues and the backend are worked on in
//! the event loop's thread; the configuration space, activation and reset come from vCPU threads. A device never has two calls at a
//! time, and none while a snapshot is taken.
//!
//! **Guest memory** is read and written only during a call, or by the kernel for requests in flight, which [`VirtioDevice::drain`]
//! ends.

mod acpi;
pub mod block;
pub mod entropy;
mod held;
mod irq;
mod mmio;
pub mod net;
mod queue;
mod registers;
mod state;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use virtio_queue::Queue;

pub use acpi::MmioSlot;
pub use irq::Wires;
pub use mmio::{Transport, VirtioMmio};
pub use queue::{QueueBroken, await_doorbell, give_back, mark_used, next_chain, notify_used};
pub use state::{QueueRegisters, TransportRestoreError, TransportState};

/// Guest memory as the devices see it. A clone is cheap and refers to the same memory.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// The feature bit that each of these devices has: virtio 1.0 or later (section 6).
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Notifications are suppressed by indices (section 2.7.10). The transport sets the queues accordingly.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// Descriptors may refer to a table of descriptors (section 2.7.5.3).
pub const F_INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// How a device tells its driver something.
pub trait Interrupt: Send + Sync + Debug {
    /// Buffers have been used (section 4.2.2, bit 0 of `InterruptStatus`). To be called when the queue's rules of suppression want
    /// it: see [`notify_used`].
    fn used(&self);
    /// The configuration space has changed (bit 1); the next reader of `ConfigGeneration` sees another value.
    fn config_changed(&self);
    /// The driver has broken the rules so badly that the device cannot go on (section 2.1.2): the status gets
    /// `DEVICE_NEEDS_RESET`, and the device is left alone until the driver resets it.
    fn needs_reset(&self);
}

/// What an active device works with, for the time of one call.
#[derive(Debug)]
pub struct Active<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// The queues, in the order of [`VirtioDevice::queue_sizes`]. One that the driver has not set up is not `ready()`.
    pub queues: &'a mut [Queue],
    /// The features that driver and device have agreed on.
    pub features: u64,
    /// To the driver.
    pub interrupt: &'a dyn Interrupt,
}

/// What a call has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing: the next event will tell.
    Done,
    /// Work that was left for the next turn of the event loop, so that others have theirs. The same call comes again soon.
    More,
}

/// The device's backend or memory cannot be used: the driver sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
#[error("could not activate the device: {0}")]
pub struct ActivateError(pub String);

/// One virtio device.
///
/// Whatever a guest does, no method panics, none takes memory without a bound, and none goes on without end: a call that has done a
/// fair share of work returns [`Turn::More`] and is called again.
pub trait VirtioDevice: Send + Debug {
    /// The device's kind (section 5).
    fn device_id(&self) -> u32;

    /// The largest size of each queue, a power of two, at most 32,768. Always the same.
    fn queue_sizes(&self) -> &[u16];

    /// The features on offer. [`F_VERSION_1`] is added by the transport. The same for as long as a driver may be there.
    fn features(&self) -> u64;

    /// May the driver have these features, which are among those on offer? For features that depend on others.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// Reads the configuration space. Any offset and length; what is not there reads as zeros (the transport has cleared `data`).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Any offset and length.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready (`DRIVER_OK`). The queues that it has set up lie in guest memory. Comes from a vCPU thread.
    ///
    /// # Errors
    /// The driver sees `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, active: &mut Active<'_>) -> Result<(), ActivateError>;

    /// The driver has reset the device: forget everything. Requests that the kernel still works on have ended when this
    /// returns, because the driver may use their memory for something else then. Comes from a vCPU thread.
    fn reset(&mut self);

    /// The driver has rung the doorbell of a queue. May come without cause, and after each pause: look at the queue. Never comes
    /// for a queue that is not `ready()`.
    fn queue_ready(&mut self, queue: u16, active: &mut Active<'_>) -> Turn;

    /// The one file descriptor that the event loop watches, edge-triggered, for input and output. A device that needs several has an epoll of
    /// its own. Always the same one, except after a change by the VMM's own hand (another drive).
    fn backend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The backend is ready. May come without cause; comes after each activation, because edges before that were lost.
    fn backend_ready(&mut self, active: &mut Active<'_>) -> Turn {
        let _ = active;
        Turn::Done
    }

    /// Before a save: ends what is in flight, or pushes it back into its queue. Afterwards nobody writes guest memory until the
    /// next call. Comes for a device that needs a reset as well: that one takes nothing new. *vCPUs:* standing still.
    fn drain(&mut self, active: &mut Active<'_>) {
        let _ = active;
    }

    /// The device came out of a snapshot, and was active. *vCPUs:* standing still; all states are in place, and interrupts
    /// reach the guest. Doorbells are rung for all queues afterwards, when the vCPUs run.
    fn restored(&mut self, active: &mut Active<'_>) {
        let _ = active;
    }
}
