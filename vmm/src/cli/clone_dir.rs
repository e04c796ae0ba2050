//! The directory of the sockets and logs of clones.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use vmgenie_snapshot::own_files::{self, DirLock, LockError, OwnDir, Purpose, TrustError};

use crate::temporary::{self, SharedDir};

/// How many names are tried for a fresh directory.
const ATTEMPTS: usize = 1000;

/// Why there is no directory for clones.
#[derive(Debug, Error)]
pub(super) enum CloneDirError {
    #[error("clones cannot have their sockets and logs in {0}")]
    Directory(PathBuf, #[source] TrustError),
    #[error("could not tell where the directory {0} is")]
    Absolute(PathBuf, #[source] io::Error),
    #[error(
        "the directory {0} is in use by another `vmgenie clone` or `vmgenie fork`, or cannot be locked; choose another --dir"
    )]
    InUse(PathBuf, #[source] LockError),
    #[error("could not lock the directory {0}; choose another --dir")]
    Share(PathBuf, #[source] io::Error),
}

/// The directory of sockets and logs, in which no other `vmgenie clone` is at work. One that was
/// made here is removed again when there are no clones.
#[derive(Debug)]
pub(super) struct CloneDir {
    dir: Arc<OwnDir>,
    /// While clones are started.
    lock: Option<DirLock>,
    remove: bool,
    /// It goes with the last clone.
    shared: Option<SharedDir>,
}

impl CloneDir {
    /// The directory `wanted`, or a fresh one whose name begins with `prefix`.
    pub(super) fn make(wanted: Option<&Path>, prefix: &str) -> Result<Self, CloneDirError> {
        let dir = match wanted {
            Some(path) => {
                let path = std::path::absolute(path)
                    .map_err(|error| CloneDirError::Absolute(path.to_owned(), error))?;
                OwnDir::make(&path).map_err(|error| CloneDirError::Directory(path, error))?
            }
            None => {
                let parent = parent();
                make_fresh(&parent, prefix)
                    .map_err(|error| CloneDirError::Directory(parent, error))?
            }
        };
        let lock = own_files::lock(dir.file(), Purpose::Clones, Duration::ZERO)
            .map_err(|error| CloneDirError::InUse(dir.path().to_owned(), error))?;
        Ok(Self {
            dir: Arc::new(dir),
            lock: Some(lock),
            remove: true,
            shared: None,
        })
    }

    /// The directory `wanted`; or a fresh one that goes with the last of the clones that are told so.
    pub(super) fn make_passing(wanted: Option<&Path>, prefix: &str) -> Result<Self, CloneDirError> {
        let mut made = Self::make(wanted, prefix)?;
        if wanted.is_none() {
            let path = made.dir.path();
            let shared = SharedDir::join(path)
                .map_err(|error| CloneDirError::Share(path.to_owned(), error))?;
            made.shared = Some(shared);
        }
        Ok(made)
    }

    /// Removes those that clones have left which were killed.
    pub(super) fn sweep(prefix: &str) {
        temporary::sweep(&parent(), prefix);
    }

    pub(super) fn dir(&self) -> &Arc<OwnDir> {
        &self.dir
    }

    /// It goes with the last clone.
    pub(super) fn passes(&self) -> bool {
        self.shared.is_some()
    }

    pub(super) fn keep(mut self) -> PathBuf {
        self.remove = false;
        self.dir.path().to_owned()
    }
}

impl Drop for CloneDir {
    fn drop(&mut self) {
        // Its file is in the directory.
        self.lock = None;
        if self.remove {
            self.dir.remove_if_made();
        }
    }
}

/// Where fresh directories for sockets are made.
fn parent() -> PathBuf {
    let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    // Root may have that of another user, who could exchange what is in it.
    parent
        .filter(|dir| own_files::is_trusted_dir(dir))
        .unwrap_or_else(temporary::parent)
}

/// Makes a directory in `parent` that was not there before.
pub(super) fn make_fresh(parent: &Path, prefix: &str) -> Result<OwnDir, TrustError> {
    for attempt in 0..ATTEMPTS {
        match OwnDir::make_new(&parent.join(temporary::name(prefix, attempt))) {
            Err(TrustError::Make(_, error)) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made,
        }
    }
    let path = parent.join(temporary::name(prefix, 0));
    Err(TrustError::Make(path, ErrorKind::AlreadyExists.into()))
}
