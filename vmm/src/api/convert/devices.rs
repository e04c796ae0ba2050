//! `/drives`, `/network-interfaces`, `/vsock` and `/entropy`.

use std::path::{Path, PathBuf};

use vmgenie_api::wire::{
    CacheType, Drive, EntropyDevice, IoEngine, NetworkInterface, PartialDrive,
    PartialNetworkInterface, RateLimiter, TokenBucket, Vsock, VsockPeers,
};
use vmgenie_machine::config::{
    CacheMode, Cid, DeviceId, DriveConfig, InterfaceName, IoEngine as Engine, Mtu, NetConfig,
    PartUuid, VsockConfig, VsockPeers as PeersOfGuest,
};
use vmgenie_machine::virtio::kinds::EntropyConfig;

use super::{Checked, Convert, WireError, not_empty};

impl Checked<DriveConfig> for Drive {
    fn checked(self) -> Result<DriveConfig, WireError> {
        let wire = self;
        let id = DeviceId::new(&wire.drive_id)?;
        if wire.socket.is_some() {
            return Err(WireError::VhostUser);
        }
        unlimited("rate_limiter", wire.rate_limiter.as_ref())?;
        let path = wire
            .path_on_host
            .ok_or(WireError::Missing("path_on_host"))?;
        let partuuid = wire.partuuid.filter(|_| wire.is_root_device);
        Ok(DriveConfig {
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

impl Convert<Drive> for &DriveConfig {
    fn convert(self) -> Drive {
        let drive = self;
        Drive {
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

/// The drive and its new file.
impl Checked<(DeviceId, Option<PathBuf>)> for PartialDrive {
    fn checked(self) -> Result<(DeviceId, Option<PathBuf>), WireError> {
        unlimited("rate_limiter", self.rate_limiter.as_ref())?;
        let path = self
            .path_on_host
            .map(|path| not_empty("path_on_host", path));
        Ok((DeviceId::new(&self.drive_id)?, path.transpose()?))
    }
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

impl Convert<PeersOfGuest> for VsockPeers {
    fn convert(self) -> PeersOfGuest {
        let wire = self;
        match wire {
            VsockPeers::Any => PeersOfGuest::Any,
            VsockPeers::Own => PeersOfGuest::Own,
        }
    }
}

impl Convert<VsockPeers> for PeersOfGuest {
    fn convert(self) -> VsockPeers {
        let peers = self;
        match peers {
            PeersOfGuest::Any => VsockPeers::Any,
            PeersOfGuest::Own => VsockPeers::Own,
        }
    }
}

impl Checked<VsockConfig> for Vsock {
    fn checked(self) -> Result<VsockConfig, WireError> {
        let wire = self;
        Ok(VsockConfig {
            guest_cid: Cid::new(wire.guest_cid)?,
            uds_path: not_empty("uds_path", wire.uds_path)?,
            peers: wire.peers.convert(),
        })
    }
}

impl Convert<Vsock> for &VsockConfig {
    fn convert(self) -> Vsock {
        let vsock = self;
        Vsock {
            guest_cid: vsock.guest_cid.get().into(),
            uds_path: lossy(&vsock.uds_path),
            peers: vsock.peers.convert(),
            vsock_id: None,
        }
    }
}

impl Checked<EntropyConfig> for EntropyDevice {
    fn checked(self) -> Result<EntropyConfig, WireError> {
        let wire = self;
        unlimited("rate_limiter", wire.rate_limiter.as_ref())?;
        Ok(EntropyConfig {})
    }
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
