//! The devices that have something of the host behind them, and what of them another clone of the same snapshot may have otherwise.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::names::{Cid, DeviceId, InterfaceName, MacAddress, Mtu};
use super::{ConfigError, InstanceData};

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name.
    pub id: DeviceId,
    /// The raw file or block device behind it.
    pub path: PathBuf,
    /// What the guest writes goes into this overlay, and `path` is only read.
    pub overlay: Option<PathBuf>,
    /// The guest may not write to it.
    pub read_only: bool,
    /// The guest's root file system is on it: it comes first (`/dev/vda`), and `root=` is added to the kernel command line.
    pub is_root: bool,
    /// What a flush of the guest does.
    pub cache: CacheMode,
    /// How requests are served.
    pub io_engine: IoEngine,
    /// The partition with the root file system; of a root drive only.
    pub partuuid: Option<PartUuid>,
}

/// The UUID of a partition, as it goes on the kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartUuid(String);

impl PartUuid {
    /// Letters, digits and `-`, and Linux's `/PARTNROFF=N`: nothing that could begin another kernel parameter. At most 64 bytes.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-/=".contains(&b);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
            return Err(ConfigError::PartUuid);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PartUuid {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        Self::new(&text)
    }
}

impl From<PartUuid> for String {
    fn from(uuid: PartUuid) -> Self {
        uuid.0
    }
}

/// What a flush of the guest does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Flushes are not offered: a crash of the host may lose what the guest believes to be written.
    #[default]
    Unsafe,
    /// A flush is answered when everything written before it is on the host's disk.
    Writeback,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// One after the other, by plain system calls.
    #[default]
    Sync,
    /// By io_uring, as many at a time as the guest asks for.
    Async,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name.
    pub id: DeviceId,
    /// The tap on the host.
    pub host_dev_name: InterfaceName,
    /// The MAC address that the guest is told; without one it is told a random one.
    pub guest_mac: Option<MacAddress>,
    /// The MTU that the guest is told.
    pub mtu: Option<Mtu>,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's address.
    pub guest_cid: Cid,
    /// The Unix socket on which hosts' programs connect to the guest. Connections of the guest to port P go to `<uds_path>_P`.
    pub uds_path: PathBuf,
    /// Whose programs the guest reaches there.
    pub peers: VsockPeers,
}

/// Whose programs on the host a guest reaches through its vsock device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VsockPeers {
    /// Whoever listens.
    #[default]
    Any,
    /// Programs of the VMM's user and of the superuser.
    Own,
}

/// What a restored machine has otherwise than the one that was snapshotted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceOverrides {
    /// Other files behind drives.
    pub drives: Vec<DriveOverride>,
    /// Other taps and MAC addresses.
    pub nets: Vec<NetOverride>,
    /// Another socket and CID.
    pub vsock: VsockOverride,
    /// The guest's identity string. Without one a machine with a new generation has none, and one with the old keeps its own.
    pub instance_data: Option<InstanceData>,
}

/// Another file behind a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveOverride {
    /// The drive.
    pub id: DeviceId,
    /// The file that the restored machine uses.
    pub path: PathBuf,
    /// Where that file comes from.
    pub source: DriveSource,
}

/// Where the file of a restored machine's drive comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DriveSource {
    /// It is there.
    #[default]
    Existing,
    /// It is made, a copy of the one in the snapshot. It must not be there yet.
    Copy,
    /// It is made, an overlay on the one in the snapshot, or a copy of the overlay there. It must not be there yet.
    Overlay,
}

/// Another tap or MAC address behind a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOverride {
    /// The interface.
    pub id: DeviceId,
    /// The tap that the restored machine uses.
    pub host_dev_name: Option<InterfaceName>,
    /// The MAC address that its device has.
    pub guest_mac: Option<MacAddress>,
}

/// Another socket or CID for the vsock device, or other programs that the guest reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VsockOverride {
    /// The Unix socket.
    pub uds_path: Option<PathBuf>,
    /// The guest's address.
    pub guest_cid: Option<Cid>,
    /// Whose programs the guest reaches.
    pub peers: Option<VsockPeers>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_cannot_smuggle_in_a_kernel_parameter() {
        assert!(PartUuid::new("0eaa91a0-01").is_ok());
        assert!(PartUuid::new("0eaa91a0-01/PARTNROFF=1").is_ok());
        assert!(PartUuid::new("x init=/bin/sh").is_err());
        assert!(PartUuid::new("").is_err());
    }
}
