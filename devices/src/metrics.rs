//! What devices count: Firecracker's numbers, by its names, where there is the like here.
//!
//! A device shares its group with whoever tells the numbers, who reads them at any time, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Nothing was counted yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took each time: the shortest and the longest time and the sum, in microseconds.
#[derive(Debug, Default)]
pub struct Durations {
    /// 0 as long as there was none.
    min_us: AtomicU64,
    max_us: AtomicU64,
    sum_ns: AtomicU64,
}

impl Durations {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self {
            min_us: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
        }
    }

    /// Something has taken that long. What took less than a microsecond is one in the extremes, and what it is in the sum.
    pub fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let microseconds = (nanoseconds / 1000).max(1);
        self.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        // The common case is a load each.
        if microseconds > self.max_us.load(Ordering::Relaxed) {
            self.max_us.fetch_max(microseconds, Ordering::Relaxed);
        }
        let min = self.min_us.load(Ordering::Relaxed);
        if min == 0 || microseconds < min {
            // Zero means that there is none.
            let lower = |min| {
                Some(if min == 0 {
                    microseconds
                } else {
                    microseconds.min(min)
                })
            };
            let _ = self
                .min_us
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower);
        }
    }
}

/// How long something took each time: how often it was how long, and the sum, in microseconds.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How often it took at most as long as the bound of the same place and longer than the one before; then, longer than all.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

/// The bounds of a histogram's buckets: 1 ms to a minute, in microseconds.
const BOUNDS_US: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

impl Histogram {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BOUNDS_US.len() + 1],
            sum_ns: AtomicU64::new(0),
        }
    }

    /// Something has taken that long.
    pub fn record(&self, took: Duration) {
        let place = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < took);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How numbers of one kind are told together, over several devices or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows: several are added.
    Counter,
    /// A value of the moment: the last one holds.
    Gauge,
    /// The smallest of several, but 0, which means that there is none.
    Min,
    /// The largest of several.
    Max,
    /// Of a histogram: how often it was at most so much, or anything. Several are added.
    Bucket(Option<u64>),
    /// Of a histogram: all of its values, their number or their sum. Several are added.
    Total,
}

/// One number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// What is counted.
    pub name: &'static str,
    /// What about it, if it is told by more than one number.
    pub part: Option<&'static str>,
    /// How it is told together with others.
    pub kind: Kind,
    /// How much.
    pub value: u64,
}

/// Something that numbers tell of.
pub trait Metric {
    /// Tells the numbers, under a name.
    fn tell(&self, name: &'static str, visit: &mut dyn FnMut(Number));
}

impl Metric for Counter {
    fn tell(&self, name: &'static str, visit: &mut dyn FnMut(Number)) {
        visit(Number {
            name,
            part: None,
            kind: Kind::Counter,
            value: self.get(),
        });
    }
}

impl Metric for Durations {
    fn tell(&self, name: &'static str, visit: &mut dyn FnMut(Number)) {
        let parts = [
            ("min_us", Kind::Min, self.min_us.load(Ordering::Relaxed)),
            ("max_us", Kind::Max, self.max_us.load(Ordering::Relaxed)),
            (
                "sum_us",
                Kind::Counter,
                self.sum_ns.load(Ordering::Relaxed) / 1000,
            ),
        ];
        for (part, kind, value) in parts {
            visit(Number {
                name,
                part: Some(part),
                kind,
                value,
            });
        }
    }
}

impl Metric for Histogram {
    fn tell(&self, name: &'static str, visit: &mut dyn FnMut(Number)) {
        let mut tell = |part, kind, value| {
            visit(Number {
                name,
                part: Some(part),
                kind,
                value,
            });
        };
        let bounds = BOUNDS_US.iter().copied().map(Some).chain([None]);
        let mut count = 0;
        for (bound, bucket) in bounds.zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            tell("bucket", Kind::Bucket(bound), count);
        }
        tell(
            "sum",
            Kind::Total,
            self.sum_ns.load(Ordering::Relaxed) / 1000,
        );
        tell("count", Kind::Total, count);
    }
}

/// Metrics of one thing.
pub trait Group: Send + Sync {
    /// Tells all of them, always in the same order.
    fn tell(&self, visit: &mut dyn FnMut(Number));
}

/// A struct of metrics, which is a [`Group`].
#[macro_export]
macro_rules! metrics_group {
    ($(#[$group_doc:meta])* $group:ident { $($(#[$doc:meta])* $name:ident: $metric:ident,)* }) => {
        $(#[$group_doc])*
        #[derive(Debug)]
        pub struct $group {
            $($(#[$doc])* pub $name: $metric,)*
        }

        impl $group {
            /// Nothing was counted yet.
            pub const fn new() -> Self {
                Self { $($name: $metric::new(),)* }
            }
        }

        impl Default for $group {
            fn default() -> Self {
                Self::new()
            }
        }

        impl $crate::metrics::Group for $group {
            fn tell(&self, visit: &mut dyn FnMut($crate::metrics::Number)) {
                $($crate::metrics::Metric::tell(&self.$name, stringify!($name), visit);)*
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    mod group {
        #![allow(unreachable_pub, reason = "the macro makes public types")]

        use super::{Counter, Durations};

        metrics_group! {
            /// Two.
            Two {
                /// A counter.
                seen: Counter,
                /// Times.
                took: Durations,
            }
        }
    }
    use group::Two;

    fn values(group: &dyn Group) -> Vec<u64> {
        let mut values = Vec::new();
        group.tell(&mut |number| values.push(number.value));
        values
    }

    #[test]
    fn a_group_tells_what_was_counted_and_how_long_it_took() {
        let two = Two::new();
        assert_eq!(values(&two), [0, 0, 0, 0]);
        two.seen.add(3);
        for micros in [7, 2, 9] {
            two.took.record(Duration::from_micros(micros));
        }
        assert_eq!(values(&two), [3, 2, 9, 18]);
        two.took.record(Duration::from_nanos(200));
        assert_eq!(values(&two), [3, 1, 9, 18]);
        let mut names = Vec::new();
        two.tell(&mut |number| names.push((number.name, number.part)));
        assert_eq!(names[0], ("seen", None));
        assert_eq!(names[3], ("took", Some("sum_us")));
    }

    #[test]
    fn a_histogram_tells_how_often_something_took_at_most_how_long() {
        let histogram = Histogram::new();
        for micros in [1, 1_000, 1_001, 60_000_000, 60_000_001, 1 << 50] {
            histogram.record(Duration::from_micros(micros));
        }
        let mut told = Vec::new();
        histogram.tell("took", &mut |number| told.push((number.kind, number.value)));
        assert_eq!(told[0], (Kind::Bucket(Some(1_000)), 2));
        assert_eq!(told[1], (Kind::Bucket(Some(2_500)), 3));
        assert_eq!(told[14], (Kind::Bucket(Some(60_000_000)), 4));
        assert_eq!(told[15], (Kind::Bucket(None), 6));
        assert_eq!(told[16].1, 120_002_003 + (1 << 50));
        assert_eq!(told[17..], [(Kind::Total, 6)]);
    }
}
