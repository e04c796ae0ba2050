//! Files as they were found behind drives, and how they were.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use vmgenie_snapshot::NamedFile;

/// A regular file as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Bytes.
    pub len: u64,
    /// When it was modified last: seconds and nanoseconds since the Unix epoch.
    pub modified: (i64, i64),
    /// Which file it was.
    pub inode: u64,
}

impl FileStamp {
    /// None for what is no regular file: a block device does not tell.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        Ok(Self::by(&file.metadata()?))
    }

    pub(crate) fn by(metadata: &Metadata) -> Option<Self> {
        metadata.is_file().then(|| Self {
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
        })
    }

    /// What is different now, in words. A copy that belongs to a snapshot may have moved with it: then it is another file, of the same length.
    pub(crate) fn difference(&self, now: &Self, may_have_moved: bool) -> Option<&'static str> {
        if self.len != now.len {
            return Some("it has another length");
        }
        if self.inode != now.inode {
            return (!may_have_moved).then_some("it is another file");
        }
        (self.modified != now.modified).then_some("it has been written to")
    }
}

/// The files of one drive as they were found; where there is none, the drive's path is followed when it is opened.
#[derive(Debug, Default)]
pub(crate) struct DriveFiles {
    /// The drive's file.
    pub(crate) file: Option<NamedFile>,
    /// Its overlay.
    pub(crate) overlay: Option<NamedFile>,
}
