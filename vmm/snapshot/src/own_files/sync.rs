//! Syncs that a signal does not end.

use std::fs::File;
use std::io;

use rustix::io::Errno;

/// Makes a sync again that a signal has interrupted: it has neither succeeded nor lost anything.
pub fn uninterrupted(sync: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match sync() {
            Err(Errno::INTR) => {}
            ended => return ended,
        }
    }
}

/// Makes the names in an open directory durable.
///
/// # Errors
/// The directory's.
pub fn sync_directory(directory: &File) -> io::Result<()> {
    match uninterrupted(|| rustix::fs::fsync(directory)) {
        // Some network file systems have no sync of directories; their servers do it.
        Err(Errno::INVAL | Errno::OPNOTSUPP) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn an_interrupted_sync_is_made_again_and_any_other_error_is_told() {
        for last in [Ok(()), Err(Errno::IO)] {
            let calls = Cell::new(0);
            let ended = uninterrupted(|| {
                calls.set(calls.get() + 1);
                match calls.get() {
                    1 | 2 => Err(Errno::INTR),
                    _ => last,
                }
            });
            assert_eq!((ended, calls.get()), (last, 3));
        }
    }

    #[test]
    fn a_directory_is_synced_and_what_cannot_be_is_left_to_the_server() {
        let place = tempfile::tempdir().unwrap();
        sync_directory(&File::open(place.path()).unwrap()).unwrap();
        // As a directory of a network file system.
        sync_directory(&File::open("/dev/null").unwrap()).unwrap();
    }
}
