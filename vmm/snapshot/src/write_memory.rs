//! Writing guest memory into a memory file: only what exists, and of that only what is not zero.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::MemorySource;
use super::pagemap::{Pagemap, page_size};
use crate::end_request::{self, Ended, LOOK_EVERY};

/// Bytes copied at once where the kernel does not copy by itself.
const COPY_CHUNK: usize = 1 << 20;

/// Why guest memory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteMemoryError {
    /// The stretches of memory do not follow each other in the file.
    #[error(
        "guest memory for offset {found:#x} of the memory file does not follow what ends at \
         {expected:#x}"
    )]
    NotContiguous {
        /// Offset of the stretch.
        found: u64,
        /// End of the stretches before it.
        expected: u64,
    },
    /// The file that a clone's memory is mapped from has become shorter.
    #[error(
        "the memory file that this machine was restored from has {actual} bytes, {needed} are \
         needed: it was truncated"
    )]
    BaseTruncated {
        /// Its length in bytes.
        actual: u64,
        /// Bytes that the mapping covers.
        needed: u64,
    },
    /// What the base holds could not be copied.
    #[error("could not copy {length} bytes from the base memory file")]
    CopyBase {
        /// Bytes that were to be copied.
        length: u64,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file could not be given its length.
    #[error("could not make room for {length} bytes of guest memory")]
    Resize {
        /// Length in bytes, trailer included.
        length: u64,
        /// What the operating system says.
        source: io::Error,
    },
    /// The kernel did not say which pages exist.
    #[error("could not find the touched pages of guest memory in /proc/self/pagemap")]
    Pagemap(#[from] io::Error),
    /// There is no time for the rest.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// Pages could not be written.
    #[error("could not write {length} bytes of guest memory at offset {offset:#x}")]
    Write {
        /// Offset in the memory file.
        offset: u64,
        /// Length in bytes.
        length: usize,
        /// What the operating system says.
        source: io::Error,
    },
}

/// What a memory file was made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of guest memory that the file stands for.
    pub memory_length: u64,
    /// Bytes of memory that exist or, over a base, were changed.
    pub touched: u64,
    /// Bytes of those that were written; the rest was zero.
    pub written: u64,
}

/// Checks that `sources` lie in the file one after the other from offset 0 on; returns the end.
pub(super) fn total_length(sources: &[MemorySource<'_>]) -> Result<u64, WriteMemoryError> {
    sources.iter().try_fold(0, |expected: u64, source| {
        let found = source.file_offset();
        match expected.checked_add(source.length() as u64) {
            Some(end) if found == expected => Ok(end),
            _ => Err(WriteMemoryError::NotContiguous { found, expected }),
        }
    })
}

/// Copies what the bases of `sources` hold. Reads only files, never guest memory.
pub(super) fn copy_bases(out: &File, sources: &[MemorySource<'_>]) -> Result<(), WriteMemoryError> {
    for source in sources {
        if let Some((base, offset)) = source.base() {
            copy_base(out, source, base, offset)?;
        }
    }
    Ok(())
}

fn copy_base(
    out: &File,
    source: &MemorySource<'_>,
    base: &File,
    offset: u64,
) -> Result<(), WriteMemoryError> {
    let length = source.length() as u64;
    let failed = |source| WriteMemoryError::CopyBase { length, source };
    let actual = base.metadata().map_err(failed)?.len();
    match offset.checked_add(length) {
        Some(needed) if needed <= actual => {}
        needed => {
            let needed = needed.unwrap_or(u64::MAX);
            return Err(WriteMemoryError::BaseTruncated { actual, needed });
        }
    }
    let mut rest = offset..offset + length;
    while let Some(data) = next_extent(base, &rest).map_err(failed)? {
        let at = source.file_offset() + (data.start - offset);
        copy_range(base, &data, out, at).map_err(failed)?;
        rest.start = data.end;
    }
    Ok(())
}

/// The next stretch of `range` that is not a hole in `file`.
fn next_extent(file: &File, range: &Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(range.start)) {
        Ok(start) if start < range.end => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes has data everywhere.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(range.clone())),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..end.min(range.end)))
}

/// Copies `range` of `base` to offset `at` of `out`, in the kernel where the file systems allow it:
/// where they can, both files then share the blocks.
fn copy_range(base: &File, range: &Range<u64>, out: &File, at: u64) -> io::Result<()> {
    let mut from = range.start;
    let mut to = at;
    while from < range.end {
        end_request::check()?;
        let left = usize::try_from(range.end - from).unwrap_or(usize::MAX);
        let left = left.min(LOOK_EVERY);
        match rustix::fs::copy_file_range(base, Some(&mut from), out, Some(&mut to), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_through_memory(base, from..range.end, out, to);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(base: &File, range: Range<u64>, out: &File, at: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_CHUNK];
    for from in range.clone().step_by(COPY_CHUNK) {
        end_request::check()?;
        let length = (range.end - from).min(COPY_CHUNK as u64) as usize;
        let chunk = &mut buffer[..length];
        base.read_exact_at(chunk, from)?;
        out.write_all_at(chunk, at + (from - range.start))?;
    }
    Ok(())
}

/// Writes the pages of `sources` that exist (over a base: that were changed) and are not zero.
/// The bases have been copied.
pub(super) fn write_changed(
    out: &File,
    sources: &[MemorySource<'_>],
) -> Result<Written, WriteMemoryError> {
    match Pagemap::open() {
        Ok(pagemap) => write_by_pagemap(out, sources, pagemap),
        // A jail may lack /proc.
        Err(error) => {
            tracing::warn!(%error, "without /proc/self/pagemap all of the guest's memory is read, which takes longer");
            write_by_content(out, sources)
        }
    }
}

fn write_by_pagemap(
    out: &File,
    sources: &[MemorySource<'_>],
    mut pagemap: Pagemap,
) -> Result<Written, WriteMemoryError> {
    let mut written = Written {
        memory_length: total_length(sources)?,
        ..Written::default()
    };
    let mut until_look = 0;
    for source in sources {
        pagemap.changed(source.address(), source.length(), |run| {
            written.touched += run.len() as u64;
            for start in run.clone().step_by(LOOK_EVERY) {
                let length = LOOK_EVERY.min(run.end - start);
                look_at_times(&mut until_look, length)?;
                let bytes = source.bytes(start, length);
                written.written += write_run(out, source, start, bytes)?;
            }
            Ok::<_, WriteMemoryError>(())
        })?;
    }
    Ok(written)
}

/// Looks whether this process shall end, but not for each of many small runs.
fn look_at_times(until_look: &mut usize, length: usize) -> Result<(), Ended> {
    if *until_look == 0 && end_request::is_pending() {
        return Err(Ended);
    }
    *until_look = match *until_look {
        0 => LOOK_EVERY,
        left => left,
    }
    .saturating_sub(length);
    Ok(())
}

/// The same by looking at all of the memory, which may be in swap or in the base: what is zero or as in the base need not be written.
fn write_by_content(out: &File, sources: &[MemorySource<'_>]) -> Result<Written, WriteMemoryError> {
    let mut written = Written {
        memory_length: total_length(sources)?,
        ..Written::default()
    };
    let (mut now, mut then) = (vec![0; COPY_CHUNK], vec![0; COPY_CHUNK]);
    for source in sources {
        for start in (0..source.length()).step_by(COPY_CHUNK) {
            if end_request::is_pending() {
                return Err(Ended.into());
            }
            let length = COPY_CHUNK.min(source.length() - start);
            let (now, then) = (&mut now[..length], &mut then[..length]);
            source.read(start, now);
            if let Some((base, offset)) = source.base() {
                let failed = |source| WriteMemoryError::CopyBase {
                    length: length as u64,
                    source,
                };
                base.read_exact_at(then, offset + start as u64)
                    .map_err(failed)?;
            }
            for run in differences(now, then) {
                written.touched += run.len() as u64;
                written.written += write_run(out, source, start + run.start, &now[run])?;
            }
        }
    }
    Ok(written)
}

/// The runs of pages in which `now` is not as `then`.
fn differences(now: &[u8], then: &[u8]) -> Vec<Range<usize>> {
    let size = page_size();
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (page, (now, then)) in now.chunks(size).zip(then.chunks(size)).enumerate() {
        let start = page * size;
        match runs.last_mut() {
            _ if now == then => {}
            Some(run) if run.end == start => run.end += now.len(),
            _ => runs.push(start..start + now.len()),
        }
    }
    runs
}

/// Writes a run of pages, `bytes` from `at` of `source` on, without those that are zero; returns the bytes written.
fn write_run(
    out: &File,
    source: &MemorySource<'_>,
    at: usize,
    bytes: &[u8],
) -> Result<u64, WriteMemoryError> {
    let mut written = 0;
    let mut pages = bytes.chunks(page_size()).map(is_zero).peekable();
    let mut start = 0;
    while let Some(zero) = pages.next() {
        let mut length = page_size();
        while pages.next_if_eq(&zero).is_some() {
            length += page_size();
        }
        let offset = source.file_offset() + (at + start) as u64;
        let stretch = &bytes[start..start + length];
        let result = match (zero, source.base()) {
            // A file that is new has a hole there already.
            (true, None) => Ok(()),
            (true, Some(_)) => clear(out, offset, stretch),
            (false, _) => {
                written += length as u64;
                out.write_all_at(stretch, offset)
            }
        };
        result.map_err(|source| WriteMemoryError::Write {
            offset,
            length,
            source,
        })?;
        start += length;
    }
    Ok(written)
}

/// Makes a stretch of the file zero again that the base may have filled; `zeros` is as long.
fn clear(out: &File, offset: u64, zeros: &[u8]) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(out, flags, offset, zeros.len() as u64) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => out.write_all_at(zeros, offset),
        result => Ok(result?),
    }
}

/// Whether a page is all zero. Most pages that are not show it in their first bytes.
fn is_zero(page: &[u8]) -> bool {
    const STEP: usize = 256;
    page.chunks(STEP)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
#[path = "write_memory_test.rs"]
mod tests;
