//! An open file of the device.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::abi::{Call, Request, io};
use crate::error::{
    AcknowledgeError, OpenError, ReadyError, TrackingError, TriggerError, WaitError, WatchersError,
};
use crate::{Abi, Counter, DEVICE};

/// How a [`Watcher`] is opened.
#[derive(Clone, Debug)]
pub struct Options {
    path: PathBuf,
    abi: Option<Abi>,
    tracked: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: DEVICE.into(),
            abi: None,
            tracked: true,
        }
    }
}

impl Options {
    /// [`DEVICE`], its numbering to be found out, tracked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The device's path.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.path = path.as_ref().into();
        self
    }

    /// The device's numbering, which is then not found out.
    #[must_use]
    pub fn abi(mut self, abi: Abi) -> Self {
        self.abi = Some(abi);
        self
    }

    /// Whether others wait for this watcher to acknowledge ([`Watcher::set_tracking`]).
    #[must_use]
    pub fn tracked(mut self, tracked: bool) -> Self {
        self.tracked = tracked;
        self
    }

    /// Opens the device for reading and writing.
    ///
    /// The generation that is current at this call counts as acknowledged: whoever has state that
    /// was made before it must look at [`Watcher::current`] after opening, or open first and
    /// make the state then.
    ///
    /// # Errors
    /// When the device cannot be opened or mapped, or is none.
    pub fn open(&self) -> Result<Watcher, OpenError> {
        let path = || self.path.clone();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&self.path)
            .map_err(|source| OpenError::Open {
                path: path(),
                source,
            })?;
        let abi = match self.abi {
            Some(abi) => abi,
            None => detect(&file, &self.path)?,
        };
        let counter = Counter::map(&file, &self.path)?;
        let watcher = Watcher { file, abi, counter };
        // What open() did already is not asked for again: it takes a privilege from no one, but the
        // original version 5 has no such call.
        if self.tracked != (abi == Abi::Seed) {
            watcher
                .set_tracking(self.tracked)
                .map_err(|source| OpenError::Tracking {
                    path: path(),
                    source,
                })?;
        }
        Ok(watcher)
    }
}

/// Asks with a write of one byte, which every version refuses, each in its own way. Only a device
/// is asked: a file would take the byte.
fn detect(file: &File, path: &Path) -> Result<Abi, OpenError> {
    use std::os::unix::fs::FileTypeExt;

    let unknown = |source| OpenError::Unknown {
        path: path.into(),
        source,
    };
    let kind = file.metadata().map_err(|error| unknown(Some(error)))?;
    if !kind.file_type().is_char_device() {
        return Err(unknown(None));
    }
    match rustix::io::write(file, &[0]) {
        Ok(_) => Err(unknown(None)),
        Err(errno) => Abi::from_short_write(errno).ok_or_else(|| unknown(Some(io(errno)))),
    }
}

/// An open file of the device: it is told of every new generation until it has acknowledged it.
///
/// The file is non-blocking, so it fits any event loop: register it ([`AsFd`]) for readability,
/// and call [`try_next`](Self::try_next) when it is readable. Threads that want to sleep call
/// [`wait`](Self::wait). The readiness is that of a level: it stays until [`acknowledge`](Self::acknowledge).
///
/// Two threads may share a watcher, but they share its one acknowledgement too; a watcher for each
/// thing that adapts by itself says more.
#[derive(Debug)]
pub struct Watcher {
    file: File,
    abi: Abi,
    counter: Counter,
}

impl Watcher {
    /// Opens [`DEVICE`] as [`Options::new`] describes it.
    ///
    /// # Errors
    /// When the device cannot be opened or mapped, or is none.
    pub fn open() -> Result<Self, OpenError> {
        Options::new().open()
    }

    /// The device's numbering.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// The counter as mapped memory. Looking at it is no acknowledgement.
    #[must_use]
    pub fn counter(&self) -> &Counter {
        &self.counter
    }

    /// The current generation, by one system call and a load.
    ///
    /// Which race this closes: our driver looks at the hypervisor's page in the call, so a
    /// generation that began before the call is told even if its interrupt has not arrived, on every
    /// hypervisor that has VMGENID. Which it does not: a generation that begins after the load.
    ///
    /// # Errors
    /// When the device cannot be polled.
    pub fn current(&self) -> Result<u32, WaitError> {
        self.readable(Some(Duration::ZERO))?;
        Ok(self.counter.get())
    }

    /// The new generation if this watcher is outdated, else `None`. Never blocks.
    ///
    /// Tells the same again until it has been acknowledged. Which race this closes: as
    /// [`current`](Self::current).
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn try_next(&self) -> Result<Option<u32>, WaitError> {
        let mut bytes = [0; size_of::<u32>()];
        loop {
            return match (&self.file).read(&mut bytes) {
                Ok(4) => Ok(Some(u32::from_ne_bytes(bytes))),
                Ok(len) => Err(WaitError::Short(len)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(WaitError::Read(error)),
            };
        }
    }

    /// Sleeps until this watcher is outdated, and returns the new generation; returns at once if
    /// it is already.
    ///
    /// Which race this closes: a generation that begins between an earlier look and this call is
    /// not missed, as the driver compares with what *this file* has acknowledged. Which it does
    /// not: other threads of the process go on in the new generation until this one has run.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when a signal handler ran; when the device cannot be polled or read.
    pub fn wait(&self) -> Result<u32, WaitError> {
        loop {
            self.readable(None)?;
            if let Some(generation) = self.try_next()? {
                return Ok(generation);
            }
        }
    }

    /// As [`wait`](Self::wait), for at most `limit`; `None` when that is over.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for(&self, limit: Duration) -> Result<Option<u32>, WaitError> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let readable = self.readable(Some(left))?;
            match self.try_next()? {
                Some(generation) => return Ok(Some(generation)),
                // Readable and then not: another thread has acknowledged.
                None if readable && !left.is_zero() => {}
                None => return Ok(None),
            }
        }
    }

    /// Says that this watcher has adapted to `generation`.
    ///
    /// Which race this closes: the driver takes only the current generation. If another one began
    /// while the caller adapted, even with its interrupt still on its way, this is
    /// [`AcknowledgeError::Stale`], and the caller adapts again. Which it does not: nothing
    /// holds off a generation that begins after this call; what was made before it may be in
    /// flight then. Only a snapshot that is taken of a quiesced machine rules that out.
    ///
    /// # Errors
    /// [`AcknowledgeError::Stale`]; when the device cannot be written.
    pub fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError> {
        match rustix::io::write(&self.file, &generation.to_ne_bytes()) {
            // Partial writes do not exist.
            Ok(_) => Ok(()),
            Err(Errno::INVAL) => Err(AcknowledgeError::Stale(generation)),
            Err(errno) => Err(AcknowledgeError::Write {
                generation,
                source: io(errno),
            }),
        }
    }

    /// Says, as the machine's agent, that all has been done that `generation` asks for.
    ///
    /// [`acknowledge`](Self::acknowledge) speaks for this program alone, and so does its end: others
    /// need not wait for a program that is gone. An agent renews what is the machine's (keys,
    /// names, addresses), and the host may wait for its word; it is the last one, after the
    /// acknowledgement. The call returns when the kernel has done what it does late in a generation, a
    /// fraction of a second. Which race this closes: as `acknowledge`.
    ///
    /// # Errors
    /// [`ReadyError::Stale`], [`ReadyError::NotPermitted`], [`ReadyError::Unsupported`], or what else
    /// the driver said.
    pub fn ready(&self, generation: u32) -> Result<(), ReadyError> {
        let sent = Request::new(self.abi, Call::Ready, generation as usize).send(&self.file);
        match sent {
            Ok(_) => Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => Err(ReadyError::NotPermitted),
            Err(Errno::NOTTY) => Err(ReadyError::Unsupported),
            // An older driver says the same of a call that it does not know.
            Err(Errno::INVAL) => match self.current() {
                Ok(current) if current == generation => Err(ReadyError::Unsupported),
                _ => Err(ReadyError::Stale(generation)),
            },
            Err(Errno::AGAIN | Errno::INTR) => Err(ReadyError::Unfinished(generation)),
            Err(errno) => Err(ReadyError::Os {
                generation,
                source: io(errno),
            }),
        }
    }

    /// Whether [`wait_for_watchers`](Self::wait_for_watchers) of others waits for this watcher.
    ///
    /// Whoever adapts lazily, at its next use, switches it off: waiting for it makes no sense. An
    /// untracked watcher is told of generations as before. Which race this does not close: a
    /// waiter that looks between [`Options::open`] and this call sees the watcher as `open` made it.
    ///
    /// # Errors
    /// When the driver has no such switch, or refuses.
    pub fn set_tracking(&self, tracked: bool) -> Result<(), TrackingError> {
        Request::new(self.abi, Call::SetTracking, usize::from(tracked))
            .send(&self.file)
            .map(drop)
            .map_err(|errno| match errno {
                Errno::INVAL | Errno::NOTTY => TrackingError::Unsupported,
                errno => TrackingError::Os(io(errno)),
            })
    }

    /// Sleeps until no tracked watcher is outdated, for at most `limit` (rounded up to
    /// milliseconds, at least one), or without limit.
    ///
    /// Acknowledge first: an outdated caller is told so at once instead of waiting for itself.
    /// Which race this closes: a generation that begins during the wait ends it with
    /// [`WatchersError::Outdated`], so that success means "everyone who is tracked has adapted to the
    /// generation that the caller has acknowledged". Which it does not: programs that are not tracked, or open the
    /// device later, and generations that begin after it returned.
    ///
    /// A wait with a limit goes on after a signal handler has run; one without is begun anew by the
    /// kernel, or ended, as the handler was installed.
    ///
    /// # Errors
    /// [`WatchersError::Outdated`], [`WatchersError::TimedOut`], [`WatchersError::Interrupted`],
    /// or what else the driver said.
    pub fn wait_for_watchers(&self, limit: Option<Duration>) -> Result<(), WatchersError> {
        let start = Instant::now();
        loop {
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let result =
                Request::new(self.abi, Call::WaitWatchers, milliseconds(left)).send(&self.file);
            match result {
                Ok(_) => return Ok(()),
                Err(Errno::TIME) => return Err(WatchersError::TimedOut(limit.unwrap_or_default())),
                // The driver says the same of a signal and of an outdated caller; and of a signal that
                // has only stopped and continued this process, whose call it cannot take up again with
                // what was left of its limit.
                Err(Errno::INTR) => match self.readable(Some(Duration::ZERO)) {
                    Ok(true) => return Err(WatchersError::Outdated),
                    Ok(false) if left.is_some_and(|left| !left.is_zero()) => {}
                    _ => return Err(WatchersError::Interrupted),
                },
                Err(errno) => return Err(WatchersError::Os(io(errno))),
            }
        }
    }

    /// Begins a new generation: the counter becomes `min`, or the present one plus one if that is
    /// more. This watcher is outdated then like all others.
    ///
    /// For machines without a hypervisor that tells (containers), and for tests. Which race this
    /// does not close: whatever is not quiesced goes on in the old generation until it has noticed.
    ///
    /// # Errors
    /// [`TriggerError::NotPermitted`], [`TriggerError::Exhausted`], or what else the driver said.
    pub fn trigger(&self, min: u32) -> Result<(), TriggerError> {
        Request::new(self.abi, Call::Trigger, min as usize)
            .send(&self.file)
            .map(drop)
            .map_err(|errno| match errno {
                Errno::ACCESS | Errno::PERM => TriggerError::NotPermitted,
                Errno::OVERFLOW => TriggerError::Exhausted,
                errno => TriggerError::Os(io(errno)),
            })
    }

    /// Whether the file is readable within `limit`.
    fn readable(&self, limit: Option<Duration>) -> Result<bool, WaitError> {
        self.polled(PollFlags::IN, limit)
    }

    /// Whether the file is ready in one of these ways within `limit`.
    pub(crate) fn polled(
        &self,
        ways: PollFlags,
        limit: Option<Duration>,
    ) -> Result<bool, WaitError> {
        let limit = limit.map(|limit| {
            Timespec::try_from(limit).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let mut files = [PollFd::new(&self.file, ways)];
        match poll(&mut files, limit.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Err(WaitError::Interrupted),
            Err(errno) => Err(WaitError::Poll(io(errno))),
        }
    }
}

/// The argument that means `limit`: 0 is no limit, and an older driver multiplies it by a million
/// without looking.
pub(crate) fn milliseconds(limit: Option<Duration>) -> usize {
    const MOST: u128 = i64::MAX as u128 / 1_000_000;

    limit.map_or(0, |limit| {
        let rounded_up = limit.as_nanos().div_ceil(1_000_000);
        usize::try_from(rounded_up.clamp(1, MOST)).unwrap_or(usize::MAX)
    })
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl From<Watcher> for OwnedFd {
    fn from(watcher: Watcher) -> Self {
        watcher.file.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_no_limit_is_zero_milliseconds() {
        assert_eq!(milliseconds(None), 0);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 1);
        assert_eq!(milliseconds(Some(Duration::from_micros(1001))), 2);
        assert_eq!(milliseconds(Some(Duration::from_secs(5))), 5000);
    }

    #[test]
    fn no_limit_overflows_an_older_drivers_nanoseconds() {
        let most = milliseconds(Some(Duration::MAX)) as i64;
        assert!(most.checked_mul(1_000_000).is_some());
    }
}
