//! The wire types of `/snapshot/create` and `/snapshot/load`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmgenie_snapshot::SnapshotId;

use super::{VsockPeers, WireError, not_empty};
use crate::config::{
    self, Cid, DeviceId, DeviceOverrides, DriveSource, InstanceData, InterfaceName,
};
use crate::controller::command::{self, CreateSnapshot, LoadSnapshot, RestoreAs};

/// PUT `/snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// `Full`, which is the default.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// Where the state file goes; an older one there is replaced when the new one is complete.
    #[schema(value_type = String)]
    pub snapshot_path: PathBuf,
    /// Where the memory file goes.
    #[schema(value_type = String)]
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
}

/// The kinds of snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum SnapshotType {
    /// All of the guest's memory.
    #[default]
    Full,
    /// What changed since the last one: refused.
    Diff,
}

impl TryFrom<SnapshotCreate> for CreateSnapshot {
    type Error = WireError;

    fn try_from(wire: SnapshotCreate) -> Result<Self, WireError> {
        if wire.snapshot_type == SnapshotType::Diff {
            return Err(WireError::DiffSnapshot);
        }
        let state = not_empty("snapshot_path", wire.snapshot_path)?;
        let memory = not_empty("mem_file_path", wire.mem_file_path)?;
        if state == memory {
            return Err(WireError::SameFile);
        }
        Ok(Self {
            state,
            memory,
            resume: wire.resume_vm,
            pause: wire.pause_vm,
            copy_drives: wire.copy_drives,
        })
    }
}

/// PUT `/snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The state file.
    #[schema(value_type = String)]
    pub snapshot_path: PathBuf,
    /// Where the memory is; this or `mem_file_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// The memory file; this or `mem_backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
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
}

/// What becomes of a guest's time of day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangedDrives {
    /// The load fails.
    Refuse,
    /// The guest goes on with it.
    Allow,
}

/// Which files, taps and sockets of the host a restored machine may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
        }
    }
}

/// The pages behind a restored machine's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The Unix socket; the snapshot's when absent (ours: Firecracker requires it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub uds_path: Option<PathBuf>,
    /// The guest's address. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cid: Option<u64>,
    /// Whose programs the guest reaches; as in the snapshot when absent. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<VsockPeers>,
}

/// Another file behind a drive. Ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveOverride {
    /// The drive.
    pub drive_id: String,
    /// The file that the restored machine uses.
    #[schema(value_type = String)]
    pub path_on_host: PathBuf,
    /// Make that file first, as a copy of the snapshot's, sharing its blocks where the file system can; it must not be there yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy: bool,
    /// Make that file first, as an overlay that takes what the guest writes, while the snapshot's file is only read; it must not be there
    /// yet. If the snapshot's drive has an overlay already, the file is a copy of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlay: bool,
}

fn overrides(
    nets: Vec<NetworkOverride>,
    vsock: Option<VsockOverride>,
    drives: Vec<DriveOverride>,
) -> Result<DeviceOverrides, WireError> {
    let net = |wire: NetworkOverride| {
        Ok::<_, WireError>(config::NetOverride {
            id: DeviceId::new(&wire.iface_id)?,
            host_dev_name: wire
                .host_dev_name
                .as_deref()
                .map(InterfaceName::new)
                .transpose()?,
            guest_mac: wire.guest_mac.as_deref().map(str::parse).transpose()?,
        })
    };
    let drive = |wire: DriveOverride| {
        Ok::<_, WireError>(config::DriveOverride {
            id: DeviceId::new(&wire.drive_id)?,
            path: not_empty("path_on_host", wire.path_on_host)?,
            source: match (wire.copy, wire.overlay) {
                (false, false) => DriveSource::Existing,
                (true, false) => DriveSource::Copy,
                (false, true) => DriveSource::Overlay,
                (true, true) => return Err(WireError::CopyAndOverlay),
            },
        })
    };
    let vsock = vsock.unwrap_or_default();
    let uds_path = vsock.uds_path.map(|path| not_empty("uds_path", path));
    Ok(DeviceOverrides {
        drives: drives.into_iter().map(drive).collect::<Result<_, _>>()?,
        nets: nets.into_iter().map(net).collect::<Result<_, _>>()?,
        vsock: config::VsockOverride {
            uds_path: uds_path.transpose()?,
            guest_cid: vsock.guest_cid.map(Cid::new).transpose()?,
            peers: vsock.peers.map(Into::into),
        },
        instance_data: None,
    })
}

/// Where a snapshot's memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// `File`.
    pub backend_type: MemBackendType,
    /// The memory file.
    #[schema(value_type = String)]
    pub backend_path: PathBuf,
}

/// The kinds of memory backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MemBackendType {
    /// A file, mapped lazily.
    File,
    /// A userfaultfd handler: refused.
    Uffd,
}

/// What a restored machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GenerationChoice {
    /// Another machine than the one that was snapshotted, or the same one set back in time.
    #[default]
    New,
    /// The very machine that was snapshotted, which ran nowhere else since (live migration,
    /// lossless failover).
    Keep,
}

impl TryFrom<SnapshotLoad> for LoadSnapshot {
    type Error = WireError;

    fn try_from(wire: SnapshotLoad) -> Result<Self, WireError> {
        if wire.track_dirty_pages {
            return Err(WireError::DirtyPages("track_dirty_pages"));
        }
        if wire.enable_diff_snapshots {
            return Err(WireError::DirtyPages("enable_diff_snapshots"));
        }
        if matches!(
            wire.huge_pages,
            HugePagesAtLoad::Transparent | HugePagesAtLoad::TwoMib
        ) {
            return Err(WireError::HugePages);
        }
        let memory = match (wire.mem_backend, wire.mem_file_path) {
            (
                Some(MemBackend {
                    backend_type: MemBackendType::Uffd,
                    ..
                }),
                None,
            ) => {
                return Err(WireError::Uffd);
            }
            (Some(backend), None) => not_empty("backend_path", backend.backend_path)?,
            (None, Some(path)) => not_empty("mem_file_path", path)?,
            _ => return Err(WireError::MemoryBackend),
        };
        let state = not_empty("snapshot_path", wire.snapshot_path)?;
        if state == memory {
            return Err(WireError::SameFile);
        }
        let generation = match wire.generation {
            GenerationChoice::New => RestoreAs::New,
            GenerationChoice::Keep => RestoreAs::Keep,
        };
        let instance_data = wire.instance_data.map(InstanceData::new).transpose();
        let id = wire.snapshot_id.map(|text| {
            let id = SnapshotId::from_hex(text.as_bytes());
            id.ok_or(WireError::SnapshotId)
        });
        Ok(Self {
            state,
            memory,
            resume: wire.resume_vm,
            generation,
            overrides: DeviceOverrides {
                instance_data: instance_data.map_err(config::ConfigError::from)?,
                ..overrides(
                    wire.network_overrides,
                    wire.vsock_override,
                    wire.drive_overrides,
                )?
            },
            changed_drives: match wire.changed_drives {
                None => command::ChangedDrives::OwnCopies,
                Some(ChangedDrives::Refuse) => command::ChangedDrives::Refuse,
                Some(ChangedDrives::Allow) => command::ChangedDrives::Allow,
            },
            host_paths: match wire.host_paths {
                HostPaths::Any => command::HostPaths::Any,
                HostPaths::Trusted => command::HostPaths::Trusted,
                HostPaths::NamedOnly => command::HostPaths::NamedOnly,
            },
            id: id.transpose()?,
            clock: match wire.clock {
                ClockChoice::Step => command::ClockPolicy::Step,
                ClockChoice::Keep => command::ClockPolicy::Keep,
            },
            clock_realtime: wire.clock_realtime,
        })
    }
}
