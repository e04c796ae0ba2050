//! Network interfaces.

use clap::Args;
use vmgenie_api::wire::{self, ConfigFile, FullConfig, NetworkInterface, PartialNetworkInterface};
use vmgenie_machine::config::{ConfigError, DeviceId, InterfaceName, MacAddress, Mtu, NetConfig};
use vmgenie_machine::virtio::kinds::DevicesConfig;

use super::kind::{BodyError, Kind, Put, PutCounters};
use crate::checked::{Checked, Convert, WireError, same_id, unlimited};
use crate::words::{Words, number, told, unknown};

/// The kind.
pub(super) struct NetKind;

static COUNTERS: PutCounters = PutCounters::new("network_count", "network_fails");

impl Kind for NetKind {
    fn path(&self) -> &'static str {
        "/network-interfaces/{iface_id}"
    }

    fn counters(&self) -> &'static PutCounters {
        &COUNTERS
    }

    fn put(&self, id: &str, body: &[u8]) -> Result<Put, BodyError> {
        Ok(put_network_interface(id, serde_json::from_slice(body)?)?)
    }

    fn show(&self, devices: &DevicesConfig, shown: &mut FullConfig) {
        shown.network_interfaces = devices.nets().iter().map(Convert::convert).collect();
    }

    fn read(&self, file: &mut ConfigFile, devices: &mut DevicesConfig) -> Result<(), WireError> {
        for net in std::mem::take(&mut file.network_interfaces) {
            devices.put_net(net.checked()?)?;
        }
        Ok(())
    }
}

/// Adds or replaces a network interface; before the start only.
#[utoipa::path(put, tag = "devices", path = "/network-interfaces/{iface_id}", params(("iface_id" = String, Path)),
    request_body = wire::NetworkInterface, responses((status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) fn put_network_interface(id: &str, body: NetworkInterface) -> Result<Put, WireError> {
    same_id(id, &body.iface_id)?;
    Ok(Put::of(body.checked()?))
}

impl Checked<NetConfig> for NetworkInterface {
    fn checked(self) -> Result<NetConfig, WireError> {
        let wire = self;
        unlimited("rx_rate_limiter", wire.rx_rate_limiter.as_ref())?;
        unlimited("tx_rate_limiter", wire.tx_rate_limiter.as_ref())?;
        Ok(NetConfig {
            id: DeviceId::new(&wire.iface_id)?,
            host_dev_name: InterfaceName::new(&wire.host_dev_name)?,
            guest_mac: wire.guest_mac.as_deref().map(str::parse).transpose()?,
            mtu: wire.mtu.map(Mtu::new).transpose()?,
        })
    }
}

impl Convert<NetworkInterface> for &NetConfig {
    fn convert(self) -> NetworkInterface {
        let net = self;
        NetworkInterface {
            iface_id: net.id.to_string(),
            host_dev_name: net.host_dev_name.to_string(),
            guest_mac: net.guest_mac.map(|mac| mac.to_string()),
            mtu: net.mtu.map(|mtu| mtu.get().into()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}

/// The interface, and what becomes of its link.
impl Checked<(DeviceId, Option<bool>)> for PartialNetworkInterface {
    fn checked(self) -> Result<(DeviceId, Option<bool>), WireError> {
        unlimited("rx_rate_limiter", self.rx_rate_limiter.as_ref())?;
        unlimited("tx_rate_limiter", self.tx_rate_limiter.as_ref())?;
        Ok((DeviceId::new(&self.iface_id)?, self.link_up))
    }
}

/// Network interfaces for `vmgenie run`: `net0`, `net1`, ...
#[derive(Debug, Args)]
pub struct NetFlags {
    /// A network interface on a tap of the host: TAP[,mac=MAC][,mtu=MTU]; may be given several times.
    #[arg(long, value_name = "NET", value_parser = parse_net)]
    net: Vec<NetArg>,
}

impl NetFlags {
    pub(super) fn add_to(&self, devices: &mut DevicesConfig) -> Result<(), ConfigError> {
        for (number, net) in self.net.iter().enumerate() {
            devices.put_net(NetConfig {
                id: DeviceId::new(&format!("net{number}"))?,
                host_dev_name: net.tap.clone(),
                guest_mac: net.mac,
                mtu: net.mtu,
            })?;
        }
        Ok(())
    }
}

/// A network interface without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NetArg {
    tap: InterfaceName,
    mac: Option<MacAddress>,
    mtu: Option<Mtu>,
}

/// `TAP[,mac=MAC][,mtu=MTU]`.
fn parse_net(text: &str) -> Result<NetArg, String> {
    let words = Words::of(text);
    let (tap, options) = words.parts();
    let mut net = NetArg {
        tap: InterfaceName::new(tap).map_err(told)?,
        mac: None,
        mtu: None,
    };
    for option in options {
        match option {
            ("mac", Some(mac)) => net.mac = Some(mac.parse().map_err(told)?),
            ("mtu", Some(mtu)) => net.mtu = Some(Mtu::new(number(mtu)?).map_err(told)?),
            (name, _) => return unknown(name, "mac=MAC, mtu=MTU"),
        }
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_read_with_its_options() {
        let net = parse_net("tap0,mac=06:00:00:00:00:01,mtu=1400").unwrap();
        assert_eq!((net.tap.as_str(), net.mtu.unwrap().get()), ("tap0", 1400));
        for wrong in ["", "tap0,mac", "tap0,mtu=1", "tap0,mtu=x", "tap0,ip=1"] {
            assert!(parse_net(wrong).is_err(), "{wrong}");
        }
    }
}
