//! The wire types of `/snapshot/create` and `/snapshot/load`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{WireError, not_empty};
use crate::config::DeviceOverrides;
use crate::controller::command::{CreateSnapshot, LoadSnapshot, RestoreAs};

/// PUT `/snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// `Full`, which is the default.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// Where the state file goes; an older one there is replaced when the new one is complete.
    pub snapshot_path: PathBuf,
    /// Where the memory file goes.
    pub mem_file_path: PathBuf,
    /// Let the guest go on as soon as its memory has been copied, before the files are safe on
    /// disk. Ours; false when absent.
    #[serde(default)]
    pub resume_vm: bool,
}

/// The kinds of snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of the guest's memory.
    #[default]
    Full,
    /// What changed since the last one: refused.
    Diff,
}

impl TryFrom<SnapshotCreate> for CreateSnapshot {
    type Error = WireError;

    fn try_from(wire: SnapshotCreate) -> Result<Self, WireError> {
        if wire.snapshot_type == SnapshotType::Diff {
            return Err(WireError::DiffSnapshot);
        }
        let state = not_empty("snapshot_path", wire.snapshot_path)?;
        let memory = not_empty("mem_file_path", wire.mem_file_path)?;
        if state == memory {
            return Err(WireError::SameFile);
        }
        Ok(Self {
            state,
            memory,
            resume: wire.resume_vm,
        })
    }
}

/// PUT `/snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The state file.
    pub snapshot_path: PathBuf,
    /// Where the memory is; this or `mem_file_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// The memory file; this or `mem_backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<PathBuf>,
    /// Let the guest run at once; false when absent.
    #[serde(default)]
    pub resume_vm: bool,
    /// Whether the restored machine begins a new generation. Ours; `new` when absent.
    #[serde(default)]
    pub generation: GenerationChoice,
    /// False only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub track_dirty_pages: bool,
    /// False only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enable_diff_snapshots: bool,
}

/// Where a snapshot's memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// `File`.
    pub backend_type: MemBackendType,
    /// The memory file.
    pub backend_path: PathBuf,
}

/// The kinds of memory backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemBackendType {
    /// A file, mapped lazily.
    File,
    /// A userfaultfd handler: refused.
    Uffd,
}

/// What a restored machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationChoice {
    /// Another machine than the one that was snapshotted, or the same one set back in time.
    #[default]
    New,
    /// The very machine that was snapshotted, which ran nowhere else since (live migration,
    /// lossless failover).
    Keep,
}

impl TryFrom<SnapshotLoad> for LoadSnapshot {
    type Error = WireError;

    fn try_from(wire: SnapshotLoad) -> Result<Self, WireError> {
        if wire.track_dirty_pages {
            return Err(WireError::DirtyPages("track_dirty_pages"));
        }
        if wire.enable_diff_snapshots {
            return Err(WireError::DirtyPages("enable_diff_snapshots"));
        }
        let memory = match (wire.mem_backend, wire.mem_file_path) {
            (
                Some(MemBackend {
                    backend_type: MemBackendType::Uffd,
                    ..
                }),
                None,
            ) => {
                return Err(WireError::Uffd);
            }
            (Some(backend), None) => not_empty("backend_path", backend.backend_path)?,
            (None, Some(path)) => not_empty("mem_file_path", path)?,
            _ => return Err(WireError::MemoryBackend),
        };
        let state = not_empty("snapshot_path", wire.snapshot_path)?;
        if state == memory {
            return Err(WireError::SameFile);
        }
        let generation = match wire.generation {
            GenerationChoice::New => RestoreAs::New,
            GenerationChoice::Keep => RestoreAs::Keep,
        };
        Ok(Self {
            state,
            memory,
            resume: wire.resume_vm,
            generation,
            overrides: DeviceOverrides::default(),
        })
    }
}
