//! From the configuration to the devices: the one place that makes all kinds of them.

use vmgenie_devices::virtio::block::Block;
use vmgenie_devices::virtio::entropy::Entropy;

use super::VirtioError;
use super::device::Device;
use super::slot::{Slot, Slots};
use super::state::SavedVirtio;
use crate::backends::drive::{Drive, DriveError};
use crate::backends::found::DriveFiles;
use crate::backends::net::{self, NetError};
use crate::backends::vsock;
use crate::config::{DevicesConfig, DriveConfig, NetConfig};
use crate::metrics::DEVICES;

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
