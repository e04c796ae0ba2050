use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// JSON with the API's own names and values in it, so that it gets far.
fn plausible_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "vcpu_count",
        "mem_size_mib",
        "smt",
        "huge_pages",
        "cpu_template",
        "kernel_image_path",
        "initrd_path",
        "boot_args",
        "action_type",
        "state",
        "snapshot_type",
        "snapshot_path",
        "mem_file_path",
        "mem_backend",
        "backend_type",
        "backend_path",
        "resume_vm",
        "pause_vm",
        "generation",
        "gate",
        "link",
        "vsock",
        "agents",
        "timeout_ms",
        "on_timeout",
        "track_dirty_pages",
        "drive_id",
        "path_on_host",
        "is_root_device",
        "rate_limiter",
        "bandwidth",
        "size",
        "refill_time",
        "iface_id",
        "host_dev_name",
        "guest_mac",
        "mtu",
        "guest_cid",
        "uds_path",
        "network_overrides",
        "vsock_override",
        "drive_overrides",
        "instance_data",
        "data",
        "level",
        "metrics_path",
        "directory",
        "count",
        "interval_ms",
        "quiesce_ms",
        "other",
    ]);
    let texts = prop::sample::select(vec![
        "",
        "None",
        "2M",
        "/k",
        "/m",
        "InstanceStart",
        "Paused",
        "Resumed",
        "Full",
        "Diff",
        "File",
        "Uffd",
        "new",
        "keep",
        "kill",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u64..200).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6).prop_map(|fields| {
                fields
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect()
            }),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..256),
        6 => plausible_json().prop_map(|value| value.to_string().into_bytes()),
        // One of the good bodies with a byte changed.
        2 => (0..endpoints().len(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
            |(endpoint, index, byte)| {
                let mut body = endpoints()[endpoint].2.clone().into_bytes();
                if !body.is_empty() {
                    let at = index.index(body.len());
                    body[at] = byte;
                }
                body
            }
        ),
    ]
}

#[test]
fn ten_thousand_random_bodies_are_answered_with_200_204_or_a_fault() {
    let api = willing();
    let endpoints = endpoints();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(10_000)
    };
    proptest!(config, |(endpoint in 0..endpoints.len(), body in any_body())| {
        let (method, path, _) = &endpoints[endpoint];
        let (status, _, answer) = api.send(method, path, body);
        match status {
            200 => prop_assert!(serde_json::from_slice::<Value>(&answer).is_ok()),
            204 => prop_assert!(answer.is_empty()),
            400 => {
                let fault: wire::Fault = serde_json::from_slice(&answer)?;
                prop_assert!(!fault.fault_message.is_empty());
            }
            other => prop_assert!(false, "status {other}"),
        }
        api.commands();
    });
}
