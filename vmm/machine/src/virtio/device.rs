//! A device of any kind.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use vm_device::DeviceMmio;
use vmgenie_devices::virtio::block::Block;
use vmgenie_devices::virtio::net::Net;
use vmgenie_devices::virtio::{Transport, VirtioMmio};

use super::Side;
use super::copies::DriveCopies;
use super::kinds::{Model, SavedVirtio};
use crate::backends::drive::Drive;
use crate::backends::tap::Tap;
use crate::config::DeviceId;
use crate::request::Gate;

/// How long a request of the API waits for a vCPU that is in the device: the event loop waits with it.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// A vCPU stays in the device.
#[derive(Debug, Error)]
#[error(
    "a vCPU is in the device {0} for more than {limit} s, and nothing has changed: a device that the guest resets waits for the host, as a drive \
     does whose storage gives no answer. Look at the storage of its drives, and try again",
    limit = PATIENCE.as_secs()
)]
pub struct DeviceBusy(pub(super) DeviceId);

/// A device of any kind in its transport. What one kind alone can do is reached by methods that are none of the others'.
pub(super) trait Device: Transport {
    /// The device for the bus.
    fn on_bus(self: Arc<Self>) -> Arc<dyn DeviceMmio + Send + Sync>;

    /// The device, if it is a drive.
    fn as_drive(&self) -> Option<&VirtioMmio<Block<Drive>>>;

    /// The device, if it is a network interface.
    fn as_net(&self) -> Option<&VirtioMmio<Net<Tap>>>;

    /// Adds the device's own state to `saved`; of the drives, `copies` were made.
    fn save_to(&self, saved: &mut SavedVirtio, copies: &DriveCopies);

    /// Keeps a restored device from its machine's peers, as far as `gate` says so.
    fn shut_gate(&self, gate: Gate);

    /// Lets it have them, on one side. False if a vCPU is in the device: nothing was done then.
    fn try_open_gate(&self, side: Side) -> bool;
}

impl<D: Model> Device for VirtioMmio<D> {
    fn on_bus(self: Arc<Self>) -> Arc<dyn DeviceMmio + Send + Sync> {
        self
    }

    fn as_drive(&self) -> Option<&VirtioMmio<Block<Drive>>> {
        D::as_drive(self)
    }

    fn as_net(&self) -> Option<&VirtioMmio<Net<Tap>>> {
        D::as_net(self)
    }

    fn save_to(&self, saved: &mut SavedVirtio, copies: &DriveCopies) {
        self.with_device(|device, _| device.save_to(saved, copies));
    }

    fn shut_gate(&self, gate: Gate) {
        self.with_device(|device, _| Model::shut_gate(device, gate));
    }

    fn try_open_gate(&self, side: Side) -> bool {
        let opened = self.with_device_within(Duration::ZERO, |device, active| {
            Model::open_gate(device, side, active);
        });
        opened.is_some()
    }
}
