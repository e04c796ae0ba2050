//! The wire types of `/drives`, `/network-interfaces`, `/vsock` and `/entropy`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

/// PUT `/drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
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
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub path_on_host: Option<PathBuf>,
    /// The overlay that takes what the guest writes, while `path_on_host` is only read; it is there, made by a load with the drive override
    /// `overlay`. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum CacheType {
    /// The guest cannot flush.
    #[default]
    Unsafe,
    /// A flush is answered when everything written before is on the host's disk.
    Writeback,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum IoEngine {
    /// One after the other.
    #[default]
    Sync,
    /// By io_uring, many at a time.
    Async,
}

/// PATCH `/drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// The name of the drive, the same as in the path.
    pub drive_id: String,
    /// Another file behind the drive; without it the present one is opened anew, so that the guest learns of another size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub path_on_host: Option<PathBuf>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// PUT `/network-interfaces/{iface_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
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

/// PATCH `/network-interfaces/{iface_id}`: rate limiters, which there are none of, so nothing can be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
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

/// PUT `/vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct Vsock {
    /// The guest's address, 3 to 4,294,967,294.
    pub guest_cid: u64,
    /// The Unix socket on which the host's programs connect to the guest; it is made when the machine starts. Connections of the
    /// guest to the host's port P go to the Unix socket `<uds_path>_P`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub uds_path: PathBuf,
    /// Whose programs the guest reaches there: `any`, or `own`. Ours; `any` when absent.
    #[serde(default, skip_serializing_if = "VsockPeers::is_default")]
    pub peers: VsockPeers,
    /// Deprecated; not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

/// Whose programs on the host a guest reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
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

/// PUT `/entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct EntropyDevice {
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A rate limiter. There are none here: only one that limits nothing is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// How much may be done in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct TokenBucket {
    /// How much; 0 means no limit.
    pub size: u64,
    /// How much more at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// In how many milliseconds; 0 means no limit.
    pub refill_time: u64,
}
