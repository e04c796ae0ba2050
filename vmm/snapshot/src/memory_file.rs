//! The memory file: guest memory as it is, and one trailer that says whose memory it is.
//!
//! Region after region in the order of their guest physical addresses, without gaps, so that every
//! region can be mapped from the file. Behind them a page of [`TRAILER_LENGTH`] bytes:
//!
//! | offset | size | field | |
//! |---:|---:|---|---|
//! | 0 | 8 | magic | `VMGENMEM` |
//! | 8 | 2 | version | 1 |
//! | 10 | 6 | reserved | 0 |
//! | 16 | 16 | snapshot ID | the same as in the state file's header |
//! | 32 | 8 | memory length | bytes of guest memory before the trailer |
//! | 40 | 8 | checksum | CRC-64/NVME of the trailer with this field as zero |
//! | 48 | 4048 | reserved | 0 |
//!
//! All numbers are little-endian. The memory itself has no checksum: reading it all would make a
//! restore's time depend on its size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc64fast_nvme::Digest;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{SnapshotId, open_regular};

/// Length of the trailer in bytes.
pub const TRAILER_LENGTH: u64 = size_of::<Trailer>() as u64;
/// The trailer version that this program writes and reads.
pub const TRAILER_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"VMGENMEM";

/// Why a memory file was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// There is no file of that name.
    #[error("it does not exist")]
    Missing,
    /// The file could not be opened or read.
    #[error("it could not be read")]
    Read(#[source] io::Error),
    /// The path names a directory, a device or the like.
    #[error("it is not a regular file")]
    NotAFile,
    /// The file was cut.
    #[error("it is {actual} bytes long instead of {expected}: it was truncated")]
    TooShort {
        /// Length in bytes.
        actual: u64,
        /// Length that it should have, trailer included.
        expected: u64,
    },
    /// The file was extended.
    #[error("it is {actual} bytes long instead of {expected}: something was appended to it")]
    TooLong {
        /// Length in bytes.
        actual: u64,
        /// Length that it should have, trailer included.
        expected: u64,
    },
    /// The file has the right length and not our trailer.
    #[error("it does not end as a memory file of vmgenie does")]
    NoTrailer,
    /// The trailer is ours, and damaged.
    #[error("its trailer is damaged")]
    Damaged,
    /// The trailer is younger than this program.
    #[error(
        "it was made by a newer vmgenie: trailer version {0}, this program reads \
         {TRAILER_VERSION}; restore it with that vmgenie or a later one"
    )]
    NewerTrailer(u16),
    /// The file belongs to another snapshot.
    #[error("it belongs to snapshot {found}, the state file to snapshot {expected}")]
    OtherSnapshot {
        /// The snapshot that the memory file belongs to.
        found: SnapshotId,
        /// The snapshot that the state file belongs to.
        expected: SnapshotId,
    },
}

impl MemoryFileError {
    /// The snapshot that the refused file belongs to, if it is known.
    pub(super) fn found(&self) -> Option<SnapshotId> {
        match self {
            Self::OtherSnapshot { found, .. } => Some(*found),
            _ => None,
        }
    }
}

/// The trailer as it stands in the file.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    magic: [u8; 8],
    version: U16,
    reserved: [u8; 6],
    id: [u8; 16],
    memory_length: U64,
    checksum: U64,
    padding: [u8; 4048],
}

impl Trailer {
    fn computed_checksum(&self) -> u64 {
        let unsigned = Self {
            checksum: U64::ZERO,
            ..*self
        };
        let mut digest = Digest::new();
        digest.write(unsigned.as_bytes());
        digest.sum64()
    }
}

/// Opens the memory file at `path` for reading if it is the whole memory file of snapshot `id` with
/// `memory_length` bytes of guest memory.
///
/// # Errors
/// Says why the file was refused; the caller adds the path.
pub fn open(path: &Path, id: &SnapshotId, memory_length: u64) -> Result<File, MemoryFileError> {
    let (file, length) = open_regular(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MemoryFileError::Missing,
            _ => MemoryFileError::Read(error),
        })?
        .ok_or(MemoryFileError::NotAFile)?;
    check(&file, length, id, memory_length)?;
    Ok(file)
}

/// Checks an open memory file of `length` bytes.
fn check(
    file: &File,
    length: u64,
    id: &SnapshotId,
    memory_length: u64,
) -> Result<(), MemoryFileError> {
    let wrong_length = || {
        let (actual, expected) = (length, memory_length.saturating_add(TRAILER_LENGTH));
        match actual.cmp(&expected) {
            std::cmp::Ordering::Less => Some(MemoryFileError::TooShort { actual, expected }),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(MemoryFileError::TooLong { actual, expected }),
        }
    };
    // The trailer is looked at first, whatever the length: "of another snapshot" says more.
    let trailer = match length.checked_sub(TRAILER_LENGTH) {
        Some(offset) => read_trailer(file, offset).map_err(MemoryFileError::Read)?,
        None => None,
    };
    let Some(trailer) = trailer else {
        return Err(wrong_length().unwrap_or(MemoryFileError::NoTrailer));
    };
    if trailer.version.get() > TRAILER_VERSION {
        return Err(MemoryFileError::NewerTrailer(trailer.version.get()));
    }
    if trailer.computed_checksum() != trailer.checksum.get()
        || trailer.version.get() != TRAILER_VERSION
        || trailer.memory_length.get().checked_add(TRAILER_LENGTH) != Some(length)
    {
        return Err(MemoryFileError::Damaged);
    }
    if trailer.id != *id.as_bytes() {
        let found = SnapshotId::from_bytes(trailer.id);
        return Err(MemoryFileError::OtherSnapshot {
            found,
            expected: *id,
        });
    }
    wrong_length().map_or(Ok(()), Err)
}

/// The trailer at `offset`, if what lies there has the magic of one.
fn read_trailer(file: &File, offset: u64) -> io::Result<Option<Trailer>> {
    let mut trailer = Trailer::new_zeroed();
    file.read_exact_at(trailer.as_mut_bytes(), offset)?;
    Ok((trailer.magic == MAGIC).then_some(trailer))
}

/// Writes the trailer of snapshot `id` behind `memory_length` bytes of memory.
pub(super) fn write_trailer(file: &File, id: &SnapshotId, memory_length: u64) -> io::Result<()> {
    let mut trailer = Trailer {
        magic: MAGIC,
        version: TRAILER_VERSION.into(),
        reserved: [0; 6],
        id: *id.as_bytes(),
        memory_length: memory_length.into(),
        checksum: U64::ZERO,
        padding: [0; 4048],
    };
    trailer.checksum = trailer.computed_checksum().into();
    file.write_all_at(trailer.as_bytes(), memory_length)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const ID: SnapshotId = SnapshotId::from_bytes([7; 16]);
    const OTHER: SnapshotId = SnapshotId::from_bytes([9; 16]);
    const LENGTH: u64 = 64 << 10;

    /// A memory file of [`ID`] that `change` has done something to.
    fn refused(change: impl FnOnce(&Path)) -> MemoryFileError {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("memory");
        let file = File::create_new(&path).unwrap();
        write_trailer(&file, &ID, LENGTH).unwrap();
        open(&path, &ID, LENGTH).expect("the unchanged file is good");
        change(&path);
        open(&path, &ID, LENGTH).unwrap_err()
    }

    fn set_len(path: &Path, length: u64) {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(length)
            .unwrap();
    }

    #[test]
    fn a_missing_file_is_named_as_missing() {
        let error = refused(|path| fs::remove_file(path).unwrap());
        assert!(matches!(error, MemoryFileError::Missing), "{error}");
    }

    #[test]
    fn a_directory_or_a_fifo_is_not_a_memory_file() {
        let error = refused(|path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        });
        assert!(matches!(error, MemoryFileError::NotAFile), "{error}");
        let error = refused(|path| {
            fs::remove_file(path).unwrap();
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        });
        assert!(matches!(error, MemoryFileError::NotAFile), "{error}");
    }

    #[test]
    fn every_cut_at_a_page_and_a_few_others_is_refused_as_short() {
        let lengths = (0..LENGTH + TRAILER_LENGTH).step_by(4096);
        for length in lengths.chain([1, 4095, LENGTH + 1, LENGTH + TRAILER_LENGTH - 1]) {
            let error = refused(|path| set_len(path, length));
            assert!(
                matches!(error, MemoryFileError::TooShort { .. }),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn a_longer_file_is_refused_as_long() {
        for extra in [1, 4095, 4096, 1 << 20] {
            let error = refused(|path| set_len(path, LENGTH + TRAILER_LENGTH + extra));
            assert!(
                matches!(error, MemoryFileError::TooLong { .. }),
                "{extra}: {error}"
            );
        }
    }

    #[test]
    fn a_foreign_file_of_the_right_length_has_no_trailer() {
        let error = refused(|path| {
            fs::write(path, vec![0x5a; (LENGTH + TRAILER_LENGTH) as usize]).unwrap();
        });
        assert!(matches!(error, MemoryFileError::NoTrailer), "{error}");
    }

    #[test]
    fn the_memory_of_another_snapshot_is_refused_with_both_ids_whatever_its_length() {
        for length in [LENGTH, LENGTH / 2, LENGTH * 2] {
            let error = refused(|path| {
                let file = File::create(path).unwrap();
                write_trailer(&file, &OTHER, length).unwrap();
            });
            assert_eq!(
                error.to_string(),
                format!("it belongs to snapshot {OTHER}, the state file to snapshot {ID}")
            );
        }
    }

    #[test]
    fn every_flip_in_the_trailer_is_refused() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("memory");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        write_trailer(&file, &ID, LENGTH).unwrap();
        let mut trailer = [0; TRAILER_LENGTH as usize];
        file.read_exact_at(&mut trailer, LENGTH).unwrap();
        for (offset, byte) in (LENGTH..).zip(trailer) {
            for flip in [0x01, 0x80, 0xff] {
                file.write_all_at(&[byte ^ flip], offset).unwrap();
                open(&path, &ID, LENGTH).expect_err("a flip");
            }
            file.write_all_at(&[byte], offset).unwrap();
        }
        open(&path, &ID, LENGTH).unwrap();
    }

    #[test]
    fn a_newer_trailer_is_refused_with_what_to_do() {
        let error = refused(|path| {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[2], LENGTH + 8).unwrap();
        });
        assert!(matches!(error, MemoryFileError::NewerTrailer(2)), "{error}");
    }
}
