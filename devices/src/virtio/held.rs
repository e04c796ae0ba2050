//! A lock for which vCPUs wait, and the event loop does not.
//!
//! A vCPU that resets a device waits in it for what is in flight: as long as the storage takes, which may be for ever. The event loop
//! goes on meanwhile with the other devices, the API and signals, and is called when the vCPU has left the device.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often somebody looks who waits for a while.
const LOOK: Duration = Duration::from_millis(1);

/// What any number of vCPUs and the event loop may look at, one at a time.
#[derive(Debug)]
pub(super) struct Held<T> {
    value: Mutex<T>,
    /// Somebody has not waited for the value.
    missed: AtomicBool,
}

impl<T> Held<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            missed: AtomicBool::new(false),
        }
    }

    /// Waits for the value.
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        // Devices do not panic on what a guest does; if one did, its state is still plain values.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value, or none if another one has it: that one finds in [`Self::was_missed`] that it was, when it has given the value back.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.try_once().or_else(|| {
            self.missed.store(true, Ordering::SeqCst);
            // Either the other one sees that, or we see that it has given the value back.
            fence(Ordering::SeqCst);
            self.try_once()
        })
    }

    /// Waits for the value, but not for longer than `patience`. One that it was not given to after that has missed it, as above.
    pub(super) fn lock_within(&self, patience: Duration) -> Option<MutexGuard<'_, T>> {
        let begun = Instant::now();
        loop {
            if let Some(guard) = self.try_once() {
                return Some(guard);
            }
            if begun.elapsed() >= patience {
                return self.try_lock();
            }
            sleep(LOOK);
        }
    }

    fn try_once(&self) -> Option<MutexGuard<'_, T>> {
        match self.value.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether somebody has not waited. To be asked by whoever has had the value and has given it back.
    pub(super) fn was_missed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.missed.load(Ordering::Relaxed) && self.missed.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;
    use std::time::Duration;

    use crate::virtio::testing::Harness;
    use crate::virtio::{ActivateError, Active, Transport, Turn, VirtioDevice};

    /// A device that waits in its reset for its storage.
    #[derive(Debug)]
    struct Hung {
        in_reset: SyncSender<()>,
        storage: Receiver<()>,
        turns: u32,
    }

    impl VirtioDevice for Hung {
        fn device_id(&self) -> u32 {
            2
        }

        fn queue_sizes(&self) -> &[u16] {
            &[16]
        }

        fn features(&self) -> u64 {
            0
        }

        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

        fn activate(&mut self, _active: &mut Active<'_>) -> Result<(), ActivateError> {
            Ok(())
        }

        fn reset(&mut self) {
            self.in_reset.send(()).unwrap();
            self.storage.recv().unwrap();
        }

        fn queue_ready(&mut self, _queue: u16, _active: &mut Active<'_>) -> Turn {
            self.turns += 1;
            Turn::Done
        }

        fn backend_ready(&mut self, _active: &mut Active<'_>) -> Turn {
            self.turns += 1;
            Turn::Done
        }
    }

    #[test]
    fn the_event_loop_does_not_wait_for_a_vcpu_that_waits_for_storage() {
        let (in_reset, reset_begun) = sync_channel(1);
        let (storage_answers, storage) = sync_channel(1);
        // A driver begins with a reset.
        storage_answers.send(()).unwrap();
        let harness = Harness::active(
            Hung {
                in_reset,
                storage,
                turns: 0,
            },
            0,
        );
        reset_begun.recv().unwrap();
        let device = &harness.transport;
        assert_eq!(device.doorbell(0), Turn::Done);
        let kicks = harness.wires.kicks();
        let turns = || device.with_device(|device, _| device.turns);
        let before = turns();
        let (looked, kicks_meanwhile) = thread::scope(|scope| {
            scope.spawn(|| harness.write(0x070, 0));
            reset_begun.recv().unwrap();
            // Each of these would wait for ever.
            assert_eq!(device.doorbell(0), Turn::Done);
            assert_eq!(device.backend_ready(), Turn::Done);
            assert_eq!(device.queue_count(), 1);
            let looked = device.with_device_within(Duration::ZERO, |_, _| ());
            // Other vCPUs do these, and have not left the device, for they were not in it: there is nothing to call the loop for.
            harness.read(0x060);
            harness.read(0x0fc);
            harness.write(0x064, 1);
            harness.write(0x050, 0);
            let kicks_meanwhile = harness.wires.kicks();
            storage_answers.send(()).unwrap();
            (looked, kicks_meanwhile)
        });
        assert_eq!(looked, None);
        assert_eq!(kicks_meanwhile, kicks);
        // It is called for what it has not looked at, once.
        assert_eq!(harness.wires.kicks(), kicks + 1);
        harness.write(0x070, 1);
        assert_eq!(harness.wires.kicks(), kicks + 1);
        assert_eq!(turns(), before);
        assert!(
            device
                .with_device_within(Duration::ZERO, |_, _| ())
                .is_some()
        );
    }
}
