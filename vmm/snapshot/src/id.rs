//! The name that the two files of a snapshot share.

use std::{fmt, io};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Names one snapshot: 16 random bytes that its state file and its memory file both carry, so that
/// a state file cannot be paired with the memory of another snapshot unnoticed.
///
/// It has nothing to do with the generation ID that the guest sees, and is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId([u8; 16]);

impl SnapshotId {
    /// Draws a new identifier from the operating system.
    ///
    /// # Errors
    /// Returns the operating system's error when it has no random bytes to give.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // By the system call alone: a static program in an empty root directory has no `/dev/random` to fall back to. So
        // few bytes are given whole or not at all.
        while let Err(error) = getrandom(&mut bytes, GetRandomFlags::empty()) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        Ok(Self(bytes))
    }

    /// The identifier that consists of `bytes`.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as they stand in both files.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads what [`Display`](fmt::Display) writes: 32 lower-case hexadecimal digits.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if text.len() != 32 {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_survives_its_text_form() {
        let id = SnapshotId::generate().unwrap();
        assert_eq!(SnapshotId::from_hex(id.to_string().as_bytes()), Some(id));
    }

    #[test]
    fn other_text_is_not_an_identifier() {
        for text in ["", "00", "0123456789ABCDEF0123456789ABCDEF"] {
            assert_eq!(SnapshotId::from_hex(text.as_bytes()), None, "{text}");
        }
    }
}
