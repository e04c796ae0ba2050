//! Firecracker's JSON lines: one object in each, with what has been counted since the line before.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use thiserror::Error;

use super::METRICS;
use crate::logging::LineFile;

/// How often a line is written while a machine is there.
pub const WRITE_PERIOD: Duration = Duration::from_secs(60);

/// What to write and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// A file (lines are appended) or named pipe.
    pub path: PathBuf,
    /// Tell the machine's name in each line.
    pub emit_id: bool,
    /// What else to tell in each line.
    pub properties: BTreeMap<String, String>,
}

/// Why no metrics can be written.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// There is a file already.
    #[error("the metrics have been initialized already: that can be done once")]
    Already,
    /// The file cannot be opened.
    #[error("could not open the metrics file {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The file cannot be written.
    #[error("could not write the metrics to {0}")]
    Write(PathBuf, #[source] io::Error),
}

/// A file that takes lines of metrics.
#[derive(Debug)]
pub struct MetricsFile {
    config: MetricsConfig,
    id: String,
    file: LineFile,
    /// The values in the line before, in the order of the samples.
    before: Vec<u64>,
}

impl MetricsFile {
    /// Opens the file; `id` is the machine's name.
    pub fn open(config: MetricsConfig, id: &str) -> Result<Self, MetricsError> {
        let file = LineFile::open(&config.path)
            .map_err(|error| MetricsError::Open(config.path.clone(), error))?;
        Ok(Self {
            config,
            id: id.to_owned(),
            file,
            before: Vec::new(),
        })
    }

    /// Writes one line.
    pub fn write(&mut self) -> Result<(), MetricsError> {
        let line = self.line();
        self.file.write_line(line.as_bytes()).map_err(|error| {
            METRICS.logger.missed_metrics_count.inc();
            MetricsError::Write(self.config.path.clone(), error)
        })
    }

    fn line(&mut self) -> String {
        let mut line = Map::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        line.insert(
            "utc_timestamp_ms".to_owned(),
            u64::try_from(now).unwrap_or(u64::MAX).into(),
        );
        if self.config.emit_id {
            line.insert("id".to_owned(), self.id.clone().into());
        }
        if !self.config.properties.is_empty() {
            let properties = self.config.properties.iter();
            let properties = properties.map(|(name, value)| (name.clone(), value.clone().into()));
            line.insert("properties".to_owned(), Value::Object(properties.collect()));
        }
        let samples = METRICS.samples();
        self.before.resize(samples.len(), 0);
        for (sample, before) in samples.iter().zip(&mut self.before) {
            let told = if sample.counts {
                sample.value.saturating_sub(*before)
            } else {
                sample.value
            };
            *before = sample.value;
            let group = line
                .entry(sample.group)
                .or_insert_with(|| Map::new().into());
            if let Value::Object(group) = group {
                group.insert(sample.name.to_owned(), told.into());
            }
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_tells_what_was_counted_since_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let config = MetricsConfig {
            path: dir.path().join("metrics"),
            emit_id: true,
            properties: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        };
        let mut file = MetricsFile::open(config.clone(), "vm-1").unwrap();
        METRICS.generation.begun_fails.inc();
        file.write().unwrap();
        file.write().unwrap();
        let text = std::fs::read_to_string(&config.path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0]["generation"]["begun_fails"].as_u64().unwrap() >= 1);
        assert_eq!(lines[1]["generation"]["begun_fails"], 0);
        assert_eq!(
            (&lines[0]["id"], &lines[0]["properties"]["zone"]),
            (&"vm-1".into(), &"a".into())
        );
        assert!(lines[0]["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let config = MetricsConfig {
            path: PathBuf::from("/no/such/directory/metrics"),
            ..MetricsConfig::default()
        };
        assert!(matches!(
            MetricsFile::open(config, ""),
            Err(MetricsError::Open(..))
        ));
    }
}
