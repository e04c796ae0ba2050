//! The wire types of `/drives`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use crate::wire::RateLimiter;

/// PUT `/drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct Drive {
    /// The name of the drive, the same as in the path: letters, digits and underscores.
    pub drive_id: String,
    /// The partition with the guest's root file system; looked at with `is_root_device` only.
    #[serde(default)]
    pub partuuid: Option<String>,
    /// The guest's root file system is on this drive: it becomes `/dev/vda`, and `root=` is added to the kernel command line.
    pub is_root_device: bool,
    /// Whether a flush of the guest reaches the host's disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest may not write; false when absent.
    #[serde(default)]
    pub is_read_only: Option<bool>,
    /// The raw file or block device behind the drive; required.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub path_on_host: Option<PathBuf>,
    /// The overlay that takes what the guest writes, while `path_on_host` is only read; it is there, made by a load with the drive override
    /// `overlay`. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub overlay_path: Option<PathBuf>,
    /// No limit only.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
    /// How requests are served; `Sync` when absent.
    #[serde(default)]
    pub io_engine: Option<IoEngine>,
    /// The socket of a vhost-user backend: refused.
    #[serde(default)]
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
