//! The wire types of `/logger`, `/metrics` and `/serial`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::TokenBucket;
#[cfg(feature = "schema")]
use utoipa::ToSchema;

/// PUT `/logger`: what is absent stays as it is, but for the level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// The file or named pipe that the log goes to; standard error until one was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub log_path: Option<PathBuf>,
    /// The least important level that is told: `Error`, `Warning` (or `Warn`), `Info`, `Debug`, `Trace` or `Off`, in large or small
    /// letters; `Info` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Tell the level in each line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Tell the place in the source in each line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only what comes from modules whose paths begin so: `api::server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// How a line looks. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LineFormat>,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum LineFormat {
    /// For people.
    Text,
    /// A JSON object.
    Json,
}

/// PUT `/serial`: where the guest's serial console goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The file or named pipe that it is written to, from the front of a file on; standard output when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub serial_out_path: Option<PathBuf>,
    /// No limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

/// PUT `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The file or named pipe that a line of JSON is appended to every 60 seconds, and when FlushMetrics is asked for.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub metrics_path: PathBuf,
    /// Tell the machine's name (`--id`) in each line, as `id`.
    #[serde(default)]
    pub emit_id: bool,
    /// What else to tell in each line, as `properties`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}
