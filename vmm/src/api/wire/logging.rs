//! The wire types of `/logger` and `/metrics`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use utoipa::ToSchema;

use super::{WireError, not_empty};
use crate::logging::{DIALECT_LEVEL, LogConfig, LogFormat};
use crate::metrics::MetricsConfig;

/// PUT `/logger`: what is absent stays as it is, but for the level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// The file or named pipe that the log goes to; standard error until one was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum LineFormat {
    /// For people.
    Text,
    /// A JSON object.
    Json,
}

/// The level that `text` names, as Firecracker spells them.
pub fn parse_level(text: &str) -> Result<LevelFilter, WireError> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err(WireError::Level(text.chars().take(64).collect())),
    })
}

impl TryFrom<Logger> for LogConfig {
    type Error = WireError;

    fn try_from(wire: Logger) -> Result<Self, WireError> {
        let path = wire.log_path.map(|path| not_empty("log_path", path));
        let level = wire.level.as_deref().map(parse_level).transpose()?;
        Ok(Self {
            path: path.transpose()?,
            level: Some(level.unwrap_or(DIALECT_LEVEL)),
            show_level: wire.show_level,
            show_origin: wire.show_log_origin,
            module: wire.module,
            format: wire.format.map(|format| match format {
                LineFormat::Text => LogFormat::Text,
                LineFormat::Json => LogFormat::Json,
            }),
        })
    }
}

/// PUT `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The file or named pipe that a line of JSON is appended to every 60 seconds, and when FlushMetrics is asked for.
    #[schema(value_type = String)]
    pub metrics_path: PathBuf,
    /// Tell the machine's name (`--id`) in each line, as `id`.
    #[serde(default)]
    pub emit_id: bool,
    /// What else to tell in each line, as `properties`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}

impl TryFrom<Metrics> for MetricsConfig {
    type Error = WireError;

    fn try_from(wire: Metrics) -> Result<Self, WireError> {
        Ok(Self {
            path: not_empty("metrics_path", wire.metrics_path)?,
            emit_id: wire.emit_id,
            properties: wire.properties.unwrap_or_default(),
        })
    }
}
