//! The fixed header of a state file, readable without decoding anything behind it.
//!
//! | offset | size | field | |
//! |---:|---:|---|---|
//! | 0 | 8 | magic | `VMGENIE\0` |
//! | 8 | 2 | format | version of everything that follows |
//! | 10 | 2 | architecture | the ELF `e_machine` of the guest |
//! | 12 | 4 | flags | 0 |
//! | 16 | 8 | payload length | bytes after the header; the file ends there |
//! | 24 | 8 | memory length | bytes of guest memory in the memory file |
//! | 32 | 16 | snapshot ID | the same as in the memory file's trailer |
//! | 48 | 8 | checksum | CRC-64/NVME of the file with this field as zero |
//!
//! All numbers are little-endian. Every byte of the file is under the checksum, which is verified
//! before the payload is decoded.

use std::io::Read;
use std::path::Path;

use crc64fast_nvme::Digest;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{SnapshotId, open_regular};

/// The state format that this program writes.
pub const FORMAT: u16 = 1;
/// The oldest state format that this program reads; [`FORMAT`] is the newest.
pub const OLDEST_FORMAT: u16 = 1;
/// Length of the header in bytes.
pub const HEADER_LENGTH: usize = size_of::<RawHeader>();
/// Longest payload, in bytes, that is written or read. 32 vCPUs with every register extension
/// of today take about 1 MiB.
pub const MAX_PAYLOAD_LENGTH: usize = 16 << 20;

const MAGIC: [u8; 8] = *b"VMGENIE\0";

/// `EM_X86_64` of the ELF specification.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u16 = 62;
/// `EM_AARCH64` of the ELF specification.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u16 = 183;

/// Why a state file was refused before its payload was looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends before its header does.
    #[error("it is {0} bytes long, shorter than the {HEADER_LENGTH}-byte header of a state file")]
    TooShort(usize),
    /// The file does not begin as a state file of ours does.
    #[error("it is not a vmgenie state file")]
    NotAStateFile,
    /// The format is younger than this program.
    #[error(
        "it was made by a newer vmgenie: state format {0}, this program reads \
         {OLDEST_FORMAT}..={FORMAT}; restore it with that vmgenie or a later one"
    )]
    NewerFormat(u16),
    /// The format is one that this program no longer reads, or never existed.
    #[error(
        "it has state format {0}, this program reads {OLDEST_FORMAT}..={FORMAT}; restore it with \
         the vmgenie that made it"
    )]
    OlderFormat(u16),
    /// The guest ran on another architecture.
    #[error(
        "its guest ran on ELF machine {0}, this program runs {ARCHITECTURE}; restore it on a host \
         of its own architecture"
    )]
    OtherArchitecture(u16),
    /// Flags are set that this format does not define.
    #[error("its header sets flags {0:#x} that state format {FORMAT} does not define")]
    UnknownFlags(u32),
    /// The header announces more than any state needs.
    #[error("its header announces {0} bytes of state, the limit is {MAX_PAYLOAD_LENGTH}")]
    TooLong(u64),
    /// The file is shorter or longer than its header says.
    #[error("it holds {actual} bytes of state, its header says {announced}: truncated or extended")]
    Length {
        /// Bytes that the header announces.
        announced: u64,
        /// Bytes that the file has after its header.
        actual: u64,
    },
    /// A byte of the file has changed since it was written.
    #[error("its checksum is {computed:#018x}, its header says {stored:#018x}: it is damaged")]
    Checksum {
        /// The checksum in the header.
        stored: u64,
        /// The checksum of what is there.
        computed: u64,
    },
}

/// The header as it stands in the file.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    format: U16,
    architecture: U16,
    flags: U32,
    payload_length: U64,
    memory_length: U64,
    id: [u8; 16],
    checksum: U64,
}

impl RawHeader {
    /// The checksum of a file that consists of this header and `payload`.
    fn checksum_with(&self, payload: &[u8]) -> u64 {
        let unsigned = Self {
            checksum: U64::ZERO,
            ..*self
        };
        let mut digest = Digest::new();
        digest.write(unsigned.as_bytes());
        digest.write(payload);
        digest.sum64()
    }
}

/// What the header of a state file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// State format of the file, in [`OLDEST_FORMAT`]`..=`[`FORMAT`].
    pub format: u16,
    /// Bytes of payload behind the header, at most [`MAX_PAYLOAD_LENGTH`].
    pub payload_length: u64,
    /// Bytes of guest memory in the memory file that belongs to this state file.
    pub memory_length: u64,
    /// The snapshot that both files belong to.
    pub id: SnapshotId,
}

impl Header {
    /// The header of the state file at `path`, unverified as in [`Header::peek`]; none if there is no such file.
    pub fn read(path: &Path) -> Option<Self> {
        let (mut file, _) = open_regular(path).ok()??;
        let mut bytes = [0; HEADER_LENGTH];
        file.read_exact(&mut bytes).ok()?;
        Self::peek(&bytes).ok()
    }

    /// Reads the header at the start of `bytes` without looking at, or needing, what follows.
    /// The checksum is not verified: what this returns is a hint until [`Header::verify`] agrees.
    ///
    /// # Errors
    /// Returns the first reason why this is not the header of a state file for this program.
    pub fn peek(bytes: &[u8]) -> Result<Self, HeaderError> {
        Self::parse(bytes).map(|(header, _, _)| header)
    }

    /// Reads and verifies a whole state file; returns its header and its payload.
    ///
    /// # Errors
    /// Returns the first reason why this is not a whole, undamaged state file for this program.
    pub fn verify(bytes: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let (header, raw, payload) = Self::parse(bytes)?;
        let actual = payload.len() as u64;
        if header.payload_length != actual {
            return Err(HeaderError::Length {
                announced: header.payload_length,
                actual,
            });
        }
        let (stored, computed) = (raw.checksum.get(), raw.checksum_with(payload));
        if stored != computed {
            return Err(HeaderError::Checksum { stored, computed });
        }
        Ok((header, payload))
    }

    fn parse(bytes: &[u8]) -> Result<(Self, &RawHeader, &[u8]), HeaderError> {
        let (raw, payload) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| HeaderError::TooShort(bytes.len()))?;
        if raw.magic != MAGIC {
            return Err(HeaderError::NotAStateFile);
        }
        match raw.format.get() {
            format if format > FORMAT => return Err(HeaderError::NewerFormat(format)),
            format if format < OLDEST_FORMAT => return Err(HeaderError::OlderFormat(format)),
            _ => {}
        }
        if raw.architecture.get() != ARCHITECTURE {
            return Err(HeaderError::OtherArchitecture(raw.architecture.get()));
        }
        if raw.flags.get() != 0 {
            return Err(HeaderError::UnknownFlags(raw.flags.get()));
        }
        if raw.payload_length.get() > MAX_PAYLOAD_LENGTH as u64 {
            return Err(HeaderError::TooLong(raw.payload_length.get()));
        }
        let header = Self {
            format: raw.format.get(),
            payload_length: raw.payload_length.get(),
            memory_length: raw.memory_length.get(),
            id: SnapshotId::from_bytes(raw.id),
        };
        Ok((header, raw, payload))
    }

    /// The state file that carries `payload`, which the caller has checked against
    /// [`MAX_PAYLOAD_LENGTH`].
    pub fn seal(id: SnapshotId, memory_length: u64, payload: &[u8]) -> Vec<u8> {
        let mut raw = RawHeader {
            magic: MAGIC,
            format: FORMAT.into(),
            architecture: ARCHITECTURE.into(),
            flags: U32::ZERO,
            payload_length: (payload.len() as u64).into(),
            memory_length: memory_length.into(),
            id: *id.as_bytes(),
            checksum: U64::ZERO,
        };
        raw.checksum = raw.checksum_with(payload).into();
        [raw.as_bytes(), payload].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SnapshotId = SnapshotId::from_bytes(*b"0123456789abcdef");

    fn sample() -> Vec<u8> {
        Header::seal(ID, 128 << 20, b"the payload")
    }

    /// A sample whose header was changed by `change` and whose checksum agrees with the change.
    fn forged(change: impl FnOnce(&mut RawHeader)) -> Vec<u8> {
        let mut bytes = sample();
        let (raw, payload) = RawHeader::mut_from_prefix(&mut bytes).unwrap();
        change(raw);
        raw.checksum = raw.checksum_with(payload).into();
        bytes
    }

    #[test]
    fn the_header_is_56_bytes_and_little_endian() {
        let bytes = sample();
        assert_eq!(HEADER_LENGTH, 56);
        assert_eq!(bytes[..8], *b"VMGENIE\0");
        assert_eq!(bytes[8..16], [1, 0, ARCHITECTURE as u8, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [11, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..32], [0, 0, 0, 8, 0, 0, 0, 0]);
        assert_eq!(bytes[32..48], *ID.as_bytes());
    }

    #[test]
    fn the_header_can_be_read_without_the_payload() {
        let header = Header::peek(&sample()[..HEADER_LENGTH]).unwrap();
        assert_eq!((header.id, header.memory_length), (ID, 128 << 20));
    }

    #[test]
    fn a_whole_file_gives_its_payload() {
        assert_eq!(Header::verify(&sample()).unwrap().1, b"the payload");
    }

    #[test]
    fn another_kind_of_file_is_named_as_such() {
        let elf = forged(|raw| raw.magic = *b"\x7fELF\x02\x01\x01\0");
        assert_eq!(
            Header::verify(&elf).unwrap_err(),
            HeaderError::NotAStateFile
        );
        assert_eq!(
            Header::verify(b"short").unwrap_err(),
            HeaderError::TooShort(5)
        );
    }

    #[test]
    fn a_newer_format_is_refused_with_what_to_do() {
        let newer = forged(|raw| raw.format = 3.into());
        assert_eq!(
            Header::verify(&newer).unwrap_err().to_string(),
            "it was made by a newer vmgenie: state format 3, this program reads 1..=1; restore it \
             with that vmgenie or a later one"
        );
        let zero = forged(|raw| raw.format = 0.into());
        assert_eq!(
            Header::verify(&zero).unwrap_err(),
            HeaderError::OlderFormat(0)
        );
    }

    #[test]
    fn another_architecture_and_undefined_flags_are_refused() {
        let other = forged(|raw| raw.architecture = 243.into());
        assert_eq!(
            Header::verify(&other).unwrap_err(),
            HeaderError::OtherArchitecture(243)
        );
        let flags = forged(|raw| raw.flags = 2.into());
        assert_eq!(
            Header::verify(&flags).unwrap_err(),
            HeaderError::UnknownFlags(2)
        );
    }

    #[test]
    fn a_length_that_is_not_the_files_is_refused() {
        let mut long = sample();
        long.push(0);
        assert_eq!(
            Header::verify(&long).unwrap_err(),
            HeaderError::Length {
                announced: 11,
                actual: 12
            }
        );
        let huge = forged(|raw| raw.payload_length = u64::MAX.into());
        assert_eq!(
            Header::verify(&huge).unwrap_err(),
            HeaderError::TooLong(u64::MAX)
        );
    }

    #[test]
    fn a_flip_in_the_payload_is_seen_by_the_checksum() {
        let mut bytes = sample();
        bytes[HEADER_LENGTH] ^= 0x80;
        assert!(matches!(
            Header::verify(&bytes),
            Err(HeaderError::Checksum { .. })
        ));
    }
}
