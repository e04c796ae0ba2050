//! Copies of files: shared blocks where the file system can, holes in any case.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{SeekFrom as At, ioctl_ficlone, seek};
use rustix::io::Errno;
use vmgenie_snapshot::end_request::{self, LOOK_EVERY};

use super::extents;
use super::overlay_error::OverlayError;
use crate::backends::found::FileStamp;

/// Makes a file in a place where nothing is.
pub(in crate::backends) fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// What is said of anything but a regular file.
pub(in crate::backends) fn no_file() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "only a regular file can be copied",
    )
}

/// Copies an open regular file, which is an overlay if it is `layered`, to a place where nothing is.
pub(in crate::backends) fn copy_file(
    mut source: File,
    to: &Path,
    layered: bool,
) -> io::Result<File> {
    let metadata = source.metadata()?;
    if !metadata.is_file() {
        return Err(no_file());
    }
    let mut target = new_file(to)?;
    let before = FileStamp::of(&source)?;
    // On another file system it would be a copy that no restore takes.
    let fits = match layered {
        true => extents::check(&target).map_err(io::Error::other),
        false => Ok(()),
    };
    let copied = fits.and_then(|()| match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(_) => copy_data(&mut source, &mut target, metadata.len()),
    });
    let copied = copied.and_then(|()| match FileStamp::of(&source)? == before {
        true => Ok(()),
        false => Err(io::Error::other("it was written to while it was copied")),
    });
    // There may be more in the copy than there was: a file system with huge pages has no smaller ones.
    let copied = copied.and_then(
        |()| match layered && !extents::are_the_same(&source, &target)? {
            false => Ok(()),
            true => Err(io::Error::other(OverlayError::FileSystem)),
        },
    );
    if let Err(error) = copied {
        let _ = fs::remove_file(to);
        return Err(error);
    }
    Ok(target)
}

/// Copies the parts that are no holes, unless this process is told to end.
pub(in crate::backends) fn copy_data(
    source: &mut File,
    target: &mut File,
    len: u64,
) -> io::Result<()> {
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let begin = match seek(&*source, At::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end_request::check()?;
        let end = seek(&*source, At::Hole(begin))?.min(len);
        let end = end.min(begin.saturating_add(LOOK_EVERY as u64));
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
