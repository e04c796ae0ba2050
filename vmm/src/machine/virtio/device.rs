//! From the configuration to the devices: the one place that knows all kinds of them.

use std::sync::Arc;

use vm_device::DeviceMmio;
use vmgenie_devices::virtio::block::Block;
use vmgenie_devices::virtio::entropy::Entropy;
use vmgenie_devices::virtio::net::Net;
use vmgenie_devices::virtio::vsock::Vsock;
use vmgenie_devices::virtio::{Transport, VirtioMmio};

use super::VirtioError;
use super::drives::DriveCopies;
use super::files::{DriveFilePart, DriveFiles};
use super::slot::{Slot, Slots};
use super::state::{BlockPart, EntropyPart, NetPart, SavedVirtio, VsockPart};
use crate::config::{DevicesConfig, DriveConfig, NetConfig};
use crate::machine::backends::drive::{Drive, DriveError};
use crate::machine::backends::net::{self, NetError};
use crate::machine::backends::tap::Tap;
use crate::machine::backends::vsock::{self, UnixHost};
use crate::metrics::DEVICES;

/// A device of any kind. What its kind alone can do is reached through the variant.
#[derive(Debug)]
pub(super) enum Device {
    /// A drive.
    Block(Arc<VirtioMmio<Block<Drive>>>),
    /// A network interface.
    Net(Arc<VirtioMmio<Net<Tap>>>),
    /// Sockets between the guest and the host.
    Vsock(Arc<VirtioMmio<Vsock<UnixHost>>>),
    /// Random numbers.
    Entropy(Arc<VirtioMmio<Entropy>>),
}

impl Device {
    /// What all devices can do.
    pub(super) fn transport(&self) -> &dyn Transport {
        match self {
            Self::Block(device) => &**device,
            Self::Net(device) => &**device,
            Self::Vsock(device) => &**device,
            Self::Entropy(device) => &**device,
        }
    }

    /// The device for the bus.
    pub(super) fn on_bus(&self) -> Arc<dyn DeviceMmio + Send + Sync> {
        match self {
            Self::Block(device) => Arc::clone(device) as _,
            Self::Net(device) => Arc::clone(device) as _,
            Self::Vsock(device) => Arc::clone(device) as _,
            Self::Entropy(device) => Arc::clone(device) as _,
        }
    }

    /// The MAC address of a network interface.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        match self {
            Self::Net(device) => Some(device.with_device(|net, _| net.settings().mac)),
            _ => None,
        }
    }

    /// Adds the device's own state to `saved`; of the drives, `copies` were made.
    pub(super) fn save(&self, saved: &mut SavedVirtio, copies: &DriveCopies) {
        match self {
            Self::Block(device) => {
                device.with_device(|block, _| {
                    saved.drives.push(BlockPart(block.save()));
                    let file = copies.state_of(block.id(), block.store());
                    saved.files.push(DriveFilePart(file));
                });
            }
            Self::Net(device) => {
                let state = device.with_device(|net, _| net.save());
                saved.nets.push(NetPart(state));
            }
            Self::Vsock(device) => {
                let state = device.with_device(|vsock, _| vsock.save());
                saved.vsock = Some(VsockPart(state));
            }
            Self::Entropy(device) => {
                let state = device.with_device(|entropy, _| entropy.save());
                saved.entropy = Some(EntropyPart(state));
            }
        }
    }
}

/// Makes the devices of a machine that boots, in the order of their slots.
pub(super) fn boot(
    config: &DevicesConfig,
    slots: &mut Slots<'_>,
) -> Result<Vec<Slot>, VirtioError> {
    let mut devices = Vec::with_capacity(config.len());
    for config in config.drives() {
        let drive = Drive::open(config).map_err(|source| drive_error(config, source))?;
        let device = Block::new(config.id.as_str(), drive);
        let device = device.with_metrics(DEVICES.drive(config.id.as_str()));
        devices.push(slots.put(device, Device::Block)?);
    }
    for config in config.nets() {
        let device = net::boot(config).map_err(|source| net_error(config, source))?;
        let device = device.with_metrics(DEVICES.net(config.id.as_str()));
        devices.push(slots.put(device, Device::Net)?);
    }
    if let Some(config) = config.vsock() {
        let device = vsock::boot(config)?.with_metrics(DEVICES.vsock());
        devices.push(slots.put(device, Device::Vsock)?);
    }
    if config.entropy().is_some() {
        let device = Entropy::default().with_metrics(DEVICES.entropy());
        devices.push(slots.put(device, Device::Entropy)?);
    }
    Ok(devices)
}

/// Makes the devices of a machine that is restored; their own states are in `saved`, the transports' are taken by `slots`.
pub(super) fn restore(
    config: &DevicesConfig,
    found: Vec<DriveFiles>,
    saved: &SavedVirtio,
    slots: &mut Slots<'_>,
) -> Result<Vec<Slot>, VirtioError> {
    let mut devices = Vec::with_capacity(config.len());
    if saved.drives.len() != config.drives().len() || found.len() != config.drives().len() {
        return Err(VirtioError::Missing("a drive"));
    }
    let drives = config.drives().iter().zip(found);
    for ((config, found), state) in drives.zip(&saved.drives) {
        let failed = |source| drive_error(config, source);
        let drive = Drive::open_found(config, found).map_err(failed)?;
        let device = Block::from_state(&state.0, drive).map_err(|error| failed(error.into()))?;
        let device = device.with_metrics(DEVICES.drive(config.id.as_str()));
        devices.push(slots.put(device, Device::Block)?);
    }
    if saved.nets.len() != config.nets().len() {
        return Err(VirtioError::Missing("a network interface"));
    }
    for (config, state) in config.nets().iter().zip(&saved.nets) {
        let device = net::restore(config, &state.0).map_err(|source| net_error(config, source))?;
        let device = device.with_metrics(DEVICES.net(config.id.as_str()));
        devices.push(slots.put(device, Device::Net)?);
    }
    if let Some(config) = config.vsock() {
        let state = saved.vsock.as_ref();
        let state = state.ok_or(VirtioError::Missing("the vsock device"))?;
        let device = vsock::restore(config, &state.0)?.with_metrics(DEVICES.vsock());
        devices.push(slots.put(device, Device::Vsock)?);
    }
    if config.entropy().is_some() {
        saved
            .entropy
            .as_ref()
            .ok_or(VirtioError::Missing("entropy"))?;
        let device = Entropy::default().with_metrics(DEVICES.entropy());
        devices.push(slots.put(device, Device::Entropy)?);
    }
    Ok(devices)
}

fn drive_error(config: &DriveConfig, source: DriveError) -> VirtioError {
    VirtioError::Drive {
        id: config.id.to_string(),
        source,
    }
}

fn net_error(config: &NetConfig, source: NetError) -> VirtioError {
    VirtioError::Net {
        id: config.id.to_string(),
        source,
    }
}
