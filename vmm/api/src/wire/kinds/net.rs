//! The wire types of `/network-interfaces`.

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use crate::wire::RateLimiter;

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
    #[serde(default)]
    pub guest_mac: Option<String>,
    /// The MTU that the guest is told, 68 to 65,535; without it the guest uses its own.
    #[serde(default)]
    pub mtu: Option<u64>,
    /// No limit only.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// No limit only.
    #[serde(default)]
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
