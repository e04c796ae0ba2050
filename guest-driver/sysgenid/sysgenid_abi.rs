// SPDX-License-Identifier: GPL-2.0

//! The two numberings of the interface, which `include/uapi/linux/sysgenid.h` states.

use kernel::{
    ioctl::{_IO, _IOR, _IOW, _IOWR},
    prelude::*,
    transmute::{AsBytes, FromBytes},
};

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
    /// Take part in fork points.
    SetRole,
    /// Ask what the hypervisor wants.
    GetRequest,
    /// Sleep until that is over.
    Park,
    /// Wait for those who do.
    WaitParked,
    /// Have the machine stand still.
    ForkPoint,
    /// Say that an agent has made it another machine.
    Identity,
    /// Refuse what the hypervisor wants.
    Refuse,
}

/// What the hypervisor asks for: `struct sysgenid_request`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Request {
    pub(crate) ticket: u32,
    pub(crate) limit_ms: u32,
    pub(crate) flags: u32,
    pub(crate) reserved: u32,
}

/// All CPUs stand still for a snapshot: `struct sysgenid_fork_point`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct ForkPoint {
    pub(crate) size: u32,
    pub(crate) flags: u32,
    pub(crate) ticket: u32,
    pub(crate) timeout_ms: u32,
    pub(crate) result: u32,
    pub(crate) counter: u32,
    pub(crate) realtime: u64,
}

impl ForkPoint {
    /// Hooks have run, programs are frozen, participants are parked.
    pub(crate) const DONE: u32 = 0x7;
    /// The last of these: all that there are.
    pub(crate) const PARKED: u32 = 0x4;
    /// The machine asks for a snapshot of itself.
    pub(crate) const SELF: u32 = 0x100;
}

/// An agent's refusal: `struct sysgenid_refusal`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Refusal {
    pub(crate) ticket: u32,
    pub(crate) reason: u32,
}

impl Refusal {
    /// Another one is under way.
    pub(crate) const BUSY: u32 = 6;
    /// The agent's file was closed.
    pub(crate) const AGENT_GONE: u32 = 7;
    /// The last one there is.
    pub(crate) const OTHER: u32 = 10;
}

// SAFETY: It has integers alone, and no padding.
unsafe impl AsBytes for Request {}
// SAFETY: As above.
unsafe impl AsBytes for ForkPoint {}
// SAFETY: Every integer is a value of its type.
unsafe impl FromBytes for ForkPoint {}
// SAFETY: As above.
unsafe impl FromBytes for Refusal {}

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
        const SET_ROLE: u32 = _IO(MAGIC, 5);
        const GET_REQUEST: u32 = _IOR::<Request>(MAGIC, 6);
        const PARK: u32 = _IO(MAGIC, 7);
        const WAIT_PARKED: u32 = _IO(MAGIC, 8);
        const FORK_POINT: u32 = _IOWR::<ForkPoint>(MAGIC, 9);
        const READY: u32 = _IO(MAGIC, 10);
        const IDENTITY: u32 = _IO(MAGIC, 11);
        const REFUSE: u32 = _IOW::<Refusal>(MAGIC, 12);
        match (self, number) {
            (Self::Seed, ONE) | (Self::Deployed, TWO) => Some(Command::WaitWatchers),
            (Self::Seed, TWO | THREE) | (Self::Deployed, THREE) => Some(Command::Force),
            (Self::Seed, FOUR) | (Self::Deployed, ONE) => Some(Command::SetTracking),
            (_, SET_ROLE) => Some(Command::SetRole),
            (_, GET_REQUEST) => Some(Command::GetRequest),
            (_, PARK) => Some(Command::Park),
            (_, WAIT_PARKED) => Some(Command::WaitParked),
            (_, FORK_POINT) => Some(Command::ForkPoint),
            (_, READY) => Some(Command::Ready),
            (_, IDENTITY) => Some(Command::Identity),
            (_, REFUSE) => Some(Command::Refuse),
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
