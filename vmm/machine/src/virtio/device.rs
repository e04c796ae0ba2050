//! A device of any kind.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use vm_device::DeviceMmio;
use vmgenie_devices::virtio::block::Block;
use vmgenie_devices::virtio::entropy::Entropy;
use vmgenie_devices::virtio::net::Net;
use vmgenie_devices::virtio::vsock::Vsock;
use vmgenie_devices::virtio::{Transport, VirtioMmio};

use super::copies::DriveCopies;
use super::files::DriveFilePart;
use super::state::{BlockPart, EntropyPart, NetPart, SavedVirtio, VsockPart};
use crate::backends::drive::Drive;
use crate::backends::tap::Tap;
use crate::backends::vsock::UnixHost;
use crate::config::DeviceId;

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
