//! Directories, links and locks that this program trusts: nobody else can change what is in them, lead them elsewhere, or
//! hold them.
//!
//! A directory in a shared place (`/tmp`) may be anybody's. Its owner can put a link where this program makes a file, and
//! take away or exchange what this program has made. So a directory is trusted only if it belongs to this user or to the
//! superuser, and nobody else may write to it (in a sticky one, as `/tmp` is, nobody can touch files of ours). The same
//! holds for all directories above it ([`check_way`]).
//!
//! Knows no machine and no snapshot.

mod directory;
mod links;
mod lock;
mod rotation;
mod sync;
mod way;

use std::path::PathBuf;

use thiserror::Error;

pub use directory::OwnDir;
pub use links::{follow, is_trusted_dir, open_append, open_at_front};
pub use lock::{DirLock, LockError, Purpose, is_locked_name, lock};
pub use rotation::{output_grew, output_rotations, rotate_output};
pub use sync::{sync_directory, uninterrupted};
pub use way::check_way;

/// Whoever may write to a directory besides its owner: the group and all others.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why a directory, or a link in one, is not trusted.
#[derive(Debug, Error)]
pub enum TrustError {
    /// It belongs to somebody else.
    #[error("{path:?} belongs to another user ({uid}): choose a place of your own")]
    Owner {
        /// The directory or link.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// A directory above it, or a link on the way, belongs to somebody else.
    #[error(
        "{path:?} belongs to another user ({uid}), who can exchange what is below it: choose a place below directories of your own or of root's"
    )]
    Above {
        /// The directory or link.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// Others may change what is in it.
    #[error(
        "others may write to the directory {path:?} (mode {mode:04o}): choose another one, or take that away (chmod go-w)"
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A link stands where a directory should be.
    #[error("{0:?} is a symbolic link: name the directory that it leads to")]
    Link(PathBuf),
    /// Something else stands there.
    #[error("{0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// In a directory for everybody, somebody else has put a file there.
    #[error("{path:?} was put there by another user ({uid}): choose another path")]
    Planted {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// It cannot be made or looked at.
    #[error("could not look at {0:?}")]
    Look(PathBuf, #[source] std::io::Error),
    /// It could not be made.
    #[error("could not make the directory {0:?}")]
    Make(PathBuf, #[source] std::io::Error),
}

/// Files of this user's, or of the superuser's, are no attack.
pub fn is_trusted_owner(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Can others change what files of ours in a directory of this mode are?
fn others_may_change(mode: u32) -> bool {
    mode & OTHERS_WRITE != 0 && mode & STICKY == 0
}

/// A directory like `/tmp`?
fn is_for_everybody(mode: u32) -> bool {
    mode & OTHERS_WRITE != 0 && mode & STICKY != 0
}

#[cfg(test)]
#[path = "own_files_test.rs"]
mod tests;
