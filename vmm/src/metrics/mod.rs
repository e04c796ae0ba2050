//! What the process counts: Firecracker's metrics of the same names where there is the like here, and vmgenie's own. They are told as
//! Firecracker's JSON lines ([`MetricsFile`]) and as Prometheus text ([`prometheus()`]).

mod file;
mod prometheus;
mod requests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use file::{MetricsConfig, MetricsError, MetricsFile, WRITE_PERIOD};
pub use prometheus::prometheus;
pub use requests::count_request;
use vmgenie_devices::metrics::{Counter, Group, Kind, Metric, Number};
use vmgenie_devices::metrics_group;

use vmgenie_machine::metrics::{MACHINE, SERIAL};
use vmgenie_machine::virtio::kinds;

use crate::kinds::KINDS;

/// The last value of something.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Sets it to the microseconds since `begun`.
    pub fn set_since(&self, begun: Instant) {
        self.set_duration(begun.elapsed());
    }

    /// Sets it to a time in microseconds.
    pub fn set_duration(&self, took: Duration) {
        self.set(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metric for Gauge {
    fn tell(&self, name: &'static str, visit: &mut dyn FnMut(Number)) {
        visit(Number {
            name,
            part: None,
            kind: Kind::Gauge,
            value: self.get(),
        });
    }
}

/// One number as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The object that the metric is in.
    pub group: &'static str,
    /// Which device of that kind, if there may be several.
    pub device: Option<String>,
    /// What is told of it.
    pub number: Number,
}

/// Groups of metrics, and the struct of all of them.
macro_rules! metrics {
    ($($(#[$group_doc:meta])* $group:ident: $group_type:ident {
        $($(#[$doc:meta])* $name:ident: $metric:ident,)*
    })*) => {
        $(metrics_group! {
            $(#[$group_doc])* $group_type { $($(#[$doc])* $name: $metric,)* }
        })*

        /// What the process counts, but for its machine.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[$group_doc])* pub $group: $group_type,)*
        }

        /// The metrics of this process.
        pub static METRICS: Metrics = Metrics {
            $($group: $group_type::new(),)*
        };

        impl Metrics {
            /// Each group with its name.
            fn groups(&self) -> Vec<(&'static str, &dyn Group)> {
                vec![$((stringify!($group), &self.$group as &dyn Group),)*]
            }
        }
    };
}

/// All numbers, group by group: first the process's, then its machine's and its devices'.
pub fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut add = |group: &'static str, device: Option<&str>, metrics: &dyn Group| {
        metrics.tell(&mut |number| {
            samples.push(Sample {
                group,
                device: device.map(str::to_owned),
                number,
            });
        });
    };
    for (name, group) in METRICS.groups().into_iter().chain(MACHINE.groups()) {
        add(name, None, group);
    }
    for kind in KINDS {
        add("put_api_requests", None, kind.counters());
    }
    kinds::tell_metrics(&mut add);
    SERIAL.tell("uart", &mut add);
    samples
}

metrics! {
    /// The API as a whole.
    api_server: ApiServerMetrics {
        /// From the time that `--start-time-us` told to the first instant of the API, in microseconds.
        process_startup_time_us: Gauge,
        /// The CPU time of that, with what `--parent-cpu-time-us` told.
        process_startup_time_cpu_us: Gauge,
    }
    /// Requests that ask.
    get_api_requests: GetRequestMetrics {
        /// GET `/`.
        instance_info_count: Counter,
        /// GET `/machine-config`.
        machine_cfg_count: Counter,
        /// GET `/version`.
        vmm_version_count: Counter,
        /// GET `/vm/config`. Ours.
        vm_config_count: Counter,
        /// GET `/generation`. Ours.
        generation_count: Counter,
    }
    /// Requests that set something or do something, but for the [devices](crate::kinds). Those that failed are counted twice.
    put_api_requests: PutRequestMetrics {
        /// PUT `/actions`.
        actions_count: Counter,
        /// Of these, refused or failed; the same for all below.
        actions_fails: Counter,
        /// PUT `/boot-source`.
        boot_source_count: Counter,
        /// Failed.
        boot_source_fails: Counter,
        /// PUT `/logger`.
        logger_count: Counter,
        /// Failed.
        logger_fails: Counter,
        /// PUT `/machine-config`.
        machine_cfg_count: Counter,
        /// Failed.
        machine_cfg_fails: Counter,
        /// PUT `/metrics`.
        metrics_count: Counter,
        /// Failed.
        metrics_fails: Counter,
        /// PUT `/serial`.
        serial_count: Counter,
        /// Failed.
        serial_fails: Counter,
        /// PUT `/snapshot/create`. Ours.
        snapshot_create_count: Counter,
        /// Failed.
        snapshot_create_fails: Counter,
        /// PUT `/snapshot/load`. Ours.
        snapshot_load_count: Counter,
        /// Failed.
        snapshot_load_fails: Counter,
        /// PUT `/generation`. Ours.
        generation_count: Counter,
        /// Failed.
        generation_fails: Counter,
    }
    /// Requests that change something.
    patch_api_requests: PatchRequestMetrics {
        /// PATCH `/drives/{drive_id}`.
        drive_count: Counter,
        /// Failed.
        drive_fails: Counter,
        /// PATCH `/network-interfaces/{iface_id}`.
        network_count: Counter,
        /// Failed.
        network_fails: Counter,
        /// PATCH `/machine-config`.
        machine_cfg_count: Counter,
        /// Failed.
        machine_cfg_fails: Counter,
        /// PATCH `/vm`. Ours.
        vm_count: Counter,
        /// Failed.
        vm_fails: Counter,
    }
    /// What will go one day.
    deprecated_api: DeprecatedApiMetrics {
        /// Requests with a deprecated field.
        deprecated_http_api_calls: Counter,
    }
    /// The log and the metrics themselves.
    logger: LoggerMetrics {
        /// Lines of metrics that could not be written.
        missed_metrics_count: Counter,
        /// Lines of the log that could not be written.
        missed_log_count: Counter,
    }
    /// The last duration of each kind, in microseconds. Those that begin with `vmm_` are without the way through the API.
    latencies_us: LatencyMetrics {
        /// PUT `/snapshot/create`.
        full_create_snapshot: Gauge,
        /// PUT `/snapshot/load`.
        load_snapshot: Gauge,
        /// PATCH `/vm`, Paused.
        pause_vm: Gauge,
        /// PATCH `/vm`, Resumed.
        resume_vm: Gauge,
        /// The same, in the controller.
        vmm_full_create_snapshot: Gauge,
        /// The same, in the controller.
        vmm_load_snapshot: Gauge,
        /// The same, in the controller.
        vmm_pause_vm: Gauge,
        /// The same, in the controller.
        vmm_resume_vm: Gauge,
    }
    /// Generations. Ours.
    generation: GenerationMetrics {
        /// Begun by this process, a restore included.
        begun_count: Counter,
        /// Could not be begun.
        begun_fails: Counter,
    }
    /// Signals that end the process.
    signals: SignalMetrics {
        /// SIGHUP.
        sighup: Gauge,
        /// SIGINT. Ours.
        sigint: Gauge,
        /// SIGTERM. Ours.
        sigterm: Gauge,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_metric_has_the_name_of_another() {
        // A histogram's buckets have one name.
        let mut names: Vec<_> = samples()
            .into_iter()
            .filter(|s| !matches!(s.number.kind, Kind::Bucket(Some(_))))
            .map(|s| (s.group, s.device, s.number.name, s.number.part))
            .collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
