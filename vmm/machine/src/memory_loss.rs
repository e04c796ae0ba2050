//! What has become of the file that a restored guest's memory is mapped from.

use std::fmt::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use super::text::Text;

/// A stretch of guest memory that is mapped from a file: where it begins and ends.
struct Mapped(AtomicUsize, AtomicUsize);

/// As many as guest memory has ranges.
static MAPPED: [Mapped; 4] = [const { Mapped(AtomicUsize::new(0), AtomicUsize::new(0)) }; 4];
static MEMORY_FILE: AtomicI32 = AtomicI32::new(-1);
static MEMORY_LEN: AtomicU64 = AtomicU64::new(0);

/// Guest memory begins at these addresses (and has so many bytes there), and comes from the first `len` bytes of `file`, which stays open until
/// [`forget_memory`].
pub fn watch_memory(ranges: impl Iterator<Item = (usize, usize)>, file: BorrowedFd<'_>, len: u64) {
    MEMORY_FILE.store(file.as_raw_fd(), Ordering::Relaxed);
    MEMORY_LEN.store(len, Ordering::Relaxed);
    for (Mapped(begin, end), (address, len)) in MAPPED.iter().zip(ranges) {
        begin.store(address, Ordering::Relaxed);
        end.store(address + len, Ordering::Relaxed);
    }
}

/// That memory is gone.
pub fn forget_memory() {
    MEMORY_FILE.store(-1, Ordering::Relaxed);
    for Mapped(begin, end) in &MAPPED {
        begin.store(0, Ordering::Relaxed);
        end.store(0, Ordering::Relaxed);
    }
}

/// A page of guest memory could not be had from its file.
pub fn loss_at(address: usize) -> Option<MemoryLoss> {
    let within = |Mapped(begin, end): &Mapped| {
        (begin.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&address)
    };
    if !MAPPED.iter().any(within) {
        return None;
    }
    let file = MEMORY_FILE.load(Ordering::Relaxed);
    if file < 0 {
        return None;
    }
    // SAFETY: it is open for as long as its memory is mapped, and only asked for its length and name.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    Some(MemoryLoss::of(file, MEMORY_LEN.load(Ordering::Relaxed)))
}

/// How much of a file's name is told, in bytes.
const NAME_LEN: usize = 256;

/// Why guest memory cannot be had from the file behind it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct MemoryLoss {
    /// What it is called now, if that is known; cut off where it is long.
    name: [u8; NAME_LEN],
    name_len: usize,
    /// How many bytes it has, if it is too short.
    short: Option<u64>,
    needed: u64,
}

impl MemoryLoss {
    /// Looks at the file. Async-signal-safe.
    pub fn of(file: BorrowedFd<'_>, needed: u64) -> Self {
        let len = rustix::fs::fstat(file).ok();
        let len = len.and_then(|stat| u64::try_from(stat.st_size).ok());
        // More than there are digits in a descriptor: there is a zero behind it.
        let mut link = Text::<32>::new();
        let _ = write!(link, "/proc/self/fd/{}", file.as_raw_fd());
        let mut name = [0_u8; NAME_LEN];
        // SAFETY: a path that ends with a zero, and a buffer of that length.
        let read = unsafe {
            libc::readlink(
                link.bytes.as_ptr().cast(),
                name.as_mut_ptr().cast(),
                NAME_LEN,
            )
        };
        let name_len = usize::try_from(read).unwrap_or(0).min(NAME_LEN);
        Self {
            name,
            name_len,
            short: len.filter(|len| *len < needed),
            needed,
        }
    }

    /// Whether the file is too short, and not only hard to read.
    pub fn is_truncated(&self) -> bool {
        self.short.is_some()
    }
}

impl fmt::Display for MemoryLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory file that this machine was restored from")?;
        if let Ok(name) = std::str::from_utf8(&self.name[..self.name_len])
            && !name.is_empty()
        {
            write!(f, ", {name:?},")?;
        }
        match self.short {
            Some(len) => write!(
                f,
                " was truncated to {len} bytes of {}: a snapshot's files may be replaced and removed while machines run from them, not written to",
                self.needed
            ),
            None => f.write_str(" could not be read"),
        }
    }
}
