//! The counter as a word of this process's memory.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::abi::io;
use crate::{DEVICE, OpenError};

/// What is mapped, the counter and a word behind it; more than the driver's one page would be refused.
const LEN: usize = 2 * size_of::<u32>();
/// What a file has to have. The rest of its only page reads as zero.
const LEAST: u64 = size_of::<u32>() as u64;

/// The generation counter, mapped into this process: for checks that may cost a memory load but no
/// system call.
///
/// It is no watcher: nobody waits for it, nothing is acknowledged. Whoever keeps something that
/// must be unique (a random generator's state, a pool of identifiers, a session key) notes the
/// counter beside it, and makes it anew when [`changed`](Self::changed) says so.
///
/// # Which race this closes
/// A load tells of every generation that the page had been told of by then. On vmgenie with
/// `\_SB.SGEN` the monitor itself moves the page while no vCPU runs, so the first load after a
/// restore tells. On any other hypervisor the driver moves the page when the interrupt has
/// arrived, so for a short time after a restore the *old* value is still read.
///
/// No hypervisor helps against a restore *after* the load: between the check and the use, or while
/// the value that was made is on its way to somebody else. [`steady`](Self::steady) narrows that down to
/// what happens after it returned; the rest needs the whole cycle (quiesce, snapshot, restore,
/// adapt, un-quiesce).
///
/// After a restore on vmgenie the counter moves twice, the second time when the kernel's
/// random number generator has been reseeded. Whoever made something from kernel randomness at the first move
/// sees a second change and makes it again: that is how it is meant.
pub struct Counter {
    page: NonNull<[AtomicU32; 2]>,
}

// SAFETY: the mapping belongs to the process, not to a thread, until it is dropped.
unsafe impl Send for Counter {}
// SAFETY: through a shared reference the mapping is only loaded from, atomically.
unsafe impl Sync for Counter {}

impl Counter {
    /// Maps the counter of [`DEVICE`]. The open file is closed again; no descriptor stays.
    ///
    /// # Errors
    /// When the device cannot be opened for reading or not be mapped.
    pub fn open() -> Result<Self, OpenError> {
        Self::open_at(DEVICE)
    }

    /// Maps the counter of the device at `path`, or the first four bytes of a file, which must
    /// not become shorter while it is mapped.
    ///
    /// # Errors
    /// When it cannot be opened for reading or not be mapped.
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .read(true)
            .open(path)
            .map_err(|source| OpenError::Open {
                path: path.into(),
                source,
            })?;
        Self::map(&file, path)
    }

    /// Maps the counter of `file`, which is at `path`.
    pub(crate) fn map(file: &File, path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Map {
            path: path.into(),
            source,
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() && metadata.len() < LEAST {
            return Err(OpenError::TooShort {
                path: path.into(),
                len: metadata.len(),
            });
        }
        // SAFETY: a new mapping at an address that the kernel chooses overlaps no memory in use.
        let page = unsafe {
            mmap(
                ptr::null_mut(),
                LEN,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(|errno| failed(io(errno)))?;
        let page =
            NonNull::new(page.cast()).ok_or_else(|| failed(std::io::ErrorKind::Other.into()))?;
        Ok(Self { page })
    }

    /// The counter: one atomic load of 32 bits.
    ///
    /// Later loads of this thread are not moved before it.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u32 {
        // SAFETY: the page was mapped readable and is aligned; it stays mapped while `self` lives,
        // and only atomic operations of this width are used on it on this side.
        let words = unsafe { self.page.as_ref() };
        words[0].load(Ordering::Acquire)
    }

    /// Whether the host has asked for a snapshot of this running machine: one atomic load.
    ///
    /// A library looks at it where it looks at the counter, and does not *begin* then what must be
    /// unique, or waits with it until the answer is `false` again. It is a hint: `false` from drivers and
    /// monitors that do not know of it. Which race this closes: none. A snapshot may come without
    /// a request, and a request after the load; only a thread that is [parked](crate::Watcher::park) is
    /// waited for.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> bool {
        // SAFETY: as in `get`.
        let words = unsafe { self.page.as_ref() };
        words[1].load(Ordering::Acquire) != 0
    }

    /// Whether the counter is another than `seen`. Compares for inequality, as the counter wraps.
    ///
    /// Which race this closes: that of [`get`](Self::get). "Not changed" is the truth of the
    /// instant of the load, and nothing is said about the next one.
    #[inline]
    #[must_use]
    pub fn changed(&self, seen: u32) -> bool {
        self.get() != seen
    }

    /// Runs `make` until the counter is the same before and after it, and returns that counter and
    /// what was made last.
    ///
    /// Which race this closes: a generation that begins while `make` runs (as far as the page
    /// tells, see [`Counter`]). Which it does not: a generation that begins after the second load, even
    /// if that is before the caller has done anything with the value.
    pub fn steady<T>(&self, mut make: impl FnMut(u32) -> T) -> (u32, T) {
        let mut before = self.get();
        loop {
            let made = make(before);
            // An atomic load may be carried out before what precedes it in the program.
            std::sync::atomic::fence(Ordering::SeqCst);
            compiler_fence(Ordering::SeqCst);
            let after = self.get();
            if after == before {
                return (after, made);
            }
            before = after;
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` got, and no reference into it outlives `self`.
        // The call fails for no such range.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), LEN) };
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counter").field(&self.get()).finish()
    }
}
