//! From the configuration to the devices: the one place that knows all kinds of them.

use std::sync::Arc;

use vm_device::DeviceMmio;
use vmgenie_devices::virtio::entropy::Entropy;
use vmgenie_devices::virtio::{Transport, VirtioMmio};

use super::VirtioError;
use super::slot::{Slot, Slots};
use super::state::{EntropyPart, SavedVirtio};
use crate::config::DevicesConfig;

/// A device of any kind. What its kind alone can do is reached through the variant.
#[derive(Debug)]
pub(super) enum Device {
    /// Random numbers.
    Entropy(Arc<VirtioMmio<Entropy>>),
}

impl Device {
    /// What all devices can do.
    pub(super) fn transport(&self) -> &dyn Transport {
        match self {
            Self::Entropy(device) => &**device,
        }
    }

    /// The device for the bus.
    pub(super) fn on_bus(&self) -> Arc<dyn DeviceMmio + Send + Sync> {
        match self {
            Self::Entropy(device) => Arc::clone(device) as _,
        }
    }

    /// Adds the device's own state to `saved`.
    pub(super) fn save(&self, saved: &mut SavedVirtio) {
        match self {
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
    if !config.drives().is_empty() {
        return Err(VirtioError::NotYet("drives"));
    }
    if !config.nets().is_empty() {
        return Err(VirtioError::NotYet("network interfaces"));
    }
    if config.vsock().is_some() {
        return Err(VirtioError::NotYet("vsock"));
    }
    if config.entropy().is_some() {
        devices.push(slots.put(Entropy::default(), Device::Entropy)?);
    }
    Ok(devices)
}

/// Makes the devices of a machine that is restored; their own states are in `saved`, the transports' are taken by `slots`.
pub(super) fn restore(
    config: &DevicesConfig,
    saved: &SavedVirtio,
    slots: &mut Slots<'_>,
) -> Result<Vec<Slot>, VirtioError> {
    let mut devices = Vec::with_capacity(config.len());
    if !config.drives().is_empty() {
        return Err(VirtioError::NotYet("drives"));
    }
    if !config.nets().is_empty() {
        return Err(VirtioError::NotYet("network interfaces"));
    }
    if config.vsock().is_some() {
        return Err(VirtioError::NotYet("vsock"));
    }
    if config.entropy().is_some() {
        saved
            .entropy
            .as_ref()
            .ok_or(VirtioError::Missing("entropy"))?;
        devices.push(slots.put(Entropy::default(), Device::Entropy)?);
    }
    Ok(devices)
}
