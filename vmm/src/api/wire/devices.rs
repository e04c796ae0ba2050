//! The wire types of `/drives`, `/network-interfaces`, `/vsock` and `/entropy`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{WireError, not_empty};
use crate::config::{
    CacheMode, Cid, DeviceId, DriveConfig, EntropyConfig, InterfaceName, IoEngine as Engine, Mtu,
    NetConfig, PartUuid, VsockConfig, VsockPeers as PeersOfGuest,
};

/// PUT `/drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The name of the drive, the same as in the path: letters, digits and underscores.
    pub drive_id: String,
    /// The partition with the guest's root file system; looked at with `is_root_device` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// The guest's root file system is on this drive: it becomes `/dev/vda`, and `root=` is added to the kernel command line.
    pub is_root_device: bool,
    /// Whether a flush of the guest reaches the host's disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest may not write; false when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The raw file or block device behind the drive; required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path_on_host: Option<PathBuf>,
    /// The overlay that takes what the guest writes, while `path_on_host` is only read; it is there, made by a load with the drive override
    /// `overlay`. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub overlay_path: Option<PathBuf>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// How requests are served; `Sync` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// The socket of a vhost-user backend: refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// Whether a flush of the guest reaches the host's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CacheType {
    /// The guest cannot flush.
    #[default]
    Unsafe,
    /// A flush is answered when everything written before is on the host's disk.
    Writeback,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum IoEngine {
    /// One after the other.
    #[default]
    Sync,
    /// By io_uring, many at a time.
    Async,
}

impl TryFrom<Drive> for DriveConfig {
    type Error = WireError;

    fn try_from(wire: Drive) -> Result<Self, WireError> {
        let id = DeviceId::new(&wire.drive_id)?;
        if wire.socket.is_some() {
            return Err(WireError::VhostUser);
        }
        unlimited("rate_limiter", wire.rate_limiter.as_ref())?;
        let path = wire
            .path_on_host
            .ok_or(WireError::Missing("path_on_host"))?;
        let partuuid = wire.partuuid.filter(|_| wire.is_root_device);
        Ok(Self {
            id,
            path: not_empty("path_on_host", path)?,
            overlay: (wire.overlay_path)
                .map(|path| not_empty("overlay_path", path))
                .transpose()?,
            read_only: wire.is_read_only.unwrap_or(false),
            is_root: wire.is_root_device,
            cache: match wire.cache_type {
                CacheType::Unsafe => CacheMode::Unsafe,
                CacheType::Writeback => CacheMode::Writeback,
            },
            io_engine: match wire.io_engine.unwrap_or_default() {
                IoEngine::Sync => Engine::Sync,
                IoEngine::Async => Engine::Async,
            },
            partuuid: partuuid.as_deref().map(PartUuid::new).transpose()?,
        })
    }
}

impl From<&DriveConfig> for Drive {
    fn from(drive: &DriveConfig) -> Self {
        Self {
            drive_id: drive.id.to_string(),
            partuuid: drive.partuuid.as_ref().map(|p| p.as_str().to_owned()),
            is_root_device: drive.is_root,
            cache_type: match drive.cache {
                CacheMode::Unsafe => CacheType::Unsafe,
                CacheMode::Writeback => CacheType::Writeback,
            },
            is_read_only: Some(drive.read_only),
            path_on_host: Some(lossy(&drive.path)),
            overlay_path: drive.overlay.as_deref().map(lossy),
            rate_limiter: None,
            io_engine: Some(match drive.io_engine {
                Engine::Sync => IoEngine::Sync,
                Engine::Async => IoEngine::Async,
            }),
            socket: None,
        }
    }
}

/// PATCH `/drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// The name of the drive, the same as in the path.
    pub drive_id: String,
    /// Another file behind the drive; without it the present one is opened anew, so that the guest learns of another size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path_on_host: Option<PathBuf>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl PartialDrive {
    /// The drive and its new file.
    pub fn checked(self) -> Result<(DeviceId, Option<PathBuf>), WireError> {
        unlimited("rate_limiter", self.rate_limiter.as_ref())?;
        let path = self
            .path_on_host
            .map(|path| not_empty("path_on_host", path));
        Ok((DeviceId::new(&self.drive_id)?, path.transpose()?))
    }
}

/// PUT `/network-interfaces/{iface_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The name of the interface, the same as in the path: letters, digits and underscores.
    pub iface_id: String,
    /// The tap on the host; it is made if it is not there.
    pub host_dev_name: String,
    /// The MAC address of the guest's interface, `06:00:ac:10:00:02`; without it a random one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The MTU that the guest is told, 68 to 65,535; without it the guest uses its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl TryFrom<NetworkInterface> for NetConfig {
    type Error = WireError;

    fn try_from(wire: NetworkInterface) -> Result<Self, WireError> {
        unlimited("rx_rate_limiter", wire.rx_rate_limiter.as_ref())?;
        unlimited("tx_rate_limiter", wire.tx_rate_limiter.as_ref())?;
        Ok(Self {
            id: DeviceId::new(&wire.iface_id)?,
            host_dev_name: InterfaceName::new(&wire.host_dev_name)?,
            guest_mac: wire.guest_mac.as_deref().map(str::parse).transpose()?,
            mtu: wire.mtu.map(Mtu::new).transpose()?,
        })
    }
}

impl From<&NetConfig> for NetworkInterface {
    fn from(net: &NetConfig) -> Self {
        Self {
            iface_id: net.id.to_string(),
            host_dev_name: net.host_dev_name.to_string(),
            guest_mac: net.guest_mac.map(|mac| mac.to_string()),
            mtu: net.mtu.map(|mtu| mtu.get().into()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}

/// PATCH `/network-interfaces/{iface_id}`: rate limiters, which there are none of, so nothing can be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialNetworkInterface {
    /// The name of the interface, the same as in the path.
    pub iface_id: String,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
    /// Plugs the guest's cable in or out; it stays as it is when absent. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_up: Option<bool>,
}

impl PartialNetworkInterface {
    /// The interface, and what becomes of its link.
    pub fn checked(self) -> Result<(DeviceId, Option<bool>), WireError> {
        unlimited("rx_rate_limiter", self.rx_rate_limiter.as_ref())?;
        unlimited("tx_rate_limiter", self.tx_rate_limiter.as_ref())?;
        Ok((DeviceId::new(&self.iface_id)?, self.link_up))
    }
}

/// PUT `/vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address, 3 to 4,294,967,294.
    pub guest_cid: u64,
    /// The Unix socket on which the host's programs connect to the guest; it is made when the machine starts. Connections of the
    /// guest to the host's port P go to the Unix socket `<uds_path>_P`.
    #[schema(value_type = String)]
    pub uds_path: PathBuf,
    /// Whose programs the guest reaches there: `any`, or `own`. Ours; `any` when absent.
    #[serde(default, skip_serializing_if = "VsockPeers::is_default")]
    pub peers: VsockPeers,
    /// Deprecated; not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

/// Whose programs on the host a guest reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VsockPeers {
    /// Whoever listens.
    #[default]
    Any,
    /// Programs of the VMM's user and of root; others are refused, with a warning in the log.
    Own,
}

impl VsockPeers {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<VsockPeers> for PeersOfGuest {
    fn from(wire: VsockPeers) -> Self {
        match wire {
            VsockPeers::Any => Self::Any,
            VsockPeers::Own => Self::Own,
        }
    }
}

impl From<PeersOfGuest> for VsockPeers {
    fn from(peers: PeersOfGuest) -> Self {
        match peers {
            PeersOfGuest::Any => Self::Any,
            PeersOfGuest::Own => Self::Own,
        }
    }
}

impl TryFrom<Vsock> for VsockConfig {
    type Error = WireError;

    fn try_from(wire: Vsock) -> Result<Self, WireError> {
        Ok(Self {
            guest_cid: Cid::new(wire.guest_cid)?,
            uds_path: not_empty("uds_path", wire.uds_path)?,
            peers: wire.peers.into(),
        })
    }
}

impl From<&VsockConfig> for Vsock {
    fn from(vsock: &VsockConfig) -> Self {
        Self {
            guest_cid: vsock.guest_cid.get().into(),
            uds_path: lossy(&vsock.uds_path),
            peers: vsock.peers.into(),
            vsock_id: None,
        }
    }
}

/// PUT `/entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyDevice {
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl TryFrom<EntropyDevice> for EntropyConfig {
    type Error = WireError;

    fn try_from(wire: EntropyDevice) -> Result<Self, WireError> {
        unlimited("rate_limiter", wire.rate_limiter.as_ref())?;
        Ok(Self {})
    }
}

/// A rate limiter. There are none here: only one that limits nothing is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// How much may be done in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How much; 0 means no limit.
    pub size: u64,
    /// How much more at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// In how many milliseconds; 0 means no limit.
    pub refill_time: u64,
}

/// Refuses a limiter that would limit.
fn unlimited(field: &'static str, limiter: Option<&RateLimiter>) -> Result<(), WireError> {
    let limits = |bucket: &TokenBucket| bucket.size > 0 && bucket.refill_time > 0;
    let buckets = limiter.into_iter().flat_map(|l| [&l.bandwidth, &l.ops]);
    if buckets.flatten().any(limits) {
        Err(WireError::RateLimiter(field))
    } else {
        Ok(())
    }
}

/// A path that is no UTF-8 can only come from the command line; it is shown, never read back.
pub(super) fn lossy(path: &Path) -> PathBuf {
    PathBuf::from(path.to_string_lossy().into_owned())
}
