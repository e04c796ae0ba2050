//! A request that is alone is carried out where it is taken up, if it will not wait for a disk: two hand-overs between threads cost more than
//! a copy out of the host's page cache.
//!
//! The event loop calls, so what might wait goes to the engine: what the kernel says would (`RWF_NOWAIT`), what it cannot say it of (with
//! ext4, all writes), and what is large. What may take its time nevertheless: guest memory that is not there yet, swap, and to begin to read
//! ahead.

use std::fs::File;

use rustix::fs::fstatfs;
use vmgenie_devices::virtio::block::{Buffers, Operation};

use super::extents::TMPFS;
use super::vectored::{Vectored, transfer};

/// The largest request that is carried out at once, in bytes: some microseconds of copying.
const MAX_LEN: u64 = 64 << 10;

/// What may be done at once with a file.
#[derive(Debug)]
pub(super) struct Quick {
    /// On tmpfs nothing waits for a disk; it knows no `RWF_NOWAIT`.
    in_memory: bool,
}

impl Quick {
    /// For requests on `file`.
    pub(super) fn new(file: &File) -> Self {
        // A block device's node is in memory as well: what counts is what is behind it.
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let in_memory = regular && fstatfs(file).is_ok_and(|system| system.f_type as u32 == TMPFS);
        Self { in_memory }
    }

    /// Carries out the operation on `file`, which is the one that this was made for. False if it is left to the engine, which also tells of
    /// errors; a part of it may have been done then, which does no harm to do again.
    pub(super) fn run(&self, file: &File, operation: &Operation) -> bool {
        match operation {
            Operation::Read { offset, buffers } => {
                self.transfer(libc::preadv2, file, buffers, *offset)
            }
            Operation::Write {
                offset,
                buffers,
                durable: false,
            } => self.transfer(libc::pwritev2, file, buffers, *offset),
            _ => false,
        }
    }

    /// One system call for all of `buffers`.
    fn transfer(&self, call: Vectored, file: &File, buffers: &Buffers, offset: u64) -> bool {
        if buffers.len() > MAX_LEN {
            return false;
        }
        let flags = if self.in_memory { 0 } else { libc::RWF_NOWAIT };
        // SAFETY: `buffers` keeps its pieces mapped and lets the kernel read and write them.
        let done = unsafe { transfer(call, file, buffers.iovecs(), offset, flags) };
        done == Ok(buffers.len())
    }
}

#[cfg(test)]
impl Quick {
    /// For a file on some file system.
    pub(super) fn in_memory(in_memory: bool) -> Self {
        Self { in_memory }
    }

    /// Whether it takes a file for one in memory.
    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory
    }
}
