//! What a thread carries requests out on, with plain system calls: one file, or an overlay on another.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmgenie_devices::virtio::block::Operation;

use super::durability::Durability;
use super::job::{Call, Job};
use super::overlay::Overlay;
use super::vectored::transfer;

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Store {
    /// One file.
    File(File, Durability),
    /// Two; shared with the drive that takes this one's place when it is opened again.
    Overlay(Arc<Overlay>),
}

impl Store {
    /// The file that writes go to.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::File(file, _) => file,
            Self::Overlay(overlay) => overlay.file(),
        }
    }

    /// Makes durable what was written.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file, durability) => durability.sync(file),
            Self::Overlay(overlay) => overlay.sync(),
        }
    }

    /// Carries out one operation to its end.
    pub(super) fn run(&self, operation: Operation) -> io::Result<()> {
        let (file, durability) = match self {
            Self::File(file, durability) => (file, durability),
            Self::Overlay(overlay) => return overlay.run(operation),
        };
        let mut job = Job::new(operation);
        loop {
            let made = match job.call() {
                Call::Read(pieces, offset) => {
                    // SAFETY: the pieces are mapped for as long as the job lives; the kernel may write them.
                    unsafe { transfer(libc::preadv2, file, pieces, offset, 0) }
                }
                Call::Write(pieces, offset) => {
                    // SAFETY: as above; the kernel only reads the pieces.
                    unsafe { transfer(libc::pwritev2, file, pieces, offset, 0) }
                }
                Call::Allocate(mode, offset, len) => {
                    rustix::fs::fallocate(file, mode, offset, len).map(|()| 0)
                }
                // The last call of its job.
                Call::Sync => return durability.sync(file),
            };
            if let Some(result) = job.advance(made) {
                return result;
            }
        }
    }
}
