//! What a snapshot holds of a network device, and a device out of it.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;

use super::{FrameBackend, MIN_MTU, Net, NetSettings, Offloads, is_consistent, offered};
use crate::DeviceState;

/// The device's own state; its queues are the transport's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The guest's MAC address, in the order in which it is sent.
    pub mac: [u8; 6],
    /// The largest packet in bytes, if the guest is told.
    pub mtu: Option<u16>,
    /// The features that driver and device have agreed on; 0 if the device was not active.
    pub features: u64,
    /// The link was up.
    pub link: bool,
    /// The driver has been told to announce itself, and had not done so yet.
    pub announce: bool,
}

impl DeviceState for NetState {
    const VERSION: u16 = 1;
}

/// Why a network device could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetRestoreError {
    /// The MTU is too small.
    #[error("could not restore a network device with an MTU of {0} bytes")]
    Mtu(u16),
    /// The driver cannot have had these features.
    #[error(
        "could not restore a network device whose driver has the features {features:#x} of {offered:#x}"
    )]
    Features {
        /// What the state says.
        features: u64,
        /// What this device and its network have.
        offered: u64,
    },
    /// The backend does not do what the driver relies on.
    #[error("could not set up the network's offloads as the guest has them")]
    Offloads(#[source] std::io::Error),
}

impl NetState {
    /// Whether such a device can have saved this, on a network that can do anything.
    ///
    /// # Errors
    /// [`NetRestoreError`].
    pub fn check(&self) -> Result<(), NetRestoreError> {
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetRestoreError::Mtu(mtu));
        }
        self.check_features(Offloads::ALL)
    }

    /// What is on offer by a device with this state, on a network that can do anything.
    pub fn offered(&self) -> u64 {
        self.offered_on(Offloads::ALL)
    }

    fn offered_on(&self, offloads: Offloads) -> u64 {
        let settings = NetSettings {
            mac: self.mac,
            mtu: self.mtu,
        };
        offered(settings, offloads)
    }

    fn check_features(&self, offloads: Offloads) -> Result<(), NetRestoreError> {
        let (features, offered) = (self.features, self.offered_on(offloads));
        if features & !offered == 0 && is_consistent(features) {
            return Ok(());
        }
        Err(NetRestoreError::Features { features, offered })
    }
}

impl<B: FrameBackend> Net<B> {
    /// The device's state. *vCPUs:* standing still; the device is drained.
    pub fn save(&self) -> NetState {
        NetState {
            mac: self.settings.mac,
            mtu: self.settings.mtu,
            features: self.features,
            link: self.link,
            announce: self.announce,
        }
    }

    /// The device that was saved, on a network of its own. With `mac` it has another address; see the module's text for what
    /// the guest makes of that.
    ///
    /// The driver will be told to announce itself, as the network may be another.
    ///
    /// # Errors
    /// The state, which came from a file and may hold anything, cannot have been saved by such a device, or `backend`
    /// lacks what the guest relies on.
    pub fn from_state(
        state: &NetState,
        mac: Option<[u8; 6]>,
        backend: B,
    ) -> Result<Self, NetRestoreError> {
        state.check()?;
        state.check_features(backend.offloads())?;
        let settings = NetSettings {
            mac: mac.unwrap_or(state.mac),
            mtu: state.mtu,
        };
        let mut device = Self::new(settings, backend);
        device.features = state.features;
        device.link = state.link;
        if state.features != 0 {
            let announce = device.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
            device.announce = announce;
            device.config_changed = announce || settings.mac != state.mac;
            let offloads = device.wanted_offloads();
            device
                .backend
                .set_offloads(offloads)
                .map_err(NetRestoreError::Offloads)?;
        }
        Ok(device)
    }
}
