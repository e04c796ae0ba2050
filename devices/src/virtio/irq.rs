//! The interrupt of one device: what the driver reads of its cause, and the wire.

use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Interrupt;
use crate::throttle::Throttle;

/// A device has used buffers (section 4.2.2).
pub(super) const USED: u32 = 1;
/// The configuration space, or the device's status, has changed.
pub(super) const CONFIG: u32 = 2;

/// What connects a device to the machine.
pub trait Wires: Send + Sync + Debug {
    /// Raises the device's interrupt once: an irqfd. Never blocks.
    ///
    /// # Errors
    /// When the interrupt controller was not told.
    fn interrupt(&self) -> io::Result<()>;

    /// Asks the event loop to ring all the device's doorbells and to call its backend, as soon as vCPUs run. Called from any
    /// thread, with or without the transport's lock; never blocks.
    fn kick(&self);
}

/// `InterruptStatus`, `ConfigGeneration` and the wires. Outside of the transport's lock, so that a guest's interrupt handler does not
/// wait for the device.
#[derive(Debug)]
pub(super) struct IrqState {
    status: AtomicU32,
    config_generation: AtomicU32,
    needs_reset: AtomicBool,
    wires: Box<dyn Wires>,
    /// Of interrupts that were not raised. Taken on that way alone, and with no other lock inside.
    complaints: Mutex<Throttle>,
}

impl IrqState {
    pub(super) fn new(wires: Box<dyn Wires>) -> Self {
        Self {
            status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            wires,
            complaints: Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// What the driver has acknowledged is no longer pending.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// The device is broken until the driver resets it.
    pub(super) fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// As after a reset. The configuration's generation goes on: a reader in between must not be misled.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    pub(super) fn restore(&self, status: u32, config_generation: u32, broken: bool) {
        self.status.store(status, Ordering::SeqCst);
        self.config_generation
            .store(config_generation, Ordering::SeqCst);
        self.needs_reset.store(broken, Ordering::SeqCst);
    }

    /// The wire once more, for what is pending. An interrupt too many does a driver no harm: it finds its cause acknowledged.
    pub(super) fn raise_pending(&self) {
        if self.status() != 0 {
            self.signal();
        }
    }

    pub(super) fn kick(&self) {
        self.wires.kick();
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.signal();
    }

    fn signal(&self) {
        let Err(error) = self.wires.interrupt() else {
            return;
        };
        // As often as the driver has buffers used.
        let complaints = self.complaints.lock();
        let mut complaints = complaints.unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = complaints.allows(Instant::now()) {
            tracing::warn!(%error, more, "a device's interrupt");
        }
    }
}

impl Interrupt for IrqState {
    fn used(&self) {
        self.raise(USED);
    }

    fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG);
    }

    fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.raise(CONFIG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Debug)]
    struct Cut;

    impl Wires for Cut {
        fn interrupt(&self) -> io::Result<()> {
            Err(io::Error::other("the test wants it so"))
        }

        fn kick(&self) {}
    }

    #[test]
    fn a_wire_that_is_cut_does_not_fill_the_log() {
        let irq = IrqState::new(Box::new(Cut));
        let begun = Instant::now();
        (0..100).for_each(|_| irq.used());
        assert_eq!(irq.status(), USED, "the driver may still look");
        let mut complaints = irq.complaints.lock().unwrap();
        let silent = complaints.allows(begun + Duration::from_secs(3600));
        let told = 100 - silent.unwrap();
        assert!(
            (1..=1 + begun.elapsed().as_secs()).contains(&told),
            "{told}"
        );
    }
}
