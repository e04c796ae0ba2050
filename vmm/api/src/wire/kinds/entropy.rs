//! The wire type of `/entropy`.

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use crate::wire::RateLimiter;

/// PUT `/entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct EntropyDevice {
    /// No limit only.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
}
