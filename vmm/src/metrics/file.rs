//! Firecracker's JSON lines: one object in each, with what has been counted since the line before.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use thiserror::Error;
use vmgenie_devices::metrics::{Kind, Number};

use super::{METRICS, Sample, samples};
use crate::line_file::LineFile;

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

/// A counter's group, device, name and part.
type Key = (
    &'static str,
    Option<String>,
    &'static str,
    Option<&'static str>,
);

/// A file that takes lines of metrics.
#[derive(Debug)]
pub struct MetricsFile {
    config: MetricsConfig,
    id: String,
    file: LineFile,
    /// What counters had in the line before.
    before: HashMap<Key, u64>,
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
            before: HashMap::new(),
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
        // Firecracker tells of these also when there is no such device.
        for kind in ["block", "net"] {
            line.insert(kind.to_owned(), Map::new().into());
        }
        for sample in samples() {
            // The number and the sum are enough in a line.
            if matches!(sample.number.kind, Kind::Bucket(_)) {
                continue;
            }
            let value = self.value(&sample);
            let Sample {
                group,
                device,
                number,
            } = sample;
            match device {
                None => put(&mut line, group, number, value),
                Some(device) => {
                    put(&mut line, &format!("{group}_{device}"), number, value);
                    put(&mut line, group, number, value);
                }
            }
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        text
    }

    /// What is told of a number: counters tell what was counted since the line before.
    fn value(&mut self, sample: &Sample) -> u64 {
        let Number {
            name,
            part,
            kind,
            value,
        } = sample.number;
        if !matches!(kind, Kind::Counter | Kind::Total) {
            return value;
        }
        let key = (sample.group, sample.device.clone(), name, part);
        let before = self.before.insert(key, value).unwrap_or(0);
        value.saturating_sub(before)
    }
}

/// Puts a number into its group in a line; together with what is there already of another device of that kind.
fn put(line: &mut Map<String, Value>, group: &str, number: Number, value: u64) {
    let empty = || Value::Object(Map::new());
    let mut place = line.entry(group).or_insert_with(empty);
    let mut name = number.name;
    if let Some(part) = number.part {
        // Objects all of them: nothing else is put where a group or a metric with parts is.
        let Value::Object(group) = place else { return };
        place = group.entry(name).or_insert_with(empty);
        name = part;
    }
    let Value::Object(place) = place else { return };
    let there = place.get(name).and_then(Value::as_u64);
    let together = there.map_or(value, |there| match number.kind {
        Kind::Counter | Kind::Total | Kind::Bucket(_) => there.saturating_add(value),
        Kind::Gauge => value,
        Kind::Max => there.max(value),
        Kind::Min if there == 0 || value == 0 => there.max(value),
        Kind::Min => there.min(value),
    });
    place.insert(name.to_owned(), together.into());
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
    fn the_numbers_of_devices_are_told_for_each_and_for_all_of_a_kind() {
        let number = |name, part, kind| Number {
            name,
            part,
            kind,
            value: 0,
        };
        let mut line = Map::new();
        let reads = number("read_count", None, Kind::Counter);
        let shortest = number("read_agg", Some("min_us"), Kind::Min);
        let longest = number("read_agg", Some("max_us"), Kind::Max);
        for (count, min, max) in [(3, 0, 0), (4, 9, 20), (0, 5, 11)] {
            put(&mut line, "block", reads, count);
            put(&mut line, "block", shortest, min);
            put(&mut line, "block", longest, max);
        }
        assert_eq!(
            Value::Object(line),
            serde_json::json!({"block": {"read_count": 7, "read_agg": {"min_us": 5, "max_us": 20}}})
        );
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
