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
use crate::snapshot::open_regular;

/// An image could not be copied.
#[derive(Debug, Error)]
#[error("could not copy the drive {0} to {1}")]
pub struct CopyError(PathBuf, PathBuf, #[source] io::Error);

/// Copies of images. They go with this, unless they are kept.
#[derive(Debug, Default)]
pub struct Copies(Vec<PathBuf>);

impl Copies {
    /// The machine that they are for is there.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes the copies that `overrides` ask for, of the images that `saved` names. If one fails, none stays.
pub fn copy_drives(
    saved: &DevicesConfig,
    overrides: &DeviceOverrides,
) -> Result<Copies, CopyError> {
    let mut made = Copies::default();
    for wanted in overrides.drives.iter().filter(|drive| drive.copy) {
        let Some(drive) = saved.drives().iter().find(|drive| drive.id == wanted.id) else {
            continue; // refused elsewhere
        };
        copy(&drive.path, &wanted.path)
            .map_err(|error| CopyError(drive.path.clone(), wanted.path.clone(), error))?;
        made.0.push(wanted.path.clone());
    }
    Ok(made)
}

/// Copies a regular file to a place where nothing is.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    // The path may be a state file's: opening a pipe must not wait for its other end.
    let Some((mut source, len)) = open_regular(from)? else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only a regular file can be copied",
        ));
    };
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let copied = match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(_) => copy_data(&mut source, &mut target, len),
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
        if copied == 0 || copied < end.saturating_sub(begin) {
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
        // Nobody writes to it: an open that waits for that would hang.
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        assert!(copy(&pipe, &dir.path().join("x")).is_err());
        assert!(copy(dir.path(), &dir.path().join("x")).is_err());
        assert!(!dir.path().join("x").exists());
    }
    #[test]
    fn copies_go_unless_the_machine_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        for kept in [false, true] {
            fs::write(&path, "").unwrap();
            let copies = Copies(vec![path.clone()]);
            if kept {
                copies.keep();
            } else {
                drop(copies);
            }
            assert_eq!(path.exists(), kept);
        }
    }
}
