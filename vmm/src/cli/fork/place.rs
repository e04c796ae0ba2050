//! Where the snapshot of a fork lies: where the user says, or where nothing of it has a name any more once the clones run.

use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_snapshot::own_files::TrustError;

use super::super::client_commands::{PathError, SnapshotDir};
use super::super::clone_dir::make_fresh;
use crate::temporary::{self, SharedDir};

/// What the name of a temporary directory begins with.
const PREFIX: &str = "vmgenie-snapshot";

/// Why there is no place for the snapshot.
#[derive(Debug, Error)]
pub(super) enum PlaceError {
    #[error(transparent)]
    Named(#[from] PathError),
    #[error("the snapshot cannot lie in {0}: name a SNAPSHOT_DIR, or another TMPDIR")]
    Temporary(PathBuf, #[source] TrustError),
    #[error("could not lock {0}: name a SNAPSHOT_DIR, or another TMPDIR")]
    Lock(PathBuf, #[source] std::io::Error),
}

/// The directory of a snapshot.
pub(super) enum SnapshotPlace {
    /// The user's. It stays when a snapshot is in it.
    Named(SnapshotDir),
    /// It goes when this is dropped.
    Temporary(SharedDir),
}

impl SnapshotPlace {
    pub(super) fn make(named: Option<&Path>) -> Result<Self, PlaceError> {
        if let Some(named) = named {
            return Ok(Self::Named(SnapshotDir::make(named)?));
        }
        let parent = temporary::parent();
        let made = make_fresh(&parent, PREFIX);
        let path = made
            .map_err(|error| PlaceError::Temporary(parent, error))?
            .path()
            .to_owned();
        match SharedDir::join(&path) {
            Ok(dir) => Ok(Self::Temporary(dir)),
            Err(error) => {
                temporary::remove(&path);
                Err(PlaceError::Lock(path, error))
            }
        }
    }

    /// Removes what was left by those that were killed.
    pub(super) fn sweep() {
        temporary::sweep(&temporary::parent(), PREFIX);
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Named(dir) => &dir.path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    /// What goes if this program is killed.
    pub(super) fn doomed(&self) -> Option<&Path> {
        match self {
            Self::Named(_) => None,
            Self::Temporary(dir) => Some(dir.path()),
        }
    }

    /// The clones have opened what they need: where the snapshot stays, if it does.
    pub(super) fn keep(self) -> Option<PathBuf> {
        match self {
            Self::Named(dir) => Some(dir.keep()),
            Self::Temporary(_) => None,
        }
    }
}
