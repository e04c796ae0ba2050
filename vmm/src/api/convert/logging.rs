//! `/logger`, `/metrics` and `/serial`.

use std::path::PathBuf;

use tracing::level_filters::LevelFilter;
use vmgenie_api::wire::{LineFormat, Logger, Metrics, RateLimiter, Serial};

use super::{Checked, WireError, not_empty};
use crate::checked::unlimited;
use crate::logging::{DIALECT_LEVEL, LogConfig, LogFormat};
use crate::metrics::MetricsConfig;

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

impl Checked<LogConfig> for Logger {
    fn checked(self) -> Result<LogConfig, WireError> {
        let wire = self;
        let path = wire.log_path.map(|path| not_empty("log_path", path));
        let level = wire.level.as_deref().map(parse_level).transpose()?;
        Ok(LogConfig {
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

/// Where the guest's serial console goes.
impl Checked<Option<PathBuf>> for Serial {
    fn checked(self) -> Result<Option<PathBuf>, WireError> {
        let limiter = RateLimiter {
            bandwidth: self.rate_limiter,
            ops: None,
        };
        unlimited("rate_limiter", Some(&limiter))?;
        let path = self.serial_out_path;
        path.map(|path| not_empty("serial_out_path", path))
            .transpose()
    }
}

impl Checked<MetricsConfig> for Metrics {
    fn checked(self) -> Result<MetricsConfig, WireError> {
        let wire = self;
        Ok(MetricsConfig {
            path: not_empty("metrics_path", wire.metrics_path)?,
            emit_id: wire.emit_id,
            properties: wire.properties.unwrap_or_default(),
        })
    }
}
