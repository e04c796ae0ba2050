//! Which parts of a file were written. An overlay relies on it: a hole is the base's, all else its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatfs, seek};
use rustix::io::Errno;
use vmgenie_snapshot::NamedFile;

use super::overlay_error::{GRANULE, OverlayError};

/// File systems whose `SEEK_DATA` tells exactly what was written, zeros as well: ext4, XFS, Btrfs, tmpfs, and overlayfs, which has one of
/// them below itself.
const FILE_SYSTEMS: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, TMPFS, OVERLAYFS];
/// linux/magic.h
pub(super) const TMPFS: u32 = 0x0102_1994;
const OVERLAYFS: u32 = 0x794c_7630;
/// The most parts of an overlay that is moved by overlayfs: they take 16 MiB of memory.
const MAX_PARTS: usize = 1 << 20;

/// Whether the file system tells which parts of a file were written, and these alone.
pub(in crate::backends) fn check(file: &File) -> Result<(), OverlayError> {
    let system = fstatfs(file).map_err(io::Error::from)?;
    let kind = system.f_type as u32;
    let known = FILE_SYSTEMS.contains(&kind) && system.f_bsize as u64 == GRANULE;
    // With huge pages a tmpfs has whole ones where one byte was written, and says so here.
    let may_be_huge = [TMPFS, OVERLAYFS].contains(&kind);
    if !known || may_be_huge && file.metadata()?.blksize() != GRANULE {
        return Err(OverlayError::FileSystem);
    }
    Ok(())
}

/// The next part of the file, between two offsets, that is no hole.
fn next_written(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let begin = match seek(file, SeekFrom::Data(at)) {
        Ok(begin) if begin < end => begin,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let hole = seek(file, SeekFrom::Hole(begin))?;
    Ok(Some((begin, hole.min(end))))
}

/// The parts of the file, between two offsets, that are no holes.
pub(super) fn each_written(
    file: &File,
    mut at: u64,
    end: u64,
    mut each: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    while let Some((begin, hole)) = next_written(file, at, end)? {
        each(begin, hole)?;
        at = hole;
    }
    Ok(())
}

/// Whether a copy has the same holes as its original.
pub(in crate::backends) fn are_the_same(one: &File, other: &File) -> io::Result<bool> {
    let len = one.metadata()?.len();
    let mut at = 0;
    loop {
        let next = next_written(one, at, len)?;
        if next != next_written(other, at, len)? {
            return Ok(false);
        }
        match next {
            Some((_, hole)) => at = hole,
            None => return Ok(true),
        }
    }
}

/// An overlay's holes before it is opened for writing. That moves a file that overlayfs has in a lower layer to the upper one, and holes of less than
/// 1 MiB come out as zeros.
pub(super) struct BeforeMove {
    parts: Vec<(u64, u64)>,
    modified: (i64, i64),
    len: u64,
}

impl BeforeMove {
    /// None on other file systems.
    pub(super) fn of(found: &NamedFile) -> Result<Option<Self>, OverlayError> {
        if found.file_system()? != OVERLAYFS {
            return Ok(None);
        }
        let file = found.open(false)?;
        let metadata = file.metadata()?;
        let mut parts = Vec::new();
        each_written(&file, 0, metadata.len(), |begin, hole| {
            if parts.len() == MAX_PARTS {
                return Err(io::Error::other("it has too many parts for overlayfs"));
            }
            parts.push((begin, hole));
            Ok(())
        })?;
        Ok(Some(Self {
            parts,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            len: metadata.len(),
        }))
    }

    /// Makes holes again of what was one. `file` is open for writing and locked.
    pub(super) fn restore(&self, file: &File) -> Result<(), OverlayError> {
        let metadata = file.metadata()?;
        let now = (metadata.mtime(), metadata.mtime_nsec());
        if now != self.modified || metadata.len() != self.len {
            let what = "it was written to while it was opened";
            return Err(io::Error::other(what).into());
        }
        let mut changed = false;
        let mut parts = self.parts.iter().copied().peekable();
        each_written(file, 0, self.len, |mut at, end| {
            while at < end {
                // What is behind the last one was a hole.
                while parts.next_if(|(_, hole)| *hole <= at).is_some() {}
                let (begin, hole) = parts.peek().copied().unwrap_or((end, end));
                if begin > at {
                    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(file, punch, at, begin.min(end) - at)?;
                    changed = true;
                }
                at = hole.min(end);
            }
            Ok(())
        })?;
        if changed {
            // It is what it was, for a snapshot that refers to it as well.
            file.set_modified(metadata.modified()?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "extents_test.rs"]
mod tests;
