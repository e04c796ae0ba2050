// SPDX-License-Identifier: GPL-2.0

//! The two numberings of the interface, which `include/uapi/linux/sysgenid.h` states.

use kernel::{ioctl::_IO, prelude::*};

/// `SYSGENID_IOCTL`.
const MAGIC: u32 = 0xE4;

/// A numbering.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abi {
    /// That of version 5 of the original patches, with our additions at free numbers.
    Seed,
    /// That of versions 6 to 8, which deployed programs use.
    Deployed,
}

/// A command of `ioctl()`.
pub(crate) enum Command {
    /// Wait until no watcher is outdated.
    WaitWatchers,
    /// Begin a generation.
    Force,
    /// Have others wait for this file, or not.
    SetTracking,
    /// Say that an agent has finished.
    Ready,
}

impl Abi {
    /// What the module parameter says.
    pub(crate) fn from_parameter(abi: i32) -> Result<Self> {
        match abi {
            5 => Ok(Self::Seed),
            8 => Ok(Self::Deployed),
            other => {
                pr_err!("abi={other} is none of 5 (the default) and 8\n");
                Err(EINVAL)
            }
        }
    }

    /// The command that a number stands for.
    pub(crate) fn command(self, number: u32) -> Option<Command> {
        const ONE: u32 = _IO(MAGIC, 1);
        const TWO: u32 = _IO(MAGIC, 2);
        const THREE: u32 = _IO(MAGIC, 3);
        const FOUR: u32 = _IO(MAGIC, 4);
        const TEN: u32 = _IO(MAGIC, 10);
        match (self, number) {
            (Self::Seed, ONE) | (Self::Deployed, TWO) => Some(Command::WaitWatchers),
            (Self::Seed, TWO | THREE) | (Self::Deployed, THREE) => Some(Command::Force),
            (Self::Seed, FOUR) | (Self::Deployed, ONE) => Some(Command::SetTracking),
            (_, TEN) => Some(Command::Ready),
            _ => None,
        }
    }

    /// The error for a write that is not a counter's length.
    pub(crate) fn wrong_length(self) -> Error {
        match self {
            Self::Seed => EINVAL,
            Self::Deployed => ENOBUFS,
        }
    }

    /// Whether others wait for a file from its opening on. One that is opened read-only never can
    /// acknowledge.
    pub(crate) fn tracks_at_open(self, writable: bool) -> bool {
        self == Self::Seed && writable
    }

    /// Whether a file can be made to be waited for.
    pub(crate) fn can_track(self, writable: bool) -> bool {
        self == Self::Deployed || writable
    }
}
