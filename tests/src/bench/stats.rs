//! What is told of a series of measurements.

use std::time::Duration;

use serde_json::{Value, json};

/// Durations of one thing that was done many times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    sorted: Vec<Duration>,
}

impl Series {
    /// Adds a measurement.
    pub(crate) fn push(&mut self, duration: Duration) {
        let at = self.sorted.partition_point(|other| *other < duration);
        self.sorted.insert(at, duration);
    }

    /// The smallest measurement that at least `percent` percent of all don't exceed (nearest rank). Zero for an empty series.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// The median.
    pub(crate) fn p50(&self) -> Duration {
        self.percentile(50)
    }

    /// The smallest one.
    pub(crate) fn min(&self) -> Duration {
        self.percentile(0)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Count, minimum, p50, p90 and maximum, in microseconds.
    pub(crate) fn json(&self) -> Value {
        json!({
            "runs": self.len(),
            "min_us": micros(self.min()),
            "p50_us": micros(self.p50()),
            "p90_us": micros(self.percentile(90)),
            "max_us": micros(self.percentile(100)),
        })
    }
}

/// Microseconds with a tenth.
pub(crate) fn micros(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 10.0
}

/// A duration as people read it: milliseconds.
pub(crate) fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.3} ms"),
        ..1000.0 => format!("{ms:.1} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// How many times `other` goes into `one`; nothing if there is no `other`.
pub(crate) fn ratio(one: Duration, other: Duration) -> Option<f64> {
    (!other.is_zero()).then(|| (one.as_secs_f64() / other.as_secs_f64() * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut series = Series::default();
        for ms in (1..=10).rev() {
            series.push(Duration::from_millis(ms));
        }
        assert_eq!(series.min(), Duration::from_millis(1));
        assert_eq!(series.p50(), Duration::from_millis(5));
        assert_eq!(series.percentile(90), Duration::from_millis(9));
        assert_eq!(series.percentile(100), Duration::from_millis(10));
        assert_eq!(Series::default().p50(), Duration::ZERO);
    }
}
