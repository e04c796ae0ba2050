//! The console and log of a clone.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use vmgenie_snapshot::own_files::OwnDir;

/// How much of the end of a log is shown when a VMM ends by itself, in bytes.
const LOG_TAIL: u64 = 2048;

/// The file of a clone's console and log: a new one, or that of an earlier clone, which is kept.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) dir: Arc<OwnDir>,
    name: OsString,
    /// Device and inode.
    identity: (u64, u64),
    /// It was not there before.
    pub(super) made: bool,
    /// Where this clone's part begins.
    begin: u64,
}

impl Log {
    pub(super) fn open(dir: Arc<OwnDir>, name: OsString) -> io::Result<(Self, File)> {
        let (file, made) = dir.append(&name)?;
        let metadata = file.metadata()?;
        let log = Self {
            dir,
            name,
            identity: (metadata.dev(), metadata.ino()),
            made,
            begin: metadata.len(),
        };
        Ok((log, file))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// The end of what this clone has said.
    pub(super) fn tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.path())?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(
                len.saturating_sub(LOG_TAIL).max(self.begin),
            ))?;
            let mut tail = Vec::new();
            file.take(LOG_TAIL).read_to_end(&mut tail)?;
            Ok(String::from_utf8_lossy(&tail).trim().to_owned())
        };
        read().unwrap_or_default()
    }

    /// Has it be as it was before this clone.
    pub(super) fn undo(&self) {
        if self.made {
            return self.dir.remove(&self.name, self.identity);
        }
        let undone = self.dir.append(&self.name).and_then(|(file, _)| {
            let metadata = file.metadata()?;
            match (metadata.dev(), metadata.ino()) == self.identity {
                true => file.set_len(self.begin),
                false => Ok(()),
            }
        });
        if let Err(error) = undone {
            tracing::debug!(log = %self.path().display(), %error, "a failed clone's words stay");
        }
    }
}
