use serde_json::{Value, json};

use super::*;

/// Everything that an answer has objects in, each of them with a field that nobody knows.
fn of_a_newer_server() -> Value {
    let bucket = json!({ "size": 0, "refill_time": 0, "new": 1 });
    let limiter = json!({ "bandwidth": bucket, "new": 1 });
    json!({
        "boot-source": { "kernel_image_path": "k", "new": 1 },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128, "new": 1 },
        "drives": [{ "drive_id": "d", "is_root_device": true, "rate_limiter": limiter, "new": 1 }],
        "network-interfaces": [{ "iface_id": "n", "host_dev_name": "t", "new": 1 }],
        "vsock": { "guest_cid": 3, "uds_path": "v", "new": 1 },
        "entropy": { "rate_limiter": limiter, "new": 1 },
        "balloon": { "amount_mib": 1 },
        "cpu-config": { "new": 1 },
        "mmds-config": { "version": "V2" },
        "pmem": [{ "id": "p" }],
        "memory-hotplug": { "total_size_mib": 1 },
        "new": 1,
    })
}

/// The server takes no field that it does not know, and is built so.
fn check<T: serde::de::DeserializeOwned>(what: &str, value: &Value) {
    let read = serde_json::from_value::<T>(value.clone());
    let error = read.err().map(|error| error.to_string());
    let refused = error.as_ref().is_some_and(|e| e.contains("unknown field"));
    assert_eq!(refused, cfg!(feature = "strict"), "{what}: {error:?}");
    assert_eq!(error.is_some(), refused, "{what}: {error:?}");
}

#[test]
fn a_client_understands_a_newer_server_and_a_server_refuses_what_it_does_not_know() {
    let config = of_a_newer_server();
    check::<FullConfig>("all", &config);
    check::<BootSourceBody>("boot source", &config["boot-source"]);
    check::<MachineConfiguration>("machine", &config["machine-config"]);
    check::<Drive>("drive", &config["drives"][0]);
    check::<NetworkInterface>("interface", &config["network-interfaces"][0]);
    check::<Vsock>("vsock", &config["vsock"]);
    check::<EntropyDevice>("entropy", &config["entropy"]);
    let limiter = &config["entropy"]["rate_limiter"];
    check::<RateLimiter>("limiter", limiter);
    check::<TokenBucket>("bucket", &limiter["bandwidth"]);
    check::<InstanceData>("data", &json!({ "data": "d", "new": 1 }));
    check::<SelfSnapshot>("own", &json!({ "directory": "d", "new": 1 }));
}

/// What is only asked is never read leniently.
#[test]
fn a_request_has_no_unknown_field_for_whomever() {
    serde_json::from_str::<VmUpdate>(r#"{"state":"Paused","new":1}"#).unwrap_err();
    serde_json::from_str::<PartialDrive>(r#"{"drive_id":"d","new":1}"#).unwrap_err();
}
