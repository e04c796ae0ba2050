//! What the five examples share: a secret that has to be another one in every generation.

use std::env;
use std::error::Error;
use std::fmt;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Sixteen bytes that no two clones may share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secret([u8; 16]);

impl Secret {
    /// The driver tells of a generation after the kernel's random number generator has been
    /// reseeded, so what is drawn then differs between clones.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub(crate) fn make() -> Result<Self, Errno> {
        let mut bytes = [0; 16];
        // Up to 256 bytes are never drawn in part, nor interrupted.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The first argument: after how many generations to end. Without one, never.
///
/// # Errors
/// When it is no number.
pub(crate) fn limit() -> Result<u64, Box<dyn Error>> {
    match env::args().nth(1) {
        None => Ok(u64::MAX),
        Some(text) => Ok(text.parse().map_err(|error| format!("{text}: {error}"))?),
    }
}
