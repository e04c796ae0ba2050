//! What is asked of a machine, and what it tells of its generation.

use std::path::PathBuf;
use std::time::Duration;

use vmgenie_devices::sgen::DriverReport;
use vmgenie_devices::vmgenid::GenerationId;
use vmgenie_snapshot::SnapshotId;

use crate::config::DeviceOverrides;

/// The state file in a snapshot's directory, where nobody says otherwise.
pub const STATE_FILE: &str = "state";
/// The memory file there.
pub const MEMORY_FILE: &str = "memory";

/// A snapshot to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSnapshot {
    /// Where the state file goes.
    pub state: PathBuf,
    /// Where the memory file goes.
    pub memory: PathBuf,
    /// Let the vCPUs go on as soon as the guest's memory has been copied, before the files are synced.
    pub resume: bool,
    /// Pause a machine that runs, and let it go on as with `resume`.
    pub pause: bool,
    /// Copy the drives that the guest may write to, beside the state file.
    pub copy_drives: bool,
    /// Have a guest that runs stand still at its fork point first.
    pub cooperative: Option<Cooperative>,
}

/// How a guest takes part in its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperative {
    /// How long its programs may take to make themselves quiet, until all CPUs stand still.
    pub quiesce: Duration,
    /// What happens if it does not take part.
    pub fallback: Fallback,
}

/// What happens to a snapshot in which the guest does not take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// It is refused.
    #[default]
    Refuse,
    /// It is taken without the guest.
    Plain,
}

/// A snapshot to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSnapshot {
    /// The state file.
    pub state: PathBuf,
    /// The memory file.
    pub memory: PathBuf,
    /// Let the vCPUs run at once.
    pub resume: bool,
    /// Whether the restored machine begins a new generation.
    pub generation: RestoreAs,
    /// What the restored machine's devices have otherwise than the snapshotted one's.
    pub overrides: DeviceOverrides,
    /// What happens if a drive's file is not what it was when the snapshot was taken.
    pub changed_drives: ChangedDrives,
    /// Which files, taps and sockets of the host may be opened.
    pub host_paths: HostPaths,
    /// The snapshot that is meant; any if it is none.
    pub id: Option<SnapshotId>,
    /// What becomes of the guest's time of day.
    pub clock: ClockPolicy,
    /// kvm-clock, and with it all clocks of a guest that has it, jumps by the time that the snapshot has lain there.
    pub clock_realtime: bool,
    /// What keeps the machine from its peers until its guest knows who it is.
    pub gate: Option<Gate>,
}

/// What keeps a restored machine from its peers until its guest knows who it is: see [`crate::readiness`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Its network interfaces have no link.
    pub link: bool,
    /// Connections over vsock are refused.
    pub vsock: bool,
    /// How many agents have to be ready; as many as ever were in one generation of the machine if none is said.
    pub agents: Option<u32>,
    /// For how long its vCPUs may run before the guest has adapted.
    pub timeout: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
}

/// What happens if a guest has not adapted before its gate's time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTimeout {
    /// The gate stays shut, until the guest has adapted after all.
    #[default]
    Keep,
    /// The machine ends.
    Kill,
    /// The gate opens.
    Open,
}

/// What becomes of a guest's time of day after it has stood still. Its monotonic clock goes on in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockPolicy {
    /// The guest's driver sets it to the host's.
    #[default]
    Step,
    /// It is late.
    Keep,
}

/// What happens if a drive's file is not what it was when a snapshot was taken: a guest that goes on with it damages its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangedDrives {
    /// Refused if it is the snapshot's own copy, else a warning: clients of Firecracker, which does not look, may have put a good file there.
    #[default]
    OwnCopies,
    /// Refused.
    Refuse,
    /// Nothing.
    Allow,
}

/// Which files, taps and sockets of the host a restored machine may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostPaths {
    /// Those that the state file names, unless overridden.
    #[default]
    Any,
    /// The same, if nobody but this user and root can have written the snapshot ([`Distrust`]); else as [`Self::NamedOnly`].
    ///
    /// [`Distrust`]: vmgenie_snapshot::Distrust
    Trusted,
    /// Those in overrides alone, and the snapshot's own copies of drives.
    NamedOnly,
}

/// What a restored machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestoreAs {
    /// Another machine than the one that was snapshotted, or the same one set back in time: a new generation.
    #[default]
    New,
    /// The very machine that was snapshotted, which ran nowhere else since (live migration, lossless failover).
    Keep,
}

/// A generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The generation ID.
    pub id: GenerationId,
    /// Those that came before it, the oldest first; not all of a long line.
    pub ancestors: Vec<GenerationId>,
    /// How many times the ID has changed since the machine was first booted (through snapshots and clones).
    pub changes: u64,
    /// When the ID last changed, since the Unix epoch.
    pub since: Duration,
    /// The generation counter as it stands in guest memory.
    pub counter: u32,
    /// What the guest's driver has told of this generation.
    pub driver: DriverReport,
}
