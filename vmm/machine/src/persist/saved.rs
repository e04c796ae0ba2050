//! What a state file says, checked as far as that goes without a host.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_devices::{SysGen, VmClock, VmGenId};
use vmgenie_snapshot::{Distrust, SnapshotId, StateError, StateReader};

use crate::config::{ConfigError, MachineConfig};
use crate::devices::DeviceStates;
use crate::generation::{GenerationDevices, GenerationError};
use crate::layout;
use crate::memory::GuestMemory;
use crate::request::LoadSnapshot;
use crate::state::{MachineState, PlatformState, VcpuState};
use crate::virtio::files::{self, HostPathError, Located};
use crate::virtio::kinds::DevicesConfig;
use crate::virtio::{SavedVirtio, VirtioError};

/// Why a machine cannot be what a state file says, or not with what the request wants.
#[derive(Debug, Error)]
pub enum SavedError {
    /// The state file.
    #[error("could not decode the state file")]
    State(#[from] StateError),
    /// The state is out of range.
    #[error("the state file describes an impossible machine")]
    Config(#[from] ConfigError),
    /// What was to be changed is not there, or cannot be so.
    #[error("could not change the devices as the request says")]
    Overrides(#[source] ConfigError),
    /// The host's files, taps or sockets are not what they should be.
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    /// The state contradicts itself.
    #[error("the state file contradicts itself: {0}")]
    Contradiction(String),
    /// Generation ID, counter, VMClock.
    #[error("could not restore the devices that tell of generations")]
    GenerationDevices(#[source] GenerationError),
}

/// Everything that a state file says, checked against itself.
#[derive(Debug)]
pub struct SavedMachine {
    id: SnapshotId,
    pub(super) config: MachineConfig,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) platform: PlatformState,
    pub(super) devices: DeviceStates,
    pub(super) generation: GenerationDevices,
}

/// The devices of a machine that is to be restored.
#[derive(Debug)]
pub struct WantedDevices {
    /// As the request wants them.
    pub wanted: DevicesConfig,
    /// As the snapshot has them, with its own copies of drives, and what is behind them.
    pub(super) located: Located,
}

/// The directory of the file that a symbolic link leads to; none if `path` is no link.
fn behind_link(path: &Path) -> Option<PathBuf> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let behind = is_link.then(|| fs::canonicalize(path).ok()).flatten()?;
    Some(behind.parent()?.to_owned())
}

impl SavedMachine {
    /// Takes everything out of a state file, and checks what can be checked without a host. Nothing is opened.
    ///
    /// # Errors
    /// The file lacks something, has too much, or contradicts itself.
    pub fn read(mut reader: StateReader) -> Result<Self, SavedError> {
        let machine: MachineState = reader.take()?;
        let config =
            MachineConfig::new(machine.vcpus.into(), machine.memory_mib)?.with_smt(machine.smt)?;
        let vcpus: Vec<VcpuState> = reader.take_all()?;
        let platform = reader.take()?;
        let devices = DeviceStates {
            pm: reader.take()?,
            serial: reader.take()?,
            vmgenid: reader.take()?,
            sysgen: reader.take()?,
            vmclock: reader.take()?,
            fw_cfg: reader.take()?,
            virtio: SavedVirtio::read(&mut reader)?,
        };
        devices.virtio.config.check()?;
        if let Some(contradiction) = devices.virtio.contradiction() {
            return Err(SavedError::Contradiction(contradiction));
        }
        let (id, memory_length) = (reader.header().id, reader.header().memory_length);
        reader.finish()?;
        if vcpus.len() != usize::from(config.vcpus()) {
            return contradiction(format!("{} vCPUs of {}", vcpus.len(), config.vcpus()));
        }
        if memory_length != config.memory_bytes() {
            return contradiction(format!(
                "{memory_length} bytes of memory of {}",
                config.memory_bytes()
            ));
        }
        let generation = restore_generation(&devices, config.memory_bytes())?;
        Ok(Self {
            id,
            config,
            vcpus,
            platform,
            devices,
            generation,
        })
    }

    /// The virtio devices, with the names of what was behind them on the host.
    pub fn devices(&self) -> &DevicesConfig {
        &self.devices.virtio.config
    }

    /// The same, with the snapshot's own copies of drives, which are beside its state file, where the request names no other file.
    ///
    /// # Errors
    /// A copy is not there.
    fn located(&self, request: &LoadSnapshot) -> Result<Located, HostPathError> {
        let virtio = &self.devices.virtio;
        let located = |dir: &Path| {
            let (devices, files) = (&virtio.config, &virtio.files);
            files::located(devices, files, dir, self.id, &request.overrides)
        };
        let dir = request.state.parent().unwrap_or(Path::new(""));
        let copied = virtio.files.iter().any(|file| file.0.copy.is_some());
        // A restore without copies has no system call to spare for that.
        match copied.then(|| behind_link(&request.state)).flatten() {
            // Earlier versions had them beside the link.
            Some(behind) => located(&behind).or_else(|error| located(dir).map_err(|_| error)),
            None => located(dir),
        }
    }

    /// The devices that the machine will have, if the host is as the request wants it, and those of the snapshot with what is behind them.
    /// Nothing is opened.
    ///
    /// # Errors
    /// An override that does not fit, something of the host that the request should have named, for itself or because the snapshot may be
    /// somebody else's, or a drive whose file has changed.
    pub fn wanted(
        &self,
        request: &LoadSnapshot,
        distrust: Option<Distrust>,
    ) -> Result<WantedDevices, SavedError> {
        let located = self.located(request)?;
        let files = &self.devices.virtio.files;
        files::check_named(
            &located.devices,
            files,
            &request.overrides,
            request.host_paths,
            distrust,
        )?;
        files::check_unchanged(&located, files, &request.overrides, request.changed_drives)?;
        let wanted = located.devices.clone().overridden(&request.overrides);
        Ok(WantedDevices {
            wanted: wanted.map_err(SavedError::Overrides)?,
            located,
        })
    }

    /// vCPUs and memory.
    pub fn machine(&self) -> MachineConfig {
        self.config
    }

    /// Checks the states of the virtio devices for a machine with this memory whose devices are `devices`.
    ///
    /// # Errors
    /// A state that no such device can have saved.
    pub fn check_virtio(
        &self,
        devices: &DevicesConfig,
        memory: &GuestMemory,
    ) -> Result<(), VirtioError> {
        self.devices.virtio.check(devices, memory)
    }
}

/// The devices that tell of generations; each has to lie where the guest's ACPI tables say.
fn restore_generation(
    states: &DeviceStates,
    memory_bytes: u64,
) -> Result<GenerationDevices, SavedError> {
    let refused = SavedError::GenerationDevices;
    let vmgenid = VmGenId::from_state(&states.vmgenid.0).map_err(|e| refused(e.into()))?;
    let sysgen = SysGen::from_state(&states.sysgen.0).map_err(|e| refused(e.into()))?;
    let vmclock = VmClock::from_state(&states.vmclock.0).map_err(|e| refused(e.into()))?;
    for (what, gpa, expected) in [
        (
            "generation ID",
            vmgenid.gpa(),
            layout::generation_id(memory_bytes),
        ),
        (
            "generation counter",
            sysgen.gpa(),
            layout::generation_counter(memory_bytes),
        ),
        ("VMClock", vmclock.gpa(), layout::vmclock(memory_bytes)),
    ] {
        if gpa != expected.0 {
            return contradiction(format!(
                "the {what} lies at {gpa:#x}, not at {:#x}",
                expected.0
            ));
        }
    }
    Ok(GenerationDevices::new(vmgenid, sysgen, vmclock))
}

fn contradiction<T>(what: String) -> Result<T, SavedError> {
    Err(SavedError::Contradiction(what))
}
