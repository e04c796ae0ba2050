//! What a thread carries requests out on, with plain system calls: one file, or an overlay on another.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use vmgenie_devices::virtio::block::Operation;

use super::job::{Call, Job};
use super::overlay::Overlay;
use super::vectored::transfer;

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Store {
    /// One file.
    File(File),
    /// Two; shared with the drive that takes this one's place when it is opened again.
    Overlay(Arc<Overlay>),
}

impl Store {
    /// The file that writes go to.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::File(file) => file,
            Self::Overlay(overlay) => overlay.file(),
        }
    }

    /// Carries out one operation to its end.
    pub(super) fn run(&self, operation: Operation) -> io::Result<()> {
        let file = match self {
            Self::File(file) => file,
            Self::Overlay(overlay) => return overlay.run(operation),
        };
        let mut job = Job::new(operation);
        loop {
            if let Some(result) = job.advance(call(file, &job.call())) {
                return result;
            }
        }
    }
}

/// Makes one call; returns how many bytes it transferred.
fn call(file: &File, call: &Call<'_>) -> Result<u64, Errno> {
    match *call {
        Call::Read(pieces, offset) => {
            // SAFETY: the pieces are mapped for as long as the job lives, which the caller holds; the kernel may write them.
            unsafe { transfer(libc::preadv2, file, pieces, offset, 0) }
        }
        Call::Write(pieces, offset) => {
            // SAFETY: as above; the kernel only reads the pieces.
            unsafe { transfer(libc::pwritev2, file, pieces, offset, 0) }
        }
        Call::Sync => rustix::fs::fdatasync(file.as_fd()).map(|()| 0),
        Call::Allocate(mode, offset, len) => {
            rustix::fs::fallocate(file, mode, offset, len).map(|()| 0)
        }
    }
}
