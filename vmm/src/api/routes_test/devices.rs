use serde_json::json;
use vmgenie_machine::config::{
    CacheMode, Cid, DeviceId, DriveConfig, InterfaceName, IoEngine, Mtu, NetConfig, PartUuid,
    VsockConfig, VsockPeers,
};
use vmgenie_machine::virtio::kinds::{DeviceConfig, EntropyConfig};

use super::*;
use crate::logging::{LogConfig, LogFormat};
use crate::metrics::MetricsConfig;

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn set(device: impl Into<DeviceConfig>) -> Command {
    Command::SetDevice(device.into())
}

fn drive() -> DriveConfig {
    DriveConfig {
        overlay: None,
        id: id("rootfs"),
        path: "/root.ext4".into(),
        read_only: false,
        is_root: true,
        cache: CacheMode::Unsafe,
        io_engine: IoEngine::Sync,
        partuuid: None,
    }
}

#[test]
fn a_drive_is_set_with_every_field_and_with_none_but_the_necessary() {
    let api = willing();
    let least =
        json!({ "drive_id": "rootfs", "path_on_host": "/root.ext4", "is_root_device": true });
    api.done("PUT", "/drives/rootfs", least);
    let all = json!({
        "drive_id": "rootfs", "path_on_host": "/root.ext4", "is_root_device": true, "partuuid": "0eaa91a0-01",
        "is_read_only": true, "cache_type": "Writeback", "io_engine": "Async", "rate_limiter": null, "socket": null,
    });
    api.done("PUT", "/drives/rootfs", all);
    // Not looked at for a drive that is not the root drive.
    let other = json!({ "drive_id": "d", "path_on_host": "/d", "is_root_device": false, "partuuid": "no such thing" });
    api.done("PUT", "/drives/d", other);
    let full = DriveConfig {
        read_only: true,
        cache: CacheMode::Writeback,
        io_engine: IoEngine::Async,
        partuuid: Some(PartUuid::new("0eaa91a0-01").unwrap()),
        ..drive()
    };
    let other = DriveConfig {
        id: id("d"),
        path: "/d".into(),
        is_root: false,
        ..drive()
    };
    let expected = [drive(), full, other].map(set);
    assert_eq!(api.commands(), expected);
}

#[test]
fn a_drive_that_cannot_be_is_refused() {
    let api = willing();
    let with = |field: &str, value: Value| {
        let mut body = json!({ "drive_id": "d", "path_on_host": "/d", "is_root_device": false });
        body[field] = value;
        body
    };
    let limiter =
        |size: u64, refill: u64| json!({ "ops": { "size": size, "refill_time": refill } });
    let cases = [
        (
            json!({ "drive_id": "d", "is_root_device": false }),
            "missing field `path_on_host`",
        ),
        (
            json!({ "drive_id": "d", "path_on_host": "/d" }),
            "missing field `is_root_device`",
        ),
        (with("path_on_host", json!("")), "empty path"),
        (
            with("drive_id", json!("e")),
            "does not match the id from the body [e]",
        ),
        (with("cache_type", json!("Writethrough")), "unknown variant"),
        (with("io_engine", json!("Threads")), "unknown variant"),
        (
            with("rate_limiter", limiter(1, 1)),
            "rate limiters are not supported",
        ),
        (with("socket", json!("/s")), "vhost-user"),
        (with("colour", json!("red")), "unknown field"),
    ];
    for (body, expected) in cases {
        let message = api.fault("PUT", "/drives/d", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    for limiter in [json!({}), limiter(0, 5), limiter(5, 0)] {
        api.done("PUT", "/drives/d", with("rate_limiter", limiter));
    }
    api.commands();
    let body = r#"{"drive_id":"a-b","path_on_host":"/d","is_root_device":false}"#;
    for (path, expected) in [
        ("/drives/a-b", "alphanumeric characters and underscores"),
        ("/drives/", "The ID cannot be empty."),
        ("/drives", "The ID cannot be empty."),
        ("/drives/%ff", "Invalid request method and/or path"),
    ] {
        let message = api.fault("PUT", path, body);
        assert!(message.contains(expected), "{path}: {message}");
    }
    assert_eq!(api.fault("PUT", "/drives/d", ""), "Empty PUT request.");
    assert_eq!(api.commands(), []);
}

#[test]
fn a_drive_is_updated() {
    let api = willing();
    api.done(
        "PATCH",
        "/drives/d",
        json!({ "drive_id": "d", "path_on_host": "/new" }),
    );
    api.done("PATCH", "/drives/d", json!({ "drive_id": "d" }));
    assert_eq!(
        api.commands(),
        [
            Command::UpdateDrive(id("d"), Some("/new".into())),
            Command::UpdateDrive(id("d"), None),
        ]
    );
    let limited = r#"{"drive_id":"d","rate_limiter":{"bandwidth":{"size":1,"refill_time":1}}}"#;
    assert!(
        api.fault("PATCH", "/drives/d", limited)
            .contains("rate limiters")
    );
    assert_eq!(api.commands(), []);
}

#[test]
fn a_network_interface_is_set_and_updated() {
    let api = willing();
    let least = json!({ "iface_id": "eth0", "host_dev_name": "tap0" });
    api.done("PUT", "/network-interfaces/eth0", least);
    let all = json!({
        "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02", "mtu": 9000,
        "rx_rate_limiter": null, "tx_rate_limiter": {},
    });
    api.done("PUT", "/network-interfaces/eth0", all);
    api.done(
        "PATCH",
        "/network-interfaces/eth0",
        json!({ "iface_id": "eth0" }),
    );
    let out = json!({ "iface_id": "eth0", "link_up": false });
    api.done("PATCH", "/network-interfaces/eth0", out);
    let plain = NetConfig {
        id: id("eth0"),
        host_dev_name: InterfaceName::new("tap0").unwrap(),
        guest_mac: None,
        mtu: None,
    };
    let full = NetConfig {
        guest_mac: Some("06:00:ac:10:00:02".parse().unwrap()),
        mtu: Some(Mtu::new(9000).unwrap()),
        ..plain.clone()
    };
    assert_eq!(
        api.commands(),
        [
            set(plain),
            set(full),
            Command::UpdateNet(id("eth0"), None),
            Command::UpdateNet(id("eth0"), Some(false)),
        ]
    );
    let bucket = json!({ "bandwidth": { "size": 1, "refill_time": 1 } });
    let cases = [
        (
            json!({ "iface_id": "eth0" }),
            "missing field `host_dev_name`",
        ),
        (
            json!({ "iface_id": "eth1", "host_dev_name": "tap0" }),
            "from the path [eth0]",
        ),
        (
            json!({ "iface_id": "eth0", "host_dev_name": "" }),
            "no name of a network interface",
        ),
        (
            json!({ "iface_id": "eth0", "host_dev_name": "t", "guest_mac": "1:2" }),
            "no MAC address",
        ),
        (
            json!({ "iface_id": "eth0", "host_dev_name": "t", "mtu": 67 }),
            "68 to 65535",
        ),
        (
            json!({ "iface_id": "eth0", "host_dev_name": "t", "mtu": 65536 }),
            "68 to 65535",
        ),
        (
            json!({ "iface_id": "eth0", "host_dev_name": "t", "tx_rate_limiter": bucket }),
            "tx_rate_limiter",
        ),
    ];
    for (body, expected) in cases {
        let message = api.fault("PUT", "/network-interfaces/eth0", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    let limited = json!({ "iface_id": "eth0", "rx_rate_limiter": bucket }).to_string();
    assert!(
        api.fault("PATCH", "/network-interfaces/eth0", limited)
            .contains("rx_rate_limiter")
    );
    assert_eq!(api.commands(), []);
}

#[test]
fn vsock_and_entropy_are_set() {
    let api = willing();
    api.done(
        "PUT",
        "/vsock",
        json!({ "guest_cid": 3, "uds_path": "/v.sock" }),
    );
    let old = r#"{"guest_cid":3,"uds_path":"/v.sock","vsock_id":"vsock0"}"#;
    let (status, headers, _) = api.send("PUT", "/vsock", old);
    assert_eq!(
        (status, headers["deprecation"].to_str().unwrap()),
        (204, "true")
    );
    api.done("PUT", "/entropy", json!({}));
    let own = json!({ "guest_cid": 3, "uds_path": "/v.sock", "peers": "own" });
    api.done("PUT", "/vsock", own);
    let vsock = |peers| {
        set(VsockConfig {
            guest_cid: Cid::new(3).unwrap(),
            uds_path: "/v.sock".into(),
            peers,
        })
    };
    let (any, own) = (vsock(VsockPeers::Any), vsock(VsockPeers::Own));
    let entropy = set(EntropyConfig {});
    assert_eq!(api.commands(), [any.clone(), any, entropy, own]);
    for (path, body, expected) in [
        (
            "/vsock",
            json!({ "guest_cid": 2, "uds_path": "/v" }),
            "guest CID 2",
        ),
        (
            "/vsock",
            json!({ "guest_cid": u32::MAX, "uds_path": "/v" }),
            "guest CID",
        ),
        (
            "/vsock",
            json!({ "guest_cid": 3, "uds_path": "" }),
            "empty path",
        ),
        ("/vsock", json!({ "guest_cid": 3 }), "uds_path"),
        (
            "/vsock",
            json!({ "guest_cid": 3, "uds_path": "/v", "peers": "all" }),
            "`any` or `own`",
        ),
        (
            "/entropy",
            json!({ "rate_limiter": { "ops": { "size": 1, "refill_time": 1 } } }),
            "rate limiters",
        ),
    ] {
        let message = api.fault("PUT", path, body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
}

#[test]
fn log_metrics_and_serial_console_are_set() {
    let api = willing();
    api.done("PUT", "/logger", json!({}));
    let all = json!({
        "log_path": "/l", "level": "wARNING", "show_level": true, "show_log_origin": false, "module": "api", "format": "Json",
    });
    api.done("PUT", "/logger", all);
    let metrics = json!({ "metrics_path": "/m", "emit_id": true, "properties": { "a": "b" } });
    api.done("PUT", "/metrics", metrics);
    api.done("PUT", "/serial", json!({ "serial_out_path": "/s" }));
    let unlimited = json!({ "size": 0, "refill_time": 0 });
    api.done("PUT", "/serial", json!({ "rate_limiter": unlimited }));
    let plain = LogConfig {
        level: Some(tracing::level_filters::LevelFilter::INFO),
        ..LogConfig::default()
    };
    let full = LogConfig {
        path: Some("/l".into()),
        level: Some(tracing::level_filters::LevelFilter::WARN),
        show_level: Some(true),
        show_origin: Some(false),
        module: Some("api".to_owned()),
        format: Some(LogFormat::Json),
    };
    let metrics = MetricsConfig {
        path: "/m".into(),
        emit_id: true,
        properties: [("a".to_owned(), "b".to_owned())].into(),
    };
    assert_eq!(
        api.commands(),
        [
            Command::SetLog(plain),
            Command::SetLog(full),
            Command::SetMetrics(metrics),
            Command::SetSerial(Some("/s".into())),
            Command::SetSerial(None),
        ]
    );
    for (path, body, expected) in [
        ("/logger", json!({ "level": "Loud" }), "no log level"),
        ("/logger", json!({ "log_path": "" }), "empty path"),
        ("/logger", json!({ "colour": true }), "unknown field"),
        ("/serial", json!({ "serial_out_path": "" }), "empty path"),
        ("/serial", json!({ "path": "/s" }), "unknown field"),
        (
            "/serial",
            json!({ "rate_limiter": { "size": 1, "refill_time": 1 } }),
            "rate_limiter",
        ),
        ("/metrics", json!({}), "metrics_path"),
        ("/metrics", json!({ "metrics_path": "" }), "empty path"),
    ] {
        let message = api.fault("PUT", path, body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
}

#[test]
fn prometheus_reads_the_metrics() {
    let (status, headers, body) = willing().send("GET", "/metrics", "");
    let kind = headers[CONTENT_TYPE].to_str().unwrap();
    assert_eq!(status, 200);
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = std::str::from_utf8(&body).unwrap();
    assert!(
        text.contains("vmgenie_generation_begun_count_total{id=\"test\"}"),
        "{text}"
    );
}

#[test]
fn what_is_not_here_says_so() {
    let api = willing();
    for (method, path) in [
        ("GET", "/balloon"),
        ("PATCH", "/balloon/statistics"),
        ("PUT", "/cpu-config"),
        ("PUT", "/pmem/p"),
        ("PATCH", "/hotplug/memory"),
        ("GET", "/mmds"),
        ("PUT", "/mmds/config"),
        ("DELETE", "/drives/d"),
        ("DELETE", "/network-interfaces/n"),
    ] {
        let message = api.fault(method, path, "");
        assert!(
            message.contains("is not supported"),
            "{method} {path}: {message}"
        );
    }
    assert!(
        api.fault("PUT", "/balloons", "")
            .contains("Invalid request")
    );
    assert_eq!(api.commands(), []);
}

#[test]
fn a_guest_is_told_who_it_is() {
    let api = willing();
    let data = |text: &str| json!({ "data": text });
    assert_eq!(api.json("GET", "/instance-data", ""), data("web-1"));
    api.done("PUT", "/instance-data", data("ä\n"));
    api.done("PUT", "/instance-data", data(""));
    let set =
        |text| Command::SetInstanceData(vmgenie_machine::config::InstanceData::new(text).unwrap());
    assert_eq!(api.commands(), [Command::InstanceData, set("ä\n"), set("")]);
    for (text, said) in [
        ("x".repeat(4097), "it may have 4096 at most"),
        ("a\0".to_owned(), "zero byte at offset 1"),
    ] {
        let fault = api.fault("PUT", "/instance-data", data(&text).to_string());
        assert!(fault.contains(said), "{fault}");
        let load = json!({ "snapshot_path": "/s", "mem_file_path": "/m", "instance_data": text });
        let fault = api.fault("PUT", "/snapshot/load", load.to_string());
        assert!(fault.contains(said), "{fault}");
    }
    assert_eq!(api.commands(), []);
}
