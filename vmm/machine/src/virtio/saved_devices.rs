//! Which virtio devices a state file lists. The types are the file's own: what is added to the configuration is not in a file until it is added
//! here, with another version of the part.
//!
//! The order of the fields is their order in the file. Names and numbers (`DeviceId`, `Cid`, …) check themselves when they are decoded.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmgenie_devices::bounded;

use crate::config::{
    CacheMode, Cid, DeviceId, DevicesConfig, DriveConfig, EntropyConfig, InterfaceName, IoEngine,
    MacAddress, Mtu, NetConfig, PartUuid, VsockConfig, VsockPeers,
};

/// More devices than a machine has slots for: what a state file may list.
const MAX_DEVICES: usize = 64;

/// All virtio devices of a machine, version 3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevices {
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_DEVICES>")]
    drives: Vec<SavedDrive>,
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_DEVICES>")]
    nets: Vec<SavedNet>,
    vsock: Option<SavedVsock>,
    entropy: Option<SavedEntropy>,
}

/// Version 2: a vsock device did not know whose programs its guest may reach.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDevicesV2 {
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_DEVICES>")]
    drives: Vec<SavedDrive>,
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_DEVICES>")]
    nets: Vec<SavedNet>,
    vsock: Option<SavedVsockV2>,
    entropy: Option<SavedEntropy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedDrive {
    id: DeviceId,
    path: PathBuf,
    overlay: Option<PathBuf>,
    read_only: bool,
    is_root: bool,
    cache: SavedCache,
    io_engine: SavedEngine,
    partuuid: Option<PartUuid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedCache {
    Unsafe,
    Writeback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedEngine {
    Sync,
    Async,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedNet {
    id: DeviceId,
    host_dev_name: InterfaceName,
    guest_mac: Option<MacAddress>,
    mtu: Option<Mtu>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedVsock {
    guest_cid: Cid,
    uds_path: PathBuf,
    peers: SavedPeers,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedVsockV2 {
    guest_cid: Cid,
    uds_path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedPeers {
    Any,
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedEntropy {}

impl From<SavedDevicesV2> for SavedDevices {
    fn from(old: SavedDevicesV2) -> Self {
        Self {
            drives: old.drives,
            nets: old.nets,
            vsock: old.vsock.map(|vsock| SavedVsock {
                guest_cid: vsock.guest_cid,
                uds_path: vsock.uds_path,
                // As it was then.
                peers: SavedPeers::Any,
            }),
            entropy: old.entropy,
        }
    }
}

impl From<&DevicesConfig> for SavedDevices {
    fn from(config: &DevicesConfig) -> Self {
        Self {
            drives: config.drives().iter().map(SavedDrive::from).collect(),
            nets: config.nets().iter().map(SavedNet::from).collect(),
            vsock: config.vsock().map(SavedVsock::from),
            entropy: config.entropy().map(|EntropyConfig {}| SavedEntropy {}),
        }
    }
}

/// They may contradict each other still: [`DevicesConfig::check`].
impl From<SavedDevices> for DevicesConfig {
    fn from(saved: SavedDevices) -> Self {
        Self::listed(
            saved.drives.into_iter().map(DriveConfig::from).collect(),
            saved.nets.into_iter().map(NetConfig::from).collect(),
            saved.vsock.map(VsockConfig::from),
            saved.entropy.map(|SavedEntropy {}| EntropyConfig {}),
        )
    }
}

impl From<&DriveConfig> for SavedDrive {
    fn from(drive: &DriveConfig) -> Self {
        // Whole, so that whoever adds a field has to say here what becomes of it.
        let DriveConfig {
            id,
            path,
            overlay,
            read_only,
            is_root,
            cache,
            io_engine,
            partuuid,
        } = drive.clone();
        Self {
            id,
            path,
            overlay,
            read_only,
            is_root,
            cache: match cache {
                CacheMode::Unsafe => SavedCache::Unsafe,
                CacheMode::Writeback => SavedCache::Writeback,
            },
            io_engine: match io_engine {
                IoEngine::Sync => SavedEngine::Sync,
                IoEngine::Async => SavedEngine::Async,
            },
            partuuid,
        }
    }
}

impl From<SavedDrive> for DriveConfig {
    fn from(saved: SavedDrive) -> Self {
        Self {
            id: saved.id,
            path: saved.path,
            overlay: saved.overlay,
            read_only: saved.read_only,
            is_root: saved.is_root,
            cache: match saved.cache {
                SavedCache::Unsafe => CacheMode::Unsafe,
                SavedCache::Writeback => CacheMode::Writeback,
            },
            io_engine: match saved.io_engine {
                SavedEngine::Sync => IoEngine::Sync,
                SavedEngine::Async => IoEngine::Async,
            },
            partuuid: saved.partuuid,
        }
    }
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

impl From<&VsockConfig> for SavedVsock {
    fn from(vsock: &VsockConfig) -> Self {
        let VsockConfig {
            guest_cid,
            uds_path,
            peers,
        } = vsock.clone();
        Self {
            guest_cid,
            uds_path,
            peers: match peers {
                VsockPeers::Any => SavedPeers::Any,
                VsockPeers::Own => SavedPeers::Own,
            },
        }
    }
}

impl From<SavedVsock> for VsockConfig {
    fn from(saved: SavedVsock) -> Self {
        Self {
            guest_cid: saved.guest_cid,
            uds_path: saved.uds_path,
            peers: match saved.peers {
                SavedPeers::Any => VsockPeers::Any,
                SavedPeers::Own => VsockPeers::Own,
            },
        }
    }
}
