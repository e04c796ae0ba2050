//! The cables of a machine's network interfaces.

use std::time::Instant;

use thiserror::Error;

use super::VirtioDevices;
use super::device::{DeviceBusy, PATIENCE};
use crate::config::{ConfigError, DeviceId};

/// Why a network interface could not be updated.
#[derive(Debug, Error)]
pub enum UpdateNetError {
    /// There is no such interface.
    #[error(transparent)]
    NoSuchNet(#[from] ConfigError),
    /// A vCPU is in it.
    #[error(transparent)]
    Busy(#[from] DeviceBusy),
}

impl VirtioDevices {
    /// Plugs a cable in or out, if `link_up` says so. The guest is told.
    pub(crate) fn update_net(
        &mut self,
        id: &DeviceId,
        link_up: Option<bool>,
    ) -> Result<(), UpdateNetError> {
        // Network interfaces have the slots behind the drives', in their order.
        let mut nets = self.config.nets().iter();
        let slot = nets
            .position(|net| net.id == *id)
            .map(|place| self.config.drives().len() + place);
        let device = slot.and_then(|slot| Some((slot, self.slots.get(slot)?.device.as_net()?)));
        let Some((slot, device)) = device else {
            return Err(ConfigError::NoSuchNet(id.clone()).into());
        };
        if let Some(up) = link_up {
            device
                .with_device_within(PATIENCE, |net, active| net.set_link(up, active))
                .ok_or_else(|| DeviceBusy(id.clone()))?;
            if up {
                self.announcing.begin(slot, Instant::now());
            }
            // What waits for the link is looked at when the vCPUs run.
            self.events.kick(slot);
        }
        Ok(())
    }
}
