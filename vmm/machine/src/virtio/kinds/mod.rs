//! The kinds of virtio devices, a module each, and the table of them: whatever lists all kinds is here.
//!
//! The order of the kinds is the order of the devices' slots: drives (the root drive first), network interfaces, vsock, entropy.
//! "How to add a device" in `docs/architecture.md` begins here.

pub mod drive;
pub mod entropy;
mod kind;
pub mod net;
pub mod vsock;

use serde::{Deserialize, Serialize};
use vmgenie_devices::bounded;
use vmgenie_devices::virtio::TransportState;
use vmgenie_snapshot::{Part, StateError, StateReader, StateWriter, WriteStateError};

use super::VirtioError;
use super::drive_files::DriveFilePart;
use crate::backends::found::DriveFiles;
use crate::config::{ConfigError, DeviceOverrides, DriveConfig, NetConfig, VsockConfig};
use crate::memory::GuestMemory;
use crate::metrics::Visit;
use crate::state::device_part;

pub(in crate::virtio) use drive::METRICS as DRIVE_METRICS;
use drive::{BlockPart, DriveKind, SavedDrive};
pub use entropy::EntropyConfig;
use entropy::{EntropyKind, EntropyPart, SavedEntropy};
pub use kind::Refusal;
pub(in crate::virtio) use kind::{Model, Place};
use net::{NetKind, NetPart, SavedNet};
use vsock::{SavedVsock, SavedVsockV2, VsockKind, VsockPart};

/// More devices than a machine has slots for: what a state file may list.
const MAX_DEVICES: usize = 64;

/// All virtio devices of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicesConfig {
    drives: Vec<DriveConfig>,
    nets: Vec<NetConfig>,
    vsock: Option<VsockConfig>,
    entropy: Option<EntropyConfig>,
}

/// One device of any kind, to be added, or to be set in place of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceConfig {
    /// A drive; in place of the one of the same name.
    Drive(DriveConfig),
    /// A network interface; in place of the one of the same name.
    Net(NetConfig),
    /// The vsock device.
    Vsock(VsockConfig),
    /// The entropy device.
    Entropy(EntropyConfig),
}

impl DeviceConfig {
    /// What is set by this, as messages call it.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Drive(_) => "drives",
            Self::Net(_) => "network interfaces",
            Self::Vsock(_) => "the vsock device",
            Self::Entropy(_) => "the entropy device",
        }
    }

    /// Whether the host has what the device needs, as far as that can be told before it is made: what is wrong is told when it is set, not when the
    /// machine starts.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_host(&self) -> Result<(), Refusal> {
        match self {
            Self::Drive(drive) => drive::check_host(drive),
            Self::Net(net) => net::check_host(net),
            Self::Vsock(_) | Self::Entropy(_) => Ok(()),
        }
    }
}

impl DevicesConfig {
    /// Adds a device, or sets it in place of another one.
    ///
    /// # Errors
    /// It cannot be beside the others.
    pub fn put(&mut self, device: DeviceConfig) -> Result<(), ConfigError> {
        match device {
            DeviceConfig::Drive(drive) => self.put_drive(drive)?,
            DeviceConfig::Net(net) => self.put_net(net)?,
            DeviceConfig::Vsock(vsock) => self.set_vsock(vsock),
            DeviceConfig::Entropy(entropy) => self.set_entropy(entropy),
        }
        Ok(())
    }

    /// The devices, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = DeviceConfig> {
        fn all<T: Clone + Into<DeviceConfig>>(list: &[T]) -> impl Iterator<Item = DeviceConfig> {
            list.iter().cloned().map(Into::into)
        }
        all(&self.drives)
            .chain(all(&self.nets))
            .chain(all(self.vsock.as_slice()))
            .chain(all(self.entropy.as_slice()))
    }

    /// How many devices these are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks what a decoded state file may contradict: names that appear twice, a root drive that is not the first.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut rebuilt = Self::default();
        self.iter().try_for_each(|device| rebuilt.put(device))?;
        if rebuilt == *self {
            Ok(())
        } else {
            Err(ConfigError::Contradiction)
        }
    }

    /// The devices of a machine that is restored with `overrides`.
    ///
    /// # Errors
    /// An override names a device that is not there, or makes two devices the same.
    pub fn overridden(mut self, overrides: &DeviceOverrides) -> Result<Self, ConfigError> {
        self.override_drives(&overrides.drives)?;
        self.override_nets(&overrides.nets)?;
        self.override_vsock(&overrides.vsock)?;
        Ok(self)
    }
}

/// Makes the devices of a machine that boots, in the order of their slots.
pub(super) fn boot(config: &DevicesConfig, place: &mut impl Place) -> Result<(), VirtioError> {
    kind::boot::<DriveKind>(&config.drives, place)?;
    kind::boot::<NetKind>(&config.nets, place)?;
    kind::boot::<VsockKind>(config.vsock.as_slice(), place)?;
    kind::boot::<EntropyKind>(config.entropy.as_slice(), place)
}

/// Makes the devices of a machine that is restored; their own states are in `saved`, the transports' are known to `place`.
pub(super) fn restore(
    config: &DevicesConfig,
    found: Vec<DriveFiles>,
    saved: &SavedVirtio,
    place: &mut impl Place,
) -> Result<(), VirtioError> {
    let found = &mut found.into_iter();
    let (vsock, entropy) = (config.vsock.as_slice(), config.entropy.as_slice());
    kind::restore::<DriveKind>(&config.drives, &saved.drives, found, place)?;
    kind::restore::<NetKind>(&config.nets, &saved.nets, found, place)?;
    kind::restore::<VsockKind>(vsock, saved.vsock.as_slice(), found, place)?;
    kind::restore::<EntropyKind>(entropy, saved.entropy.as_slice(), found, place)
}

/// Tells what the devices count, kind by kind.
pub fn tell_metrics(visit: Visit<'_>) {
    drive::METRICS.tell("block", visit);
    net::METRICS.tell("net", visit);
    vsock::METRICS.tell("vsock", visit);
    entropy::METRICS.tell("entropy", visit);
}

/// The devices of an attempt that has failed have gone: what they were called must not be told.
pub fn forget_metrics() {
    drive::METRICS.forget_all();
    net::METRICS.forget_all();
}

/// Which devices there are, as a state file lists them, version 3.
///
/// The types are the file's own: what is added to the configuration is not in a file until it is added here, with another version of the part.
/// The order of the fields is their order in the file. Names and numbers (`DeviceId`, `Cid`, …) check themselves when they are decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevices<V = SavedVsock> {
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_DEVICES>")]
    drives: Vec<SavedDrive>,
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_DEVICES>")]
    nets: Vec<SavedNet>,
    vsock: Option<V>,
    entropy: Option<SavedEntropy>,
}

/// Version 2: a vsock device did not know whose programs its guest may reach.
type SavedDevicesV2 = SavedDevices<SavedVsockV2>;

impl From<SavedDevicesV2> for SavedDevices {
    fn from(old: SavedDevicesV2) -> Self {
        Self {
            drives: old.drives,
            nets: old.nets,
            vsock: old.vsock.map(SavedVsock::from),
            entropy: old.entropy,
        }
    }
}

impl From<&DevicesConfig> for SavedDevices {
    fn from(config: &DevicesConfig) -> Self {
        Self {
            drives: config.drives.iter().map(SavedDrive::from).collect(),
            nets: config.nets.iter().map(SavedNet::from).collect(),
            vsock: config.vsock.as_ref().map(SavedVsock::from),
            entropy: config.entropy.as_ref().map(SavedEntropy::from),
        }
    }
}

/// They may contradict each other still: [`DevicesConfig::check`].
impl From<SavedDevices> for DevicesConfig {
    fn from(saved: SavedDevices) -> Self {
        Self {
            drives: saved.drives.into_iter().map(DriveConfig::from).collect(),
            nets: saved.nets.into_iter().map(NetConfig::from).collect(),
            vsock: saved.vsock.map(VsockConfig::from),
            entropy: saved.entropy.map(EntropyConfig::from),
        }
    }
}

/// Which devices there are, in the order of their slots, and what is behind them on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DevicesPart(pub SavedDevices);

impl Part for DevicesPart {
    const TAG: &'static str = "virtio";
    const VERSION: u16 = 3;

    fn from_older(version: u16, body: &[u8]) -> Option<postcard::Result<(Self, &[u8])>> {
        (version == 2).then(|| {
            let (old, rest) = postcard::take_from_bytes::<SavedDevicesV2>(body)?;
            Ok((Self(old.into()), rest))
        })
    }
}

device_part!(
    TransportPart,
    TransportState,
    "virtio-mmio",
    "The registers and queues of one virtio device; one part for each slot, in their order."
);

/// What a snapshot holds of the virtio devices. A machine without any adds nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct SavedVirtio {
    /// What the devices are.
    pub(crate) config: DevicesConfig,
    /// One for each slot.
    pub(super) transports: Vec<TransportPart>,
    drives: Vec<BlockPart>,
    /// One for each drive.
    pub(crate) files: Vec<DriveFilePart>,
    nets: Vec<NetPart>,
    vsock: Option<VsockPart>,
    entropy: Option<EntropyPart>,
}

impl SavedVirtio {
    /// Of devices of which no state is there yet.
    pub(super) fn of(config: DevicesConfig) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// Adds the parts to a state file.
    pub(crate) fn write(&self, writer: &mut StateWriter) -> Result<(), WriteStateError> {
        if self.config.is_empty() {
            return Ok(());
        }
        writer
            .part(&DevicesPart(SavedDevices::from(&self.config)))?
            .parts(&self.transports)?
            .parts(&self.drives)?
            .parts(&self.files)?
            .parts(&self.nets)?;
        if let Some(vsock) = &self.vsock {
            writer.part(vsock)?;
        }
        if let Some(entropy) = &self.entropy {
            writer.part(entropy)?;
        }
        Ok(())
    }

    /// Takes the parts out of a state file. They may contradict each other still: see [`Self::contradiction`].
    pub(crate) fn read(reader: &mut StateReader) -> Result<Self, StateError> {
        let list = reader.take_optional::<DevicesPart>()?;
        Ok(Self {
            config: list.map_or_else(DevicesConfig::default, |list| list.0.into()),
            transports: reader.take_all()?,
            drives: reader.take_all()?,
            files: reader.take_all()?,
            nets: reader.take_all()?,
            vsock: reader.take_optional()?,
            entropy: reader.take_optional()?,
        })
    }

    /// What is wrong if there are not as many states of each kind as devices.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let config = &self.config;
        let counts = [
            ("transports", self.transports.len(), config.len()),
            ("drives", self.drives.len(), config.drives.len()),
            ("drives' files", self.files.len(), config.drives.len()),
            ("network interfaces", self.nets.len(), config.nets.len()),
            (
                "vsock devices",
                self.vsock.iter().len(),
                config.vsock.iter().len(),
            ),
            (
                "entropy devices",
                self.entropy.iter().len(),
                config.entropy.iter().len(),
            ),
        ];
        let wrong = counts.iter().find(|(_, states, devices)| states != devices);
        wrong.map(|(what, states, devices)| format!("states of {states} {what}, of {devices}"))
    }

    /// Whether each device of `config` can have saved its state; the numbers of states and devices are right. No drive, no tap and no
    /// socket has to be opened for a machine that will be refused.
    pub(crate) fn check(
        &self,
        config: &DevicesConfig,
        memory: &GuestMemory,
    ) -> Result<(), VirtioError> {
        let (vsock, entropy) = (config.vsock.as_slice(), config.entropy.as_slice());
        let offers = &mut Vec::with_capacity(config.len());
        kind::check::<DriveKind>(&config.drives, &self.drives, offers)?;
        kind::check::<NetKind>(&config.nets, &self.nets, offers)?;
        kind::check::<VsockKind>(vsock, self.vsock.as_slice(), offers)?;
        kind::check::<EntropyKind>(entropy, self.entropy.as_slice(), offers)?;
        let devices = offers.iter().zip(&self.transports);
        for (slot, (&(sizes, offered), TransportPart(state))) in devices.enumerate() {
            state
                .precheck(sizes, offered, memory)
                .map_err(|source| VirtioError::Restore { slot, source })?;
        }
        Ok(())
    }

    /// The states of the transports.
    pub(super) fn transports(&self) -> Vec<TransportState> {
        self.transports.iter().map(|part| part.0.clone()).collect()
    }
}

/// The tag and the version of each part that a device can have.
#[cfg(test)]
pub(crate) const PARTS: [(&str, u16); 7] = {
    const fn row<P: Part>() -> (&'static str, u16) {
        (P::TAG, P::VERSION)
    }
    [
        row::<DevicesPart>(),
        row::<TransportPart>(),
        row::<DriveFilePart>(),
        row::<BlockPart>(),
        row::<NetPart>(),
        row::<VsockPart>(),
        row::<EntropyPart>(),
    ]
};

#[cfg(test)]
mod devices_test;
#[cfg(test)]
mod saved_test;
