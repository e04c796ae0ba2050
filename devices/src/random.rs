//! The host's random numbers, by the system call alone: a static program in an empty root directory has no `/dev/random` to fall back to.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Why the host has no random numbers to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host has no random numbers to give")]
pub struct RandomError(#[source] pub Errno);

/// Fills `bytes` with random numbers. Waits only on a host that has just booted and has none yet.
///
/// # Errors
/// The system call is not there or not allowed.
pub fn fill(mut bytes: &mut [u8]) -> Result<(), RandomError> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(RandomError(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_filled_however_long_it_is() {
        // The kernel gives 32 MiB at a time; more than 256 bytes may be interrupted.
        for len in [0, 1, 16, 257, 4096, (32 << 20) + 64] {
            let mut bytes = vec![0; len];
            fill(&mut bytes).unwrap();
            let end = &bytes[len.saturating_sub(64)..];
            assert!(len < 16 || end.iter().any(|byte| *byte != 0), "{len}");
        }
    }
}
