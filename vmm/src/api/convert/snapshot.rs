//! `/snapshot/create` and `/snapshot/load`.

use std::time::Duration;

use vmgenie_api::wire::{
    ChangedDrives, ClockChoice, CooperativeCreate, CooperativeCreated, DriveOverride,
    GenerationChoice, HostPaths, HugePagesAtLoad, MAX_QUIESCE_MS, MemBackend, MemBackendType,
    NetworkOverride, SnapshotCreate, SnapshotFallback, SnapshotHow, SnapshotLoad, SnapshotType,
    VsockOverride, WaitedFor,
};
use vmgenie_machine::config::{
    self, Cid, DeviceId, DeviceOverrides, DriveSource, InstanceData, InterfaceName,
};
use vmgenie_machine::request::{self, CreateSnapshot, LoadSnapshot, RestoreAs};
use vmgenie_snapshot::SnapshotId;

use crate::controller::command::{Cooperation, How, SnapshotCreated};

use super::{Checked, Convert, WireError, microseconds, not_empty};

impl Checked<CreateSnapshot> for SnapshotCreate {
    fn checked(self) -> Result<CreateSnapshot, WireError> {
        let wire = self;
        if wire.snapshot_type == SnapshotType::Diff {
            return Err(WireError::DiffSnapshot);
        }
        let state = not_empty("snapshot_path", wire.snapshot_path)?;
        let memory = not_empty("mem_file_path", wire.mem_file_path)?;
        if state == memory {
            return Err(WireError::SameFile);
        }
        Ok(CreateSnapshot {
            state,
            memory,
            resume: wire.resume_vm,
            pause: wire.pause_vm,
            copy_drives: wire.copy_drives,
            cooperative: wire.cooperative.map(Checked::checked).transpose()?,
        })
    }
}

impl Checked<request::Cooperative> for CooperativeCreate {
    fn checked(self) -> Result<request::Cooperative, WireError> {
        if !(1..=MAX_QUIESCE_MS).contains(&self.quiesce_ms) {
            return Err(WireError::Quiesce(self.quiesce_ms));
        }
        Ok(request::Cooperative {
            quiesce: Duration::from_millis(self.quiesce_ms),
            fallback: match self.fallback {
                SnapshotFallback::Refuse => request::Fallback::Refuse,
                SnapshotFallback::Plain => request::Fallback::Plain,
            },
        })
    }
}

/// What the API tells of a snapshot in which the guest was asked to take part.
pub fn created(made: &SnapshotCreated, cooperation: &Cooperation) -> CooperativeCreated {
    let waited = cooperation.waited_for;
    CooperativeCreated {
        how: match cooperation.how {
            How::ForkPoint => SnapshotHow::ForkPoint,
            How::KernelOnly => SnapshotHow::KernelOnly,
            How::Plain => SnapshotHow::Plain,
        },
        why_plain: cooperation.why_plain.map(str::to_owned),
        standstill_us: microseconds(made.standstill),
        total_us: microseconds(made.total),
        memory_bytes: made.memory_bytes,
        heard_us: cooperation.heard_after.map(microseconds),
        quiesce_us: cooperation.stopped_after.map(microseconds),
        waited_for: WaitedFor {
            agent: waited.agent,
            hooks: waited.hooks,
            frozen: waited.frozen,
            parked: waited.parked,
        },
    }
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
            peers: vsock.peers.map(Convert::convert),
        },
        instance_data: None,
    })
}

impl Checked<LoadSnapshot> for SnapshotLoad {
    fn checked(self) -> Result<LoadSnapshot, WireError> {
        let wire = self;
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
        let gate = wire.gate.map(Checked::checked).transpose()?;
        if gate.is_some() && generation == RestoreAs::Keep {
            return Err(WireError::GateOfKept);
        }
        let instance_data = wire.instance_data.map(InstanceData::new).transpose();
        let id = wire.snapshot_id.map(|text| {
            let id = SnapshotId::from_hex(text.as_bytes());
            id.ok_or(WireError::SnapshotId)
        });
        Ok(LoadSnapshot {
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
                None => request::ChangedDrives::OwnCopies,
                Some(ChangedDrives::Refuse) => request::ChangedDrives::Refuse,
                Some(ChangedDrives::Allow) => request::ChangedDrives::Allow,
            },
            host_paths: match wire.host_paths {
                HostPaths::Any => request::HostPaths::Any,
                HostPaths::Trusted => request::HostPaths::Trusted,
                HostPaths::NamedOnly => request::HostPaths::NamedOnly,
            },
            id: id.transpose()?,
            clock: match wire.clock {
                ClockChoice::Step => request::ClockPolicy::Step,
                ClockChoice::Keep => request::ClockPolicy::Keep,
            },
            clock_realtime: wire.clock_realtime,
            gate,
        })
    }
}
