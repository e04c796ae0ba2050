//! Who may be in a device, and for how long others wait for it. Whoever leaves one calls the event loop if somebody has not waited.

use std::time::Duration;

use super::{Inner, VirtioMmio};
use crate::virtio::{Active, Turn, VirtioDevice};

impl<D: VirtioDevice> VirtioMmio<D> {
    /// Does something to the device by the VMM's own hand; with what an active device works with, if the driver uses it. Waits for a vCPU that
    /// is in the device, as long as that takes.
    pub fn with_device<T>(&self, action: impl FnOnce(&mut D, Option<&mut Active<'_>>) -> T) -> T {
        self.locked(|inner| self.act(inner, action))
    }

    /// The same, unless a vCPU stays in the device for longer than `patience`: none then, and nothing was done.
    pub fn with_device_within<T>(
        &self,
        patience: Duration,
        action: impl FnOnce(&mut D, Option<&mut Active<'_>>) -> T,
    ) -> Option<T> {
        let mut inner = self.inner.lock_within(patience)?;
        let done = self.act(&mut inner, action);
        drop(inner);
        self.left();
        Some(done)
    }

    fn act<T>(
        &self,
        inner: &mut Inner<D>,
        action: impl FnOnce(&mut D, Option<&mut Active<'_>>) -> T,
    ) -> T {
        if self.is_active(inner) {
            inner.call(&self.memory, &self.irq, |device, active| {
                action(device, Some(active))
            })
        } else {
            action(&mut inner.device, None)
        }
    }

    /// Waits for the device.
    pub(super) fn locked<T>(&self, action: impl FnOnce(&mut Inner<D>) -> T) -> T {
        let mut inner = self.inner.lock();
        let done = action(&mut inner);
        drop(inner);
        self.left();
        done
    }

    fn is_active(&self, inner: &Inner<D>) -> bool {
        inner.registers.is_live() && !self.irq.is_broken()
    }

    /// Calls the device if the driver uses it, and nobody else is in it.
    pub(super) fn if_free(&self, action: impl FnOnce(&mut D, &mut Active<'_>) -> Turn) -> Turn {
        let Some(mut inner) = self.inner.try_lock() else {
            return Turn::Done;
        };
        let turn = if self.is_active(&inner) {
            inner.call(&self.memory, &self.irq, action)
        } else {
            Turn::Done
        };
        drop(inner);
        self.left();
        turn
    }

    /// Somebody has given the lock back: another one may have found it taken, and not waited.
    fn left(&self) {
        if self.inner.was_missed() {
            self.irq.kick();
        }
    }
}
