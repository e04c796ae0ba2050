//! What the process counts: Firecracker's metrics of the same names where there is the like here, and vmgenie's own. They are told as
//! Firecracker's JSON lines ([`MetricsFile`]) and as Prometheus text ([`prometheus`]).

mod file;
mod requests;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use file::{MetricsConfig, MetricsError, MetricsFile, WRITE_PERIOD};
pub use requests::count_request;

/// Something that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The last value of something.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
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

/// One metric as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The object that the metric is in.
    pub group: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// Only grows.
    pub counts: bool,
    /// How much.
    pub value: u64,
}

trait Metric {
    const COUNTS: bool;
    fn value(&self) -> u64;
}

impl Metric for Counter {
    const COUNTS: bool = true;
    fn value(&self) -> u64 {
        self.get()
    }
}

impl Metric for Gauge {
    const COUNTS: bool = false;
    fn value(&self) -> u64 {
        self.get()
    }
}

fn sample<M: Metric>(group: &'static str, name: &'static str, metric: &M) -> Sample {
    Sample {
        group,
        name,
        counts: M::COUNTS,
        value: metric.value(),
    }
}

/// Groups of metrics, the struct of all of them, and the list of what they hold.
macro_rules! metrics {
    ($($(#[$group_doc:meta])* $group:ident: $group_type:ident {
        $($(#[$doc:meta])* $name:ident: $metric:ident,)*
    })*) => {
        $(
            $(#[$group_doc])*
            #[derive(Debug)]
            pub struct $group_type {
                $($(#[$doc])* pub $name: $metric,)*
            }
        )*

        /// All metrics.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[$group_doc])* pub $group: $group_type,)*
        }

        /// The metrics of this process.
        pub static METRICS: Metrics = Metrics {
            $($group: $group_type {
                $($name: $metric(AtomicU64::new(0)),)*
            },)*
        };

        impl Metrics {
            /// All of them, group by group.
            pub fn samples(&self) -> Vec<Sample> {
                vec![$($(sample(stringify!($group), stringify!($name), &self.$group.$name),)*)*]
            }
        }
    };
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
    /// Requests that set something or do something. Those that failed are counted twice.
    put_api_requests: PutRequestMetrics {
        /// PUT `/actions`.
        actions_count: Counter,
        /// Of these, refused or failed; the same for all below.
        actions_fails: Counter,
        /// PUT `/boot-source`.
        boot_source_count: Counter,
        /// Failed.
        boot_source_fails: Counter,
        /// PUT `/drives/{drive_id}`.
        drive_count: Counter,
        /// Failed.
        drive_fails: Counter,
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
        /// PUT `/network-interfaces/{iface_id}`.
        network_count: Counter,
        /// Failed.
        network_fails: Counter,
        /// PUT `/vsock`.
        vsock_count: Counter,
        /// Failed.
        vsock_fails: Counter,
        /// PUT `/entropy`. Ours.
        entropy_count: Counter,
        /// Failed.
        entropy_fails: Counter,
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
}

/// All metrics in Prometheus' text format, version 0.0.4: `vmgenie_<group>_<name>`, counters with `_total`, with the label `id`.
pub fn prometheus(id: &str) -> String {
    let id = id
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n");
    let mut text = String::new();
    for Sample {
        group,
        name,
        counts,
        value,
    } in METRICS.samples()
    {
        let (kind, total) = if counts {
            ("counter", "_total")
        } else {
            ("gauge", "")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# TYPE vmgenie_{group}_{name}{total} {kind}");
        let _ = writeln!(text, "vmgenie_{group}_{name}{total}{{id=\"{id}\"}} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_has_a_type_and_a_value_for_each_metric() {
        let text = prometheus("a\"b\\c\nd");
        assert_eq!(text.lines().count(), METRICS.samples().len() * 2);
        for pair in text.lines().collect::<Vec<_>>().chunks(2) {
            let name = pair[0].split(' ').nth(2).unwrap();
            let labels = r#"{id="a\"b\\c\nd"} "#;
            let value = pair[1].strip_prefix(name).unwrap();
            value.strip_prefix(labels).unwrap().parse::<u64>().unwrap();
        }
    }

    #[test]
    fn no_metric_has_the_name_of_another() {
        let mut names: Vec<_> = METRICS
            .samples()
            .iter()
            .map(|s| (s.group, s.name))
            .collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
