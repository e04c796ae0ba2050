//! A copy of a drive's image for one clone, made when it is restored.
//!
//! Where the file system can, the two share their blocks until one is written (FICLONE); elsewhere the data is copied and holes stay
//! holes. That is a plain image again, which needs no layer of ours on the way of each request.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom as At, ioctl_ficlone, seek};
use rustix::io::Errno;
use thiserror::Error;

use crate::config::{DeviceOverrides, DevicesConfig};

/// An image could not be copied.
#[derive(Debug, Error)]
#[error("could not copy the drive {0} to {1}")]
pub struct CopyError(PathBuf, PathBuf, #[source] io::Error);

/// Makes the copies that `overrides` ask for, of the images that `saved` names. If one fails, none stays.
pub fn copy_drives(saved: &DevicesConfig, overrides: &DeviceOverrides) -> Result<(), CopyError> {
    let mut made: Vec<&Path> = Vec::new();
    for wanted in overrides.drives.iter().filter(|drive| drive.copy) {
        let Some(drive) = saved.drives().iter().find(|drive| drive.id == wanted.id) else {
            continue; // refused elsewhere
        };
        if let Err(error) = copy(&drive.path, &wanted.path) {
            for path in made {
                let _ = fs::remove_file(path);
            }
            return Err(CopyError(drive.path.clone(), wanted.path.clone(), error));
        }
        made.push(&wanted.path);
    }
    Ok(())
}

/// Copies a regular file to a place where nothing is.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let metadata = source.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only a regular file can be copied",
        ));
    }
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let copied = match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(_) => copy_data(&mut source, &mut target, metadata.len()),
    };
    copied.inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}

/// Copies the parts that are no holes.
fn copy_data(source: &mut File, target: &mut File, len: u64) -> io::Result<()> {
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let begin = match seek(&*source, At::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&*source, At::Hole(begin))?.min(len);
        source.seek(SeekFrom::Start(begin))?;
        target.seek(SeekFrom::Start(begin))?;
        let copied = io::copy(&mut source.take(end.saturating_sub(begin)), target)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.write_all(b"begin").unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(b"middle").unwrap();
        file.set_len(32 << 20).unwrap();
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        let refused = copy(&from, &to).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert!(to.exists(), "what was there stays");
        assert!(copy(dir.path(), &dir.path().join("x")).is_err());
        assert!(!dir.path().join("x").exists());
    }
}
