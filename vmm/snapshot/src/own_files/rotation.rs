//! A log on standard output and error that does not grow without bound: a guest writes to it, and shall not fill the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// From how many bytes on the log is put aside, and a new one begun.
const LARGE: u64 = 8 << 20;
/// How many bytes are written between two looks at its length.
const LOOK: u64 = 4 << 10;

struct Log {
    path: PathBuf,
    unlooked: AtomicU64,
    /// How many times it was put aside.
    rotations: AtomicU64,
    rotating: Mutex<()>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Standard output and error are the file at `path` from now on. When it has become large, it is put aside as `PATH.1`, in the
/// place of the one before.
pub fn rotate_output(path: &Path) {
    // Once for each process: a second call changes nothing.
    let _ = LOG.set(Log {
        path: path.to_owned(),
        unlooked: AtomicU64::new(0),
        rotations: AtomicU64::new(0),
        rotating: Mutex::new(()),
    });
}

/// To be told of all that was written to standard output and error.
pub fn output_grew(bytes: usize) {
    let Some(log) = LOG.get() else { return };
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    if log.unlooked.fetch_add(bytes, Ordering::Relaxed) < LOOK {
        return;
    }
    // Another thread that is at it already is enough. Nobody panics while it is held.
    let Ok(_rotating) = log.rotating.try_lock() else {
        return;
    };
    log.unlooked.store(0, Ordering::Relaxed);
    match rotated(io::stdout(), &log.path, LARGE) {
        Ok(Some(new)) if become_output(&new).is_ok() => {
            log.rotations.fetch_add(1, Ordering::Relaxed);
        }
        // The log itself is where that would be told.
        Ok(_) | Err(_) => {}
    }
}

/// Another number than before if standard output has become another file.
pub fn output_rotations() -> u64 {
    LOG.get()
        .map_or(0, |log| log.rotations.load(Ordering::Relaxed))
}

/// Puts `output`, the file at `path`, aside if it is `large`, and returns the new one. Where that cannot be done it is emptied.
fn rotated(output: impl AsFd, path: &Path, large: u64) -> io::Result<Option<File>> {
    let output = File::from(output.as_fd().try_clone_to_owned()?);
    let metadata = output.metadata()?;
    if !metadata.is_file() || metadata.len() < large {
        return Ok(None);
    }
    let renew = || {
        let found = fs::symlink_metadata(path);
        match found {
            Ok(found) if (found.dev(), found.ino()) == (metadata.dev(), metadata.ino()) => {
                let mut aside = path.as_os_str().to_owned();
                aside.push(".1");
                fs::rename(path, aside)?;
            }
            // Somebody has put it aside or away.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) => return Err(io::Error::from(ErrorKind::AlreadyExists)),
            Err(error) => return Err(error),
        }
        let mut options = OpenOptions::new();
        options.create_new(true).append(true).mode(0o600);
        options.open(path)
    };
    match renew() {
        Ok(new) => Ok(Some(new)),
        Err(_) => output.set_len(0).map(|()| None),
    }
}

fn become_output(file: &File) -> io::Result<()> {
    for fd in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: takes two numbers. Nobody in this process relies on which file these two are.
        if unsafe { libc::dup2(file.as_raw_fd(), fd) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_log_is_put_aside_once_and_emptied_where_that_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clone-1.log");
        let aside = dir.path().join("clone-1.log.1");
        let open = || {
            let mut options = OpenOptions::new();
            options.create(true).append(true).open(&path).unwrap()
        };
        let mut log = open();
        log.write_all(b"first").unwrap();
        assert!(rotated(&log, &path, 6).unwrap().is_none());
        log.write_all(b"!").unwrap();
        let mut log = rotated(&log, &path, 6).unwrap().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"first!");
        assert_eq!(log.metadata().unwrap().mode() & 0o777, 0o600);
        log.write_all(b"second").unwrap();
        let mut log = rotated(&log, &path, 6).unwrap().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"second");
        // Somebody has taken it away: it begins anew.
        log.write_all(b"third!").unwrap();
        fs::remove_file(&path).unwrap();
        let mut log = rotated(&log, &path, 6).unwrap().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"second");
        // Somebody else's file is not touched.
        log.write_all(b"fourth").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "not ours").unwrap();
        assert!(rotated(&log, &path, 6).unwrap().is_none());
        assert_eq!(log.metadata().unwrap().len(), 0);
        assert_eq!(fs::read(&path).unwrap(), b"not ours");
        fs::remove_file(&path).unwrap();
        let mut log = open();
        log.write_all(b"fifth!").unwrap();
        fs::remove_file(&aside).unwrap();
        fs::create_dir(&aside).unwrap();
        assert!(rotated(&log, &path, 6).unwrap().is_none());
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
