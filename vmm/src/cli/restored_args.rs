//! What may be said of a restored machine.

use clap::{Args, ValueEnum};
use vmgenie_api::wire::{Gate, GenerationChoice};

use super::gate::parse_gate;
use super::reboot::{OnReboot, RebootOfRestored};
use super::templates::{
    Override, Template, parse_any_template, parse_device_override, parse_template,
};

/// What a restored machine has otherwise than the one that was snapshotted.
#[derive(Debug, Default, Args)]
pub struct OverrideArgs {
    /// Another tap behind a network interface: NAME=TAP[,mac=MAC] (`run` names them net0, net1, ...); may be given several times.
    #[arg(long, value_name = "NAME=TAP", value_parser = parse_device_override)]
    pub net: Vec<Override>,
    /// Another file behind a drive: NAME=PATH[,copy|,overlay] (`run` names them disk0, disk1, ...). With `copy` it is made first, as a copy;
    /// with `overlay` as a file that takes what the guest writes, while the snapshot's is only read. A comma of the path is written twice.
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_device_override)]
    pub drive: Vec<Override>,
    /// Another Unix socket for the vsock device: PATH[,peers=own|any]. The guest reaches your own programs and root's there, or with
    /// `peers=any` everybody's. A comma of the path is written twice. Without this, the socket and the peers are the
    /// snapshot's.
    #[arg(long, value_name = "VSOCK", value_parser = parse_template)]
    pub vsock: Option<Template>,
    /// Another CID for the vsock device: a number, or a sum of numbers.
    #[arg(long, value_name = "CID", value_parser = parse_template)]
    pub cid: Option<Template>,
    /// The guest's identity string; @FILE is a file's content, as it is. Without it, none (with --generation keep: as before).
    #[arg(long, value_name = "TEXT", value_parser = parse_any_template)]
    pub data: Option<Template>,
    /// Open nothing that only the snapshot names: for one of somebody else's. Without this and --trust-paths it is so for a snapshot that somebody
    /// else than this user and root can have written: one whose files or directory belong to another, or may be written to by others.
    #[arg(long)]
    pub only_named: bool,
    /// Open the drives, taps and sockets that the snapshot names, whoever can have written it.
    #[arg(long, conflicts_with = "only_named")]
    pub trust_paths: bool,
    /// What happens if a drive's file is not what it was when the snapshot was taken.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub changed_drives: ChangedDrives,
    /// What becomes of the guest's time of day, which is that of the snapshot.
    #[arg(long, value_name = "WHAT", default_value = "step")]
    pub clock: Clock,
    /// Keep the machine from its peers until its guest knows who it is: no link and no connections of the guest's before the stage identity, no
    /// connections to the guest before the stage service. PARTS are `link` and `vsock` (both if neither is named), agents=N, timeout=30s,
    /// and on-timeout=keep|kill|open: what happens to a machine whose guest has not adapted in time.
    #[arg(long, value_name = "PARTS", num_args = 0..=1, require_equals = true, default_missing_value = "link,vsock", value_parser = parse_gate)]
    pub gate: Option<Gate>,
    /// What a reboot in the guest does: `exit`, the process ends with status 0. What the machine was booted from is not in a snapshot, so that it
    /// cannot boot again.
    #[arg(long, value_name = "WHAT", default_value = "exit", value_parser = RebootOfRestored)]
    pub on_reboot: OnReboot,
}

/// What becomes of the guest's time of day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// The guest's driver sets it to the host's.
    #[default]
    Step,
    /// It is late by the time that the snapshot has lain there.
    Keep,
}

/// What happens if a drive's file is not what it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ChangedDrives {
    /// Nothing is restored.
    #[default]
    Refuse,
    /// The guest goes on with it, which damages its file system unless the file belongs to the snapshot.
    Allow,
}

/// What a restored machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Generation {
    /// Another machine than the one that was snapshotted, or the same one set back in time.
    New,
    /// The very machine that was snapshotted, which ran nowhere else since.
    Keep,
}

impl From<Generation> for GenerationChoice {
    fn from(choice: Generation) -> Self {
        match choice {
            Generation::New => Self::New,
            Generation::Keep => Self::Keep,
        }
    }
}
