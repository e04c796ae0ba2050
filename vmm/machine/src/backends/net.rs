//! From a network interface's configuration to the device, on its tap.

use thiserror::Error;
use vmgenie_devices::random::RandomError;
use vmgenie_devices::virtio::net::{Net, NetRestoreError, NetSettings, NetState, random_mac};

use super::tap::{Tap, TapError};
use crate::config::NetConfig;

/// Why a network device could not be made.
#[derive(Debug, Error)]
pub enum NetError {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A MAC address is wanted, and the host has no random numbers.
    #[error("could not make up a MAC address")]
    Mac(#[from] RandomError),
    /// The saved state.
    #[error("the snapshot's state does not fit")]
    Restore(#[from] NetRestoreError),
}

/// The device of a machine that boots. Without a MAC address it gets a random one, which the guest keeps over snapshots.
pub(crate) fn boot(config: &NetConfig) -> Result<Net<Tap>, NetError> {
    let mac = match config.guest_mac {
        Some(mac) => mac.bytes(),
        None => random_mac()?,
    };
    let settings = NetSettings {
        mac,
        mtu: config.mtu.map(|mtu| mtu.get()),
    };
    let tap = Tap::open(config.host_dev_name.as_str())?;
    Ok(Net::new(settings, tap))
}

/// The device of a machine that is restored, with the tap and the MAC address that `config` says, which may be others than
/// they were.
pub(crate) fn restore(config: &NetConfig, state: &NetState) -> Result<Net<Tap>, NetError> {
    let tap = Tap::open(config.host_dev_name.as_str())?;
    let mac = config.guest_mac.map(|mac| mac.bytes());
    Ok(Net::from_state(state, mac, tap)?)
}
