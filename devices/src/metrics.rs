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
}
