//! Network interfaces.

use serde::{Deserialize, Serialize};
use vmgenie_devices::virtio::net::{self, Net, NetMetrics, NetState};
use vmgenie_devices::virtio::{Active, VirtioMmio};

use super::kind::{Found, Kind, Model, Offer, Refusal};
use super::{DeviceConfig, DevicesConfig, SavedVirtio};
use crate::backends::net::{self as backend, NetError};
use crate::backends::tap::{Tap, check_kind};
use crate::config::{
    ConfigError, DeviceId, InterfaceName, MacAddress, Mtu, NetConfig, NetOverride,
};
use crate::metrics::ByName;
use crate::request::Gate;
use crate::state::device_part;
use crate::virtio::copies::DriveCopies;
use crate::virtio::{Side, VirtioError};

/// What they count.
pub(super) static METRICS: ByName<NetMetrics> = ByName::new();

device_part!(
    NetPart,
    NetState,
    "virtio-net",
    "A network interface; one part for each, in the order of their slots."
);

/// The kind.
pub(super) enum NetKind {}

impl Kind for NetKind {
    type Config = NetConfig;
    type State = NetPart;
    type Model = Net<Tap>;
    const WHAT: &'static str = "a network interface";

    fn boot(config: &NetConfig) -> Result<Self::Model, VirtioError> {
        let device = backend::boot(config).map_err(failed(config))?;
        Ok(device.with_metrics(METRICS.of(config.id.as_str())))
    }

    fn restore(
        config: &NetConfig,
        state: &NetPart,
        _: &mut Found,
    ) -> Result<Self::Model, VirtioError> {
        let device = backend::restore(config, &state.0).map_err(failed(config))?;
        Ok(device.with_metrics(METRICS.of(config.id.as_str())))
    }

    fn check(_: &NetConfig, NetPart(state): &NetPart) -> Result<Offer, Refusal> {
        state.check()?;
        Ok((&net::QUEUE_SIZES, state.offered()))
    }
}

impl Model for Net<Tap> {
    fn save_to(&self, saved: &mut SavedVirtio, _: &DriveCopies) {
        saved.nets.push(NetPart(self.save()));
    }

    fn as_net(device: &VirtioMmio<Self>) -> Option<&VirtioMmio<Net<Tap>>> {
        Some(device)
    }

    fn shut_gate(&mut self, gate: Gate) {
        if gate.link {
            Self::shut_gate(self);
        }
    }

    fn open_gate(&mut self, side: Side, active: Option<&mut Active<'_>>) {
        if side == Side::Networks {
            Self::open_gate(self, active);
        }
    }
}

fn failed(config: &NetConfig) -> impl FnOnce(NetError) -> VirtioError {
    let what = format!("set up the network interface {:?}", config.id.as_str());
    |source| VirtioError::Device {
        what,
        source: source.into(),
    }
}

/// One that can never be used would stay, and keep its MAC address from others.
pub(super) fn check_host(net: &NetConfig) -> Result<(), Refusal> {
    Ok(check_kind(net.host_dev_name.as_str())?)
}

impl From<NetConfig> for DeviceConfig {
    fn from(net: NetConfig) -> Self {
        Self::Net(net)
    }
}

impl DevicesConfig {
    /// The network interfaces.
    pub fn nets(&self) -> &[NetConfig] {
        &self.nets
    }

    /// Interfaces without a MAC address get these, in the order of the interfaces.
    pub fn keep_macs(&mut self, macs: impl Iterator<Item = MacAddress>) {
        for (net, mac) in self.nets.iter_mut().zip(macs) {
            net.guest_mac.get_or_insert(mac);
        }
    }

    /// Adds a network interface, or replaces the one of the same name where it is.
    ///
    /// # Errors
    /// Another interface has the same MAC address or uses the same tap.
    pub fn put_net(&mut self, net: NetConfig) -> Result<(), ConfigError> {
        self.check_conflicts(&net)?;
        match self.nets.iter_mut().find(|other| other.id == net.id) {
            Some(place) => *place = net,
            None => self.nets.push(net),
        }
        Ok(())
    }

    pub(super) fn override_nets(&mut self, overrides: &[NetOverride]) -> Result<(), ConfigError> {
        for change in overrides {
            let net = self.net_mut(&change.id)?;
            if let Some(name) = &change.host_dev_name {
                net.host_dev_name = name.clone();
            }
            net.guest_mac = change.guest_mac.or(net.guest_mac);
        }
        // Not before all have been changed: two interfaces may have exchanged their taps.
        for net in &self.nets {
            self.check_conflicts(net)?;
        }
        Ok(())
    }

    fn net_mut(&mut self, id: &DeviceId) -> Result<&mut NetConfig, ConfigError> {
        let found = self.nets.iter_mut().find(|net| net.id == *id);
        found.ok_or_else(|| ConfigError::NoSuchNet(id.clone()))
    }

    fn check_conflicts(&self, net: &NetConfig) -> Result<(), ConfigError> {
        for other in self.nets.iter().filter(|other| other.id != net.id) {
            if let Some(mac) = net.guest_mac.filter(|mac| other.guest_mac == Some(*mac)) {
                return Err(ConfigError::MacInUse(mac));
            }
            if other.host_dev_name == net.host_dev_name {
                return Err(ConfigError::TapInUse(net.host_dev_name.clone()));
            }
        }
        Ok(())
    }
}

/// One in the list of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNet {
    id: DeviceId,
    host_dev_name: InterfaceName,
    guest_mac: Option<MacAddress>,
    mtu: Option<Mtu>,
}

impl From<&NetConfig> for SavedNet {
    fn from(net: &NetConfig) -> Self {
        let NetConfig {
            id,
            host_dev_name,
            guest_mac,
            mtu,
        } = net.clone();
        Self {
            id,
            host_dev_name,
            guest_mac,
            mtu,
        }
    }
}

impl From<SavedNet> for NetConfig {
    fn from(saved: SavedNet) -> Self {
        Self {
            id: saved.id,
            host_dev_name: saved.host_dev_name,
            guest_mac: saved.guest_mac,
            mtu: saved.mtu,
        }
    }
}
