//! A request that is alone is carried out where it is taken up, if it will not wait for a disk: two hand-overs between threads cost more than
//! a copy out of the host's page cache.
//!
//! The event loop calls, so what might wait goes to the engine: what the kernel says would (`RWF_NOWAIT`), what it cannot say it of, and
//! what is large. An engine of plain system calls writes small pieces nevertheless, because writes go to the page cache as a rule, and stops
//! doing so for a while after one that took long.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::fs::fstatfs;
use vmgenie_devices::virtio::block::{Buffers, Operation};

/// The largest request that is carried out at once, in bytes: some microseconds of copying.
const MAX_LEN: u64 = 64 << 10;
/// A write that takes longer has waited for something.
const LONG: Duration = Duration::from_millis(1);
/// How long writes are left to the engine then.
const PAUSE: Duration = Duration::from_millis(500);
/// tmpfs (linux/magic.h), which is memory, and knows no `RWF_NOWAIT`.
const TMPFS: u32 = 0x0102_1994;

/// What may be done at once with a file.
#[derive(Debug)]
pub(super) struct Quick {
    pub(super) in_memory: bool,
    may_wait: bool,
    /// Writes are left to the engine until then.
    paused: Option<Instant>,
}

impl Quick {
    /// For requests on `file`. With `may_wait` a write may wait at times, as the engine's user has asked for plain system calls.
    pub(super) fn new(file: &File, may_wait: bool) -> Self {
        let in_memory = fstatfs(file).is_ok_and(|system| system.f_type as u32 == TMPFS);
        Self {
            in_memory,
            may_wait,
            paused: None,
        }
    }

    /// Carries out the operation on `file`, which is the one that this was made for. None, if it is left to the engine; a part of it may have
    /// been done then, which does no harm to do again.
    pub(super) fn run(&mut self, file: &File, operation: &Operation) -> Option<io::Result<()>> {
        match operation {
            Operation::Read { offset, buffers } => {
                transfer(libc::preadv2, file, buffers, *offset, self.in_memory)
            }
            Operation::Write {
                offset,
                buffers,
                durable: false,
            } => self.write(file, buffers, *offset),
            _ => None,
        }
    }

    fn write(&mut self, file: &File, buffers: &Buffers, offset: u64) -> Option<io::Result<()>> {
        let without_waiting = transfer(libc::pwritev2, file, buffers, offset, self.in_memory);
        if without_waiting.is_some() || self.in_memory || !self.may_wait {
            return without_waiting;
        }
        let begun = Instant::now();
        if self.paused.is_some_and(|until| begun < until) {
            return None;
        }
        let written = transfer(libc::pwritev2, file, buffers, offset, true);
        let ended = Instant::now();
        self.paused = (ended - begun > LONG).then_some(ended + PAUSE);
        written
    }
}

type Vectored = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64, i32) -> isize;

/// One system call for all of `buffers`. None if not all was transferred: whoever does it again will be told of an error.
fn transfer(
    call: Vectored,
    file: &File,
    buffers: &Buffers,
    offset: u64,
    may_wait: bool,
) -> Option<io::Result<()>> {
    if buffers.len() > MAX_LEN {
        return None;
    }
    let flags = if may_wait { 0 } else { libc::RWF_NOWAIT };
    let pieces = buffers.iovecs();
    // SAFETY: the list is valid, and `buffers` keeps its pieces mapped and lets the kernel read and write them. It is shorter than IOV_MAX.
    let done = unsafe {
        call(
            file.as_raw_fd(),
            pieces.as_ptr(),
            pieces.len() as i32,
            offset as i64,
            flags,
        )
    };
    (u64::try_from(done) == Ok(buffers.len())).then_some(Ok(()))
}
