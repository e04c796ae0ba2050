//! Which request is counted where.

use hyper::Method;

use vmgenie_devices::metrics::Counter;

use super::METRICS;
use crate::kinds::KINDS;

/// Counts one request that has been answered.
pub fn count_request(method: &Method, path: &str, succeeded: bool) {
    let Some((count, fails)) = counters(method, path) else {
        return;
    };
    count.inc();
    if let (false, Some(fails)) = (succeeded, fails) {
        fails.inc();
    }
}

fn counters(method: &Method, path: &str) -> Option<(&'static Counter, Option<&'static Counter>)> {
    let get = &METRICS.get_api_requests;
    let put = &METRICS.put_api_requests;
    let patch = &METRICS.patch_api_requests;
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let first = parts.next().unwrap_or_default();
    let second = parts.next();
    Some(match (method.as_str(), first, second) {
        ("GET", "", None) => (&get.instance_info_count, None),
        ("GET", "machine-config", None) => (&get.machine_cfg_count, None),
        ("GET", "version", None) => (&get.vmm_version_count, None),
        ("GET", "vm", Some("config")) => (&get.vm_config_count, None),
        ("GET", "generation", None) => (&get.generation_count, None),
        ("PUT", "actions", None) => (&put.actions_count, Some(&put.actions_fails)),
        ("PUT", "boot-source", None) => (&put.boot_source_count, Some(&put.boot_source_fails)),
        ("PUT", "serial", None) => (&put.serial_count, Some(&put.serial_fails)),
        ("PUT", "logger", None) => (&put.logger_count, Some(&put.logger_fails)),
        ("PUT", "machine-config", None) => (&put.machine_cfg_count, Some(&put.machine_cfg_fails)),
        ("PUT", "metrics", None) => (&put.metrics_count, Some(&put.metrics_fails)),
        ("PUT", "snapshot", Some("create")) => {
            (&put.snapshot_create_count, Some(&put.snapshot_create_fails))
        }
        ("PUT", "snapshot", Some("load")) => {
            (&put.snapshot_load_count, Some(&put.snapshot_load_fails))
        }
        ("PUT", "generation", None) => (&put.generation_count, Some(&put.generation_fails)),
        ("PATCH", "drives", Some(_)) => (&patch.drive_count, Some(&patch.drive_fails)),
        ("PATCH", "network-interfaces", Some(_)) => {
            (&patch.network_count, Some(&patch.network_fails))
        }
        ("PATCH", "machine-config", None) => {
            (&patch.machine_cfg_count, Some(&patch.machine_cfg_fails))
        }
        ("PATCH", "vm", None) => (&patch.vm_count, Some(&patch.vm_fails)),
        ("PUT", ..) => {
            let mut kinds = KINDS.iter().map(|kind| (kind.place(), kind.counters()));
            let (_, put) = kinds.find(|(place, _)| *place == (first, second.is_some()))?;
            (&put.count, Some(&put.fails))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_and_its_failure_too() {
        let counted = || {
            let drives = KINDS[0].counters();
            (drives.count.get(), drives.fails.get())
        };
        let (count, fails) = counted();
        count_request(&Method::PUT, "/drives/rootfs", true);
        count_request(&Method::PUT, "/drives/rootfs", false);
        count_request(&Method::PUT, "/nonsense", false);
        let (count_now, fails_now) = counted();
        // Other tests count at the same time.
        assert!(count_now >= count + 2 && fails_now > fails);
    }
}
