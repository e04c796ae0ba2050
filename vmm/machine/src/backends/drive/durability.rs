//! Whether what was written to a file is on its disk, and that it never will be after a sync has failed.
//!
//! Linux tells of a failed write once for each open file, and takes the pages for clean from then on: the next sync succeeds, and the data is gone
//! (fsync(2), "Errors"). So the first failure counts until the file is opened anew, whoever has asked: the guest, a snapshot, or the overlay.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use vmgenie_snapshot::own_files::uninterrupted;

/// What every sync after one that has failed is answered.
const LOST: &str = "an earlier sync of the file has failed, and what was written before it may be lost. Check the file and the disk that it is on, then have \
                    it opened anew, or another one in its place (PATCH /drives)";

/// What is known of one open file. All its syncs go through this.
#[derive(Debug, Default)]
pub(super) struct Durability {
    lost: AtomicBool,
    /// Of two syncs at the same time one is told of the failure, and the other may end first.
    one_at_a_time: Mutex<()>,
}

impl Durability {
    /// Makes durable what was written to `file`.
    ///
    /// # Errors
    /// The file's, or a sync has failed before.
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.sync_with(|| rustix::fs::fdatasync(file))
    }

    fn sync_with(&self, sync: impl Fn() -> Result<(), Errno>) -> io::Result<()> {
        // It guards nothing that a panic could leave half changed.
        let _one = self
            .one_at_a_time
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.ended(uninterrupted(sync).map_err(io::Error::from))
    }

    /// The answer to a sync that has ended like this. No other was under way.
    ///
    /// # Errors
    /// This one's, or a sync has failed before.
    pub(super) fn ended(&self, result: io::Result<()>) -> io::Result<()> {
        let failed_before = match result {
            Ok(()) => self.lost.load(Ordering::Acquire),
            Err(_) => self.lost.swap(true, Ordering::AcqRel),
        };
        match failed_before {
            true => Err(io::Error::other(LOST)),
            false => result,
        }
    }

    /// The file counts as opened anew: somebody has decided that what is in it will do. Whether that was needed.
    pub(super) fn begin_anew(&self) -> bool {
        self.lost.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_has_failed_is_not_made_good_by_one_that_succeeds() {
        let durability = Durability::default();
        durability.sync_with(|| Ok(())).unwrap();
        // What the kernel tells once.
        let first = durability.sync_with(|| Err(Errno::IO)).unwrap_err();
        assert_eq!(first.raw_os_error(), Some(libc::EIO));
        for again in [Ok(()), Err(Errno::IO)] {
            let told = durability.sync_with(|| again).unwrap_err().to_string();
            assert!(told.contains("may be lost"), "{told}");
        }
        assert!(durability.begin_anew());
        durability.sync_with(|| Ok(())).unwrap();
        assert!(!durability.begin_anew());
    }

    #[test]
    fn of_two_syncs_at_once_none_succeeds_after_the_other_has_failed() {
        let durability = Durability::default();
        let told = AtomicBool::new(false);
        // The kernel tells whoever comes first.
        let sync = || match told.swap(true, Ordering::AcqRel) {
            false => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                Err(Errno::IO)
            }
            true => Ok(()),
        };
        std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| durability.sync_with(sync)));
            for thread in threads {
                thread.join().unwrap().unwrap_err();
            }
        });
    }

    #[test]
    fn an_interrupted_sync_is_made_again() {
        let interrupted = AtomicBool::new(false);
        let sync = || match interrupted.swap(true, Ordering::AcqRel) {
            false => Err(Errno::INTR),
            true => Ok(()),
        };
        Durability::default().sync_with(sync).unwrap();
    }
}
