//! Locks by which the users of an image know of each other.
//!
//! They belong to the open file (`F_OFD_SETLK`) and cover all of it. An exclusive one needs a descriptor that can write: who may only read an image
//! keeps nobody from reading it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// How an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Beside others, none of which writes.
    Shared,
    /// By one alone.
    Exclusive,
}

/// Locks the file as long as it is open. False if others have it.
///
/// # Errors
/// The file system has no locks ([`is_unsupported`]), or the file is not open for what the lock allows.
pub(crate) fn try_lock(file: &File, how: Use) -> io::Result<bool> {
    let kind = match how {
        Use::Shared => libc::F_RDLCK,
        Use::Exclusive => libc::F_WRLCK,
    };
    match set(file, kind) {
        Ok(()) => Ok(true),
        // Which of the two it is depends on the system.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Gives the lock back, also if another process has a copy of the descriptor.
pub(crate) fn unlock(file: &File) {
    let _ = set(file, libc::F_UNLCK);
}

/// Whether a lock has failed because there are none on this file system.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(
        code,
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // To the end, wherever that is.
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the call reads `lock`, which lives through it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_only_read_a_file_keeps_nobody_from_reading_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |write| File::options().read(true).write(write).open(&file).unwrap();
        // As another user's program could try to.
        let stranger = open(false);
        assert!(try_lock(&stranger, Use::Exclusive).is_err());
        rustix::fs::flock(
            &stranger,
            rustix::fs::FlockOperation::NonBlockingLockExclusive,
        )
        .unwrap();
        let (reader, writer) = (open(false), open(true));
        assert!(try_lock(&reader, Use::Shared).unwrap());
        assert!(!try_lock(&writer, Use::Exclusive).unwrap());
        drop(reader);
        assert!(try_lock(&writer, Use::Exclusive).unwrap());
        assert!(!try_lock(&open(false), Use::Shared).unwrap());
        let copy = writer.try_clone().unwrap();
        unlock(&writer);
        assert!(try_lock(&open(true), Use::Exclusive).unwrap());
        drop(copy);
    }
}
