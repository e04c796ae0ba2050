//! Locks on directories that nobody but this user can hold: on a file of ours in them. The directory itself could be locked,
//! for ever, by whoever may read it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::{is_for_everybody, is_trusted_owner};
use crate::end_request;

/// How often a lock that is held by another process is asked for again.
const POLL: Duration = Duration::from_millis(2);

/// What a directory is locked for; each has a lock of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Snapshots are published.
    Snapshots,
    /// Clones are started.
    Clones,
    /// A dead socket is replaced.
    Sockets,
}

impl Purpose {
    /// The name of the lock's file. Each user has one of their own, so that nobody keeps others from a directory for all.
    pub(super) fn file_name(self) -> String {
        let purpose = match self {
            Self::Snapshots => "snapshots",
            Self::Clones => "clones",
            Self::Sockets => "sockets",
        };
        let uid = rustix::process::geteuid().as_raw();
        format!(".vmgenie-{purpose}-{uid}.lock")
    }
}

/// Why there is no lock.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{} holds the lock: wait until it has ended, or end it", process(*.0))]
    Held(Option<u32>),
    /// The file is not ours.
    #[error("{0:?} there is not this user's alone: remove it, or choose another directory")]
    NotOurs(String),
    /// The file cannot be made or locked.
    #[error("could not lock {0:?} there")]
    File(String, #[source] io::Error),
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

/// A lock that ends with this value, or with the process. Its file goes with it.
#[derive(Debug)]
#[must_use]
pub struct DirLock {
    directory: File,
    name: String,
    /// None on a file system without locks.
    file: Option<File>,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // While it is locked: whoever gets a lock on the file that was removed sees that.
        let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
        // Closing is not enough: a process that another thread is starting this very moment has a copy of the descriptor
        // until its exec.
        if let Some(file) = &self.file {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

/// Whether the directory has the file of such a lock: it is locked, or a process that had locked it was killed.
pub fn is_locked_name(directory: impl AsFd, purpose: Purpose) -> bool {
    rustix::fs::statat(directory, purpose.file_name(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Locks an open directory, waiting for at most `patience`. A file system without locks (NFS may be one) is used without.
///
/// # Errors
/// Another process holds the lock, the directory cannot be written to, or somebody else's file has the lock's name.
pub fn lock(directory: &File, purpose: Purpose, patience: Duration) -> Result<DirLock, LockError> {
    let try_lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    lock_by(directory, purpose, patience, try_lock)
}

/// The same with another `flock`.
fn lock_by(
    directory: &File,
    purpose: Purpose,
    patience: Duration,
    try_lock: impl Fn(&File) -> Result<(), Errno>,
) -> Result<DirLock, LockError> {
    let name = purpose.file_name();
    let failed = |error: Errno| LockError::File(purpose.file_name(), error.into());
    let deadline = Instant::now() + patience;
    let locked = |file| {
        let directory = directory.as_fd().try_clone_to_owned();
        let directory = directory.map_err(|error| LockError::File(purpose.file_name(), error))?;
        Ok(DirLock {
            directory: directory.into(),
            name: purpose.file_name(),
            file,
        })
    };
    let mut file = open(directory, &name)?;
    loop {
        match try_lock(&file) {
            Ok(()) if has_name(directory, &name, &file) => return locked(Some(file)),
            // Its holder has removed it before it let go.
            Ok(()) => file = open(directory, &name)?,
            Err(Errno::BADF | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => {
                return locked(None);
            }
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline && !end_request::is_pending() => {
                std::thread::sleep(POLL);
                // A file that is gone is not waited for.
                if !has_name(directory, &name, &file) {
                    file = open(directory, &name)?;
                }
            }
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held(holder(&file))),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Opens the lock's file, or makes it. One that another user has put into a directory for everybody goes, if we may take it
/// away: that user would keep us from the directory otherwise.
fn open(directory: &File, name: &str) -> Result<File, LockError> {
    match open_own(directory, name) {
        Err(LockError::NotOurs(_)) if remove_planted(directory, name) => open_own(directory, name),
        opened => opened,
    }
}

fn open_own(directory: &File, name: &str) -> Result<File, LockError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let not_ours = || LockError::NotOurs(name.to_owned());
    let file = match rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(not_ours()),
        // The kernel's own protection of directories for all; or somebody else's file.
        Err(Errno::ACCESS) if exists(directory, name) => return Err(not_ours()),
        Err(error) => return Err(LockError::File(name.to_owned(), error.into())),
    };
    let metadata = file
        .metadata()
        .map_err(|error| LockError::File(name.to_owned(), error))?;
    let ours = metadata.is_file()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o077 == 0;
    match ours {
        true => Ok(file),
        false => Err(not_ours()),
    }
}

/// Takes away what another user has put into a directory like `/tmp` under this name. There only the superuser and the
/// directory's owner can. True if it is gone.
fn remove_planted(directory: &File, name: &str) -> bool {
    let for_everybody = directory
        .metadata()
        .is_ok_and(|metadata| is_for_everybody(metadata.mode()));
    let is_planted = || {
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| !is_trusted_owner(stat.st_uid))
    };
    if !for_everybody || !is_planted() {
        return false;
    }
    tracing::warn!(
        name,
        "another user has put a file where a lock of ours belongs: it is removed"
    );
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => true,
        // A directory, which need not be empty. Nobody can guess the name and put something there first.
        Err(Errno::ISDIR) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let aside = format!("{name}.{}", now.unwrap_or_default().as_nanos());
            rustix::fs::renameat(directory, name, directory, aside).is_ok()
        }
        Err(_) => false,
    }
}

fn exists(directory: &File, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn has_name(directory: &File, name: &str, file: &File) -> bool {
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (metadata.dev(), metadata.ino()))
}

/// The process that holds a lock on the file, as far as `/proc` tells.
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: FLOCK ADVISORY WRITE 1234 fd:00:5678 0 EOF`; one who waits has `->` behind the number.
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, place, ..] if place == file => {
                pid.parse().ok().filter(|pid| *pid > 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;
    use crate::not_looked_at::not_looked_at;

    const NOBODY: u32 = 65534;

    #[test]
    fn a_file_system_without_locks_is_used_and_nothing_stays_there() {
        let place = tempfile::tempdir().unwrap();
        let directory = File::open(place.path()).unwrap();
        let no_locks = |_: &File| Err(Errno::NOLCK);
        let lock = lock_by(&directory, Purpose::Clones, Duration::ZERO, no_locks).unwrap();
        assert!(is_locked_name(&directory, Purpose::Clones));
        drop(lock);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_another_user_has_put_into_a_directory_for_everybody_keeps_not_the_superuser_out() {
        let place = tempfile::tempdir().unwrap();
        let directory = File::open(place.path()).unwrap();
        let path = place.path().join(Purpose::Snapshots.file_name());
        let plant: [(&str, &dyn Fn()); 3] = [
            ("a file", &|| fs::write(&path, "").unwrap()),
            ("a link", &|| symlink("/etc/passwd", &path).unwrap()),
            ("a directory", &|| {
                fs::create_dir_all(path.join("in it")).unwrap()
            }),
        ];
        for (what, plant) in plant {
            plant();
            if lchown(&path, Some(NOBODY), None).is_err() {
                not_looked_at("only root may give files away");
                return;
            }
            let lock = || lock(&directory, Purpose::Snapshots, Duration::ZERO);
            let mode = |mode| fs::set_permissions(place.path(), PermissionsExt::from_mode(mode));
            // It is there by the leave of the directory's owner.
            mode(0o755).unwrap();
            assert!(matches!(lock(), Err(LockError::NotOurs(_))), "{what}");
            mode(0o1777).unwrap();
            let held = lock().expect(what);
            drop(held);
            assert!(fs::symlink_metadata(&path).is_err(), "{what}");
        }
        // The directory that was not empty.
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
