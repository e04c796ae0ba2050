//! Symbolic links at the end of a path that names a file: which are followed.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::way::{MAX_LINKS, check_way};
use super::{TrustError, is_for_everybody, is_trusted_owner, others_may_change};

/// The directory that a path's last name is in.
fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Follows symbolic links at the end of `path`; returns what they lead to, which may not exist. Each must be trusted: it and
/// its directory are this user's or the superuser's, and nobody else can replace it, or a directory above it.
///
/// # Errors
/// A link is not trusted, or there are too many.
pub fn follow(path: &Path) -> Result<PathBuf, TrustError> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let look = |error| TrustError::Look(path.clone(), error);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(look(error)),
        };
        if !metadata.is_symlink() {
            return Ok(path);
        }
        check_link(&path, metadata.uid())?;
        let to = fs::read_link(&path).map_err(look)?;
        path = parent(&path).join(to);
    }
    let error = io::Error::from_raw_os_error(libc::ELOOP);
    Err(TrustError::Look(path, error))
}

fn check_link(link: &Path, uid: u32) -> Result<(), TrustError> {
    let owner = |path: &Path, uid| TrustError::Owner {
        path: path.to_owned(),
        uid,
    };
    if !is_trusted_owner(uid) {
        return Err(owner(link, uid));
    }
    let directory = parent(link);
    let metadata =
        fs::metadata(directory).map_err(|error| TrustError::Look(directory.to_owned(), error))?;
    if !is_trusted_owner(metadata.uid()) {
        return Err(owner(directory, metadata.uid()));
    }
    if others_may_change(metadata.mode()) {
        return Err(TrustError::Writable {
            path: directory.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    check_way(link)
}

/// Opens a file or named pipe to append to, or makes a file for its owner alone. A link is followed if it is trusted, and in a
/// directory for everybody the file must not be one that somebody else has put there.
///
/// # Errors
/// It may not be followed or used, or cannot be opened.
pub fn open_append(path: &Path) -> io::Result<File> {
    open_for_output(path, OFlags::APPEND)
}

/// The same, but what is written begins at the front of the file, whose other bytes stay.
///
/// # Errors
/// As [`open_append`].
pub fn open_at_front(path: &Path) -> io::Result<File> {
    open_for_output(path, OFlags::empty())
}

fn open_for_output(path: &Path, more: OFlags) -> io::Result<File> {
    let mut place = follow(path).map_err(io::Error::other)?;
    let mut flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | more;
    // A named pipe that has no reader yet is not waited for.
    flags |= OFlags::NONBLOCK | OFlags::NOCTTY;
    if place.starts_with("/proc") {
        // `/dev/stdout`, say: what such a link says (`pipe:[1]`) is no path.
        path.clone_into(&mut place);
    } else {
        flags |= OFlags::NOFOLLOW;
    }
    let file = File::from(rustix::fs::open(&place, flags, Mode::RUSR | Mode::WUSR)?);
    let uid = file.metadata()?.uid();
    let for_everybody = fs::metadata(parent(&place)).is_ok_and(|it| is_for_everybody(it.mode()));
    match for_everybody && !is_trusted_owner(uid) {
        true => Err(io::Error::other(TrustError::Planted { path: place, uid })),
        false => Ok(file),
    }
}

/// Whether nobody else can change what is in the directory that `path` leads to, or lead the path elsewhere.
pub fn is_trusted_dir(path: &Path) -> bool {
    let is_ours = fs::metadata(path).is_ok_and(|metadata| {
        metadata.is_dir() && is_trusted_owner(metadata.uid()) && !others_may_change(metadata.mode())
    });
    is_ours && check_way(path).is_ok()
}
