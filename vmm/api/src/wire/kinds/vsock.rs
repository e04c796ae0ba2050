//! The wire types of `/vsock`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

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
