//! A snapshot in a directory of its own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vmgenie_api::client::Client;
use vmgenie_api::wire::{SnapshotCreate, SnapshotType};

/// A place for a snapshot; it is removed when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    dir: TempDir,
}

impl Snapshot {
    /// An empty place.
    #[allow(clippy::new_without_default, reason = "makes a directory")]
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// One in a directory of its own in `parent`, which may have more room.
    pub fn within(parent: &Path) -> Self {
        Self {
            dir: tempfile::tempdir_in(parent).expect("a directory for the snapshot"),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The memory file.
    pub fn memory(&self) -> PathBuf {
        self.dir.path().join("memory")
    }

    /// What the API takes.
    pub fn request(&self) -> SnapshotCreate {
        SnapshotCreate {
            snapshot_type: SnapshotType::Full,
            snapshot_path: self.state(),
            mem_file_path: self.memory(),
            resume_vm: false,
            pause_vm: false,
            copy_drives: false,
            cooperative: None,
        }
    }

    /// Has a paused VM write it.
    pub fn create(&self, client: &mut Client) {
        client
            .create_snapshot(&self.request())
            .expect("the snapshot is written");
    }
}
