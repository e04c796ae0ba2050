//! A drive of its own for a clone.
//!
//! The copy is made by the file system where it can share blocks until one side writes (`FICLONE`: btrfs, XFS, bcachefs): that takes a
//! moment whatever the size. Elsewhere the data is copied and the holes are not. A layer of our own over the image would be quick
//! everywhere, but would bind each clone to a file that must never change again, put a map and its crash consistency into every
//! request, and give up the raw format that any other tool can read.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use thiserror::Error;

use super::{DriveError, Image};

/// The most that is copied by one system call.
const AT_ONCE: u64 = 64 << 20;

/// Why a drive could not be copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The image.
    #[error(transparent)]
    Image(#[from] DriveError),
    /// The copy.
    #[error("could not make {}", .0.display())]
    Create(PathBuf, #[source] io::Error),
    /// Reading or writing.
    #[error("could not copy {} to {}", .from.display(), .to.display())]
    Copy {
        /// The image.
        from: PathBuf,
        /// The copy, which was removed.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes `to`, which must not be there yet, a copy of the image `from`, which nobody may be writing to: its lock is taken meanwhile.
///
/// It is not synced: a copy that a crash of the host has spoilt is made again, with its clone.
///
/// # Errors
/// `from` is in use by a microVM that may write to it; `to` is there already; there is no space.
pub fn copy_image(from: &Path, to: &Path) -> Result<(), CopyError> {
    let image = Image::open(from, true)?;
    let copy = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(|source| CopyError::Create(to.to_owned(), source))?;
    copy_file(&image.file, &copy).map_err(|source| {
        // It is ours: it was not there before.
        let _ = fs::remove_file(to);
        CopyError::Copy {
            from: from.to_owned(),
            to: to.to_owned(),
            source,
        }
    })
}

fn copy_file(from: &File, to: &File) -> io::Result<()> {
    if from.metadata().as_ref().is_ok_and(Metadata::is_file)
        && rustix::fs::ioctl_ficlone(to, from).is_ok()
    {
        return Ok(());
    }
    let size = rustix::fs::seek(from, SeekFrom::End(0))?;
    to.set_len(size)?;
    let mut at = 0;
    while let Some((begin, end)) = next_data(from, at, size)? {
        copy_range(from, to, begin, end)?;
        at = end;
    }
    Ok(())
}

/// The next range that is not a hole. A block device is one range.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((at, size))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(begin))?.min(size);
    Ok((begin < end).then_some((begin, end)))
}

fn copy_range(from: &File, to: &File, begin: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (begin, begin);
    while source < end {
        let len = usize::try_from((end - source).min(AT_ONCE)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), len) {
            // The image has become shorter: so has the copy's data.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // Two file systems, on older kernels, or a block device.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_by_hand(from, to, source, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let len = buffer
            .len()
            .min(usize::try_from(end - at).unwrap_or(usize::MAX));
        match from.read_at(&mut buffer[..len], at) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                to.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
