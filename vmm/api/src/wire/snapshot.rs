//! The wire types of `/snapshot/create` and `/snapshot/load`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use super::{Gate, VsockPeers};

/// PUT `/snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// `Full`, which is the default.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// Where the state file goes; an older one there is replaced when the new one is complete.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub snapshot_path: PathBuf,
    /// Where the memory file goes.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub mem_file_path: PathBuf,
    /// Let the guest go on as soon as its memory has been copied, before the files are safe on
    /// disk. Ours; false when absent.
    #[serde(default)]
    pub resume_vm: bool,
    /// A machine that runs is paused for the snapshot, and goes on as with `resume_vm`; one that is paused stays so. All is one step:
    /// no other request comes between. Ours; false when absent: a machine that runs is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pause_vm: bool,
    /// Copy the drives that the guest may write to into the state file's directory, sharing their blocks where the file system can, while the
    /// guest stands still. Ours; false when absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_drives: bool,
    /// Have the guest, which runs, take part: its programs make themselves quiet and its kernel stands still, so that no user instruction
    /// of a clone runs before the clone knows that it is one. The answer has a body then. Ours; absent: the guest is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooperative: Option<CooperativeCreate>,
}

/// The longest time that a guest may take to stand still for its snapshot, in milliseconds: ten minutes.
pub const MAX_QUIESCE_MS: u64 = 600_000;

/// How a guest takes part in its snapshot. Ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CooperativeCreate {
    /// How long it may take from the request until all its CPUs stand still, in milliseconds: 1 to [`MAX_QUIESCE_MS`].
    #[serde(default = "CooperativeCreate::default_quiesce_ms")]
    #[cfg_attr(
        feature = "schema",
        schema(minimum = 1, maximum = 600_000, default = 10_000)
    )]
    pub quiesce_ms: u64,
    /// What happens if it does not take part.
    #[serde(default)]
    pub fallback: SnapshotFallback,
}

impl CooperativeCreate {
    fn default_quiesce_ms() -> u64 {
        10_000
    }
}

impl Default for CooperativeCreate {
    fn default() -> Self {
        Self {
            quiesce_ms: Self::default_quiesce_ms(),
            fallback: SnapshotFallback::default(),
        }
    }
}

/// What happens to a snapshot in which the guest does not take part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SnapshotFallback {
    /// It is refused; the guest goes on.
    #[default]
    Refuse,
    /// It is taken without the guest.
    Plain,
}

/// The answer to PUT `/snapshot/create` with `cooperative`. Ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct CooperativeCreated {
    /// How the snapshot was taken.
    pub how: SnapshotHow,
    /// Why the guest did not take part; absent if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_plain: Option<String>,
    /// Microseconds that the guest stood still.
    pub standstill_us: u64,
    /// Microseconds for everything, from the request on.
    pub total_us: u64,
    /// Bytes of guest memory written.
    pub memory_bytes: u64,
    /// Microseconds from the request to the answer of the guest's driver. Absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_us: Option<u64>,
    /// Microseconds from the request until all CPUs stood still: how long the guest's programs took to be quiet. Absent if they never
    /// stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_us: Option<u64>,
    /// Who was waited for, by the guest's word.
    pub waited_for: WaitedFor,
}

/// How a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotHow {
    /// The guest's agent made its programs quiet, and its kernel stood still.
    ForkPoint,
    /// The guest's kernel stood still; it has no agent.
    KernelOnly,
    /// Without the guest.
    Plain,
}

/// Who was waited for before the guest stood still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct WaitedFor {
    /// The guest's agent.
    pub agent: bool,
    /// Its quiesce hooks.
    pub hooks: bool,
    /// The programs that it froze.
    pub frozen: bool,
    /// The programs that take part by themselves, and parked.
    pub parked: bool,
}

/// The kinds of snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum SnapshotType {
    /// All of the guest's memory.
    #[default]
    Full,
    /// What changed since the last one: refused.
    Diff,
}

/// PUT `/snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The state file.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub snapshot_path: PathBuf,
    /// Where the memory is; this or `mem_file_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// The memory file; this or `mem_backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub mem_file_path: Option<PathBuf>,
    /// Let the guest run at once; false when absent.
    #[serde(default)]
    pub resume_vm: bool,
    /// Whether the restored machine begins a new generation. Ours; `new` when absent.
    #[serde(default)]
    pub generation: GenerationChoice,
    /// False only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub track_dirty_pages: bool,
    /// False only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enable_diff_snapshots: bool,
    /// Let the clocks of a guest with kvm-clock jump by the time that the snapshot has lain there, the monotonic one as well; false when
    /// absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clock_realtime: bool,
    /// What becomes of the guest's time of day: `step` has its driver set it to the host's, `keep` leaves it late. Ours; `step` when
    /// absent.
    #[serde(default, skip_serializing_if = "ClockChoice::is_default")]
    pub clock: ClockChoice,
    /// The pages behind guest memory: `Snapshot` (the default) or `None`.
    #[serde(default, skip_serializing_if = "HugePagesAtLoad::is_default")]
    pub huge_pages: HugePagesAtLoad,
    /// Other taps (and, ours, other MAC addresses) behind network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket (and, ours, another CID) for the vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Other files behind drives. Ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drive_overrides: Vec<DriveOverride>,
    /// The guest's identity string; without it, none, or that of the snapshot with the generation `keep`. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_data: Option<String>,
    /// What happens if a drive's file is not what it was when the snapshot was taken: `refuse`, or `allow`. When absent, the snapshot's own copies
    /// are refused, and a warning is logged for other files. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_drives: Option<ChangedDrives>,
    /// Which files, taps and sockets may be opened. Ours; `any` when absent.
    #[serde(default, skip_serializing_if = "HostPaths::is_default")]
    pub host_paths: HostPaths,
    /// The snapshot that is meant, 32 hexadecimal digits: another one at that path is refused. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// What keeps the machine from its peers until its guest knows who it is. Only for a new generation. Ours; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// What becomes of a guest's time of day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ClockChoice {
    /// The guest's driver sets it to the host's, before watchers are told of the new generation.
    #[default]
    Step,
    /// It is late by the time that the snapshot has lain there.
    Keep,
}

impl ClockChoice {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens if a drive's file is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangedDrives {
    /// The load fails.
    Refuse,
    /// The guest goes on with it.
    Allow,
}

/// Which files, taps and sockets of the host a restored machine may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HostPaths {
    /// Those that the state file names, unless overridden.
    #[default]
    Any,
    /// The same, if state file, its directory and memory file belong to the VMM's user or to root and nobody else may write to them; else as
    /// `named-only`.
    Trusted,
    /// Those in overrides alone, and the snapshot's own copies of drives.
    NamedOnly,
}

impl HostPaths {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl SnapshotLoad {
    /// The request that restores the snapshot of these two files as another machine, with nothing changed, standing still.
    pub fn of(state: PathBuf, memory: PathBuf) -> Self {
        Self {
            snapshot_path: state,
            mem_backend: Some(MemBackend {
                backend_type: MemBackendType::File,
                backend_path: memory,
            }),
            mem_file_path: None,
            resume_vm: false,
            generation: GenerationChoice::New,
            track_dirty_pages: false,
            enable_diff_snapshots: false,
            clock_realtime: false,
            clock: ClockChoice::Step,
            huge_pages: HugePagesAtLoad::Snapshot,
            network_overrides: Vec::new(),
            vsock_override: None,
            drive_overrides: Vec::new(),
            instance_data: None,
            changed_drives: None,
            host_paths: HostPaths::Any,
            snapshot_id: None,
            gate: None,
        }
    }
}

/// The pages behind a restored machine's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum HugePagesAtLoad {
    /// As Firecracker's clients say by default; they are the host's usual ones, whatever the machine had booted with.
    #[default]
    Snapshot,
    /// The kernel's usual pages.
    None,
    /// Transparent huge pages: refused.
    Transparent,
    /// hugetlbfs pages of 2 MiB: refused.
    #[serde(rename = "2M")]
    TwoMib,
}

impl HugePagesAtLoad {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Another tap behind a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: String,
    /// The tap on the host; the snapshot's when absent (ours: Firecracker requires it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// The MAC address of the device. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
}

/// Another socket for the vsock device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The Unix socket; the snapshot's when absent (ours: Firecracker requires it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub uds_path: Option<PathBuf>,
    /// The guest's address. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cid: Option<u64>,
    /// Whose programs the guest reaches; as in the snapshot when absent. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<VsockPeers>,
}

/// Another file behind a drive. Ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DriveOverride {
    /// The drive.
    pub drive_id: String,
    /// The file that the restored machine uses.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub path_on_host: PathBuf,
    /// Make that file first, as a copy of the snapshot's, sharing its blocks where the file system can; it must not be there yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy: bool,
    /// Make that file first, as an overlay that takes what the guest writes, while the snapshot's file is only read; it must not be there
    /// yet. If the snapshot's drive has an overlay already, the file is a copy of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlay: bool,
}

/// Where a snapshot's memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// `File`.
    pub backend_type: MemBackendType,
    /// The memory file.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub backend_path: PathBuf,
}

/// The kinds of memory backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum MemBackendType {
    /// A file, mapped lazily.
    File,
    /// A userfaultfd handler: refused.
    Uffd,
}

/// What a restored machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum GenerationChoice {
    /// Another machine than the one that was snapshotted, or the same one set back in time.
    #[default]
    New,
    /// The very machine that was snapshotted, which ran nowhere else since (live migration,
    /// lossless failover).
    Keep,
}
