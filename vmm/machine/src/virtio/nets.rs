//! The cables of a machine's network interfaces.

use super::VirtioDevices;
use super::device::Device;
use crate::config::{ConfigError, DeviceId};

impl VirtioDevices {
    /// Plugs a cable in or out, if `link_up` says so. The guest is told.
    pub(crate) fn update_net(
        &mut self,
        id: &DeviceId,
        link_up: Option<bool>,
    ) -> Result<(), ConfigError> {
        // Network interfaces have the slots behind the drives', in their order.
        let mut nets = self.config.nets().iter();
        let slot = nets
            .position(|net| net.id == *id)
            .map(|place| self.config.drives().len() + place);
        let device = slot.and_then(|slot| Some((slot, &self.slots.get(slot)?.device)));
        let Some((slot, Device::Net(device))) = device else {
            return Err(ConfigError::NoSuchNet(id.clone()));
        };
        if let Some(up) = link_up {
            device.with_device(|net, active| net.set_link(up, active));
            // What waits for the link is looked at when the vCPUs run.
            self.events.kick(slot);
        }
        Ok(())
    }
}
