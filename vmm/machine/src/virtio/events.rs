//! How doorbells and backends reach the event loop: an epoll of their own, which the loop watches as one descriptor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How many events are taken at a time.
const BATCH: usize = 64;
/// How often, at most, so that devices which ring all the time leave the event loop to others.
const BATCHES: usize = 4;
/// In an event's number, instead of that of a queue: the backend.
const BACKEND: u16 = u16::MAX;
/// The number of the event that says that devices were kicked.
const KICK: u64 = u64::MAX;

/// What has happened to one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// The doorbell of a queue.
    Doorbell {
        /// The number of the device's slot.
        slot: usize,
        /// The number of the queue.
        queue: u16,
    },
    /// The backend is ready.
    Backend {
        /// The number of the device's slot.
        slot: usize,
    },
    /// All of both.
    Everything {
        /// The number of the device's slot.
        slot: usize,
    },
}

/// The devices' events. One for each process: it does not depend on a machine, so it is made ahead of time.
///
/// Everything is watched edge-triggered, and the eventfds are never read: each ring is an edge of its own.
pub struct VirtioEvents {
    epoll: Epoll,
    wake: EventFd,
    /// A bit for each slot that was kicked.
    kicked: AtomicU64,
}

impl std::fmt::Debug for VirtioEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioEvents")
            .field("epoll", &self.epoll.as_raw_fd())
            .field("kicked", &self.kicked)
            .finish_non_exhaustive()
    }
}

impl VirtioEvents {
    /// Nothing is watched yet.
    pub fn new() -> io::Result<Self> {
        let events = Self {
            epoll: Epoll::new()?,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            kicked: AtomicU64::new(0),
        };
        events.watch(events.wake.as_raw_fd(), EventSet::IN, KICK)?;
        Ok(events)
    }

    /// Watches a doorbell for as long as it is open.
    pub(super) fn watch_doorbell(
        &self,
        doorbell: &EventFd,
        slot: usize,
        queue: u16,
    ) -> io::Result<()> {
        self.watch(doorbell.as_raw_fd(), EventSet::IN, number(slot, queue))
    }

    /// Watches a backend for as long as it is open.
    pub(super) fn watch_backend(&self, fd: RawFd, slot: usize) -> io::Result<()> {
        let both = EventSet::IN | EventSet::OUT;
        self.watch(fd, both, number(slot, BACKEND))
    }

    fn watch(&self, fd: RawFd, events: EventSet, number: u64) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, number);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// Everything about the device in `slot` has to be looked at. Any thread; never blocks.
    pub(super) fn kick(&self, slot: usize) {
        self.kicked.fetch_or(1 << (slot % 64), Ordering::SeqCst);
        self.wake();
    }

    /// Makes the event loop call once more.
    pub(super) fn wake(&self) {
        // Cannot fail but for a full counter, which is an edge as well.
        let _ = self.wake.write(1);
    }

    /// Forgets what has happened: there is no machine.
    pub fn discard(&self) {
        if let Err(error) = self.take(|_| {}) {
            tracing::error!(%error, "the events of virtio devices");
        }
    }

    /// Takes what has happened, and passes it on. What is left then keeps the descriptor readable.
    pub(super) fn take(&self, mut each: impl FnMut(Happening)) -> io::Result<()> {
        for _ in 0..BATCHES {
            let mut batch = [EpollEvent::default(); BATCH];
            let len = match self.epoll.wait(0, &mut batch) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                len => len?,
            };
            for event in &batch[..len] {
                match event.data() {
                    KICK => {
                        let kicked = self.kicked.swap(0, Ordering::SeqCst);
                        (0..64)
                            .filter(|slot| kicked & 1 << slot != 0)
                            .for_each(|slot| each(Happening::Everything { slot }));
                    }
                    number => each(happening(number)),
                }
            }
            if len < BATCH {
                break;
            }
        }
        Ok(())
    }
}

impl AsRawFd for VirtioEvents {
    /// Readable when something has happened.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn number(slot: usize, queue: u16) -> u64 {
    (slot as u64) << 16 | u64::from(queue)
}

fn happening(number: u64) -> Happening {
    let slot = (number >> 16) as usize;
    match number as u16 {
        BACKEND => Happening::Backend { slot },
        queue => Happening::Doorbell { slot, queue },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(events: &VirtioEvents) -> Vec<Happening> {
        let mut all = Vec::new();
        events.take(|happening| all.push(happening)).unwrap();
        all
    }

    #[test]
    fn each_ring_is_heard_once_without_the_eventfd_being_read() {
        let events = VirtioEvents::new().unwrap();
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        events.watch_doorbell(&doorbell, 3, 1).unwrap();
        assert_eq!(taken(&events), []);
        for _ in 0..3 {
            doorbell.write(1).unwrap();
            assert_eq!(taken(&events), [Happening::Doorbell { slot: 3, queue: 1 }]);
            assert_eq!(taken(&events), []);
        }
        drop(doorbell);
        assert_eq!(taken(&events), []);
    }

    #[test]
    fn devices_that_ring_all_the_time_do_not_keep_the_event_loop() {
        let events = VirtioEvents::new().unwrap();
        let doorbells: Vec<_> = (0..2 * BATCH)
            .map(|slot| {
                let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
                events.watch_doorbell(&doorbell, slot, 0).unwrap();
                doorbell.write(1).unwrap();
                doorbell
            })
            .collect();
        let mut taken = 0;
        events
            .take(|happening| {
                taken += 1;
                assert!(taken < 10_000, "it does not end");
                if let Happening::Doorbell { slot, .. } = happening {
                    doorbells[slot].write(1).unwrap();
                }
            })
            .unwrap();
        assert!(taken >= 2 * BATCH);
    }

    #[test]
    fn a_kick_is_for_everything_of_one_device() {
        let events = VirtioEvents::new().unwrap();
        events.kick(0);
        events.kick(16);
        events.kick(0);
        let expected = [0, 16].map(|slot| Happening::Everything { slot });
        assert_eq!(taken(&events), expected);
        events.wake();
        assert_eq!(taken(&events), []);
    }

    #[test]
    fn a_backend_is_watched_for_as_long_as_it_is_open() {
        use std::io::Write;
        let events = VirtioEvents::new().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        events.watch_backend(reader.as_raw_fd(), 2).unwrap();
        writer.write_all(b"x").unwrap();
        assert_eq!(taken(&events), [Happening::Backend { slot: 2 }]);
        assert_eq!(taken(&events), []);
        writer.write_all(b"x").unwrap();
        assert_eq!(taken(&events), [Happening::Backend { slot: 2 }]);
        drop(reader);
        assert_eq!(taken(&events), []);
    }
}
