use std::time::Duration;

use serde_json::json;
use vmgenie_api::headers::{MEMORY_HEADER, STANDSTILL_HEADER, TOTAL_HEADER};
use vmgenie_machine::config::{self, DeviceOverrides};
use vmgenie_machine::request::{
    ChangedDrives, ClockPolicy, Cooperative, Fallback, HostPaths, RestoreAs,
};
use vmgenie_snapshot::SnapshotId;

use super::*;
use crate::controller::command::SelfSnapshotConfig;

#[test]
fn a_snapshot_is_created_and_its_times_are_told() {
    let api = willing();
    let body = json!({ "snapshot_path": "/s", "mem_file_path": "/m" });
    let (status, headers, answer) = api.send("PUT", "/snapshot/create", body.to_string());
    assert_eq!((status, answer.as_ref()), (204, &b""[..]));
    assert_eq!(headers[STANDSTILL_HEADER], "1234");
    assert_eq!(headers[TOTAL_HEADER], "56000");
    assert_eq!(headers[MEMORY_HEADER], (7 << 20).to_string());
    let resumed = json!({
        "snapshot_type": "Full", "snapshot_path": "/s", "mem_file_path": "/m", "resume_vm": true,
        "copy_drives": true, "pause_vm": true,
    });
    api.done("PUT", "/snapshot/create", resumed);
    let command = |resume| {
        Command::CreateSnapshot(CreateSnapshot {
            state: "/s".into(),
            memory: "/m".into(),
            resume,
            pause: resume,
            copy_drives: resume,
            cooperative: None,
        })
    };
    assert_eq!(api.commands(), [command(false), command(true)]);
}

#[test]
fn a_snapshot_in_which_the_guest_takes_part_tells_how() {
    let api = willing();
    let send = |cooperative: serde_json::Value| {
        let body =
            json!({ "snapshot_path": "/s", "mem_file_path": "/m", "cooperative": cooperative });
        let (status, headers, answer) = api.send("PUT", "/snapshot/create", body.to_string());
        assert_eq!(
            (status, headers[STANDSTILL_HEADER].as_bytes()),
            (200, &b"1234"[..])
        );
        serde_json::from_slice::<serde_json::Value>(&answer).unwrap()
    };
    let made = json!({
        "how": "fork-point", "standstill_us": 1234, "total_us": 56_000, "memory_bytes": 7 << 20,
        "heard_us": 300, "quiesce_us": 20_000,
        "waited_for": { "agent": true, "hooks": true, "frozen": false, "parked": false },
    });
    assert_eq!(send(json!({})), made);
    assert_eq!(send(json!({ "quiesce_ms": 1, "fallback": "plain" })), made);
    let asked: Vec<_> = api
        .commands()
        .into_iter()
        .map(|command| match command {
            Command::CreateSnapshot(request) => request.cooperative.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [(10_000, Fallback::Refuse), (1, Fallback::Plain)];
    assert_eq!(
        asked,
        expected.map(|(ms, fallback)| Cooperative {
            quiesce: Duration::from_millis(ms),
            fallback,
        })
    );
}

#[test]
fn a_snapshot_that_cannot_be_created_is_refused() {
    let api = willing();
    let cases = [
        (json!({ "snapshot_path": "/s" }), "mem_file_path"),
        (json!({ "mem_file_path": "/m" }), "snapshot_path"),
        (
            json!({ "snapshot_path": "", "mem_file_path": "/m" }),
            "empty path",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/s" }),
            "same file",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/m", "cooperative": { "quiesce_ms": 0 } }),
            "1 to 600000",
        ),
        (
            json!({
                "snapshot_path": "/s", "mem_file_path": "/m", "cooperative": { "quiesce_ms": 600_001 },
            }),
            "600001",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/m", "cooperative": { "fallback": "" } }),
            "unknown variant",
        ),
        (
            json!({ "snapshot_type": "Diff", "snapshot_path": "/s", "mem_file_path": "/m" }),
            "\"Full\"",
        ),
    ];
    for (body, expected) in cases {
        let message = api.fault("PUT", "/snapshot/create", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
}

#[test]
fn a_snapshot_is_loaded_from_either_kind_of_memory_path() {
    let api = willing();
    let backend = json!({ "backend_type": "File", "backend_path": "/m" });
    api.done(
        "PUT",
        "/snapshot/load",
        json!({ "snapshot_path": "/s", "mem_backend": backend }),
    );
    let other = json!({
        "snapshot_path": "/s", "mem_file_path": "/m", "resume_vm": true, "generation": "keep",
        "track_dirty_pages": false, "enable_diff_snapshots": false,
    });
    api.done("PUT", "/snapshot/load", other);
    let command = |resume, generation| {
        let (state, memory) = ("/s".into(), "/m".into());
        Command::LoadSnapshot(LoadSnapshot {
            state,
            memory,
            resume,
            generation,
            overrides: DeviceOverrides::default(),
            changed_drives: ChangedDrives::OwnCopies,
            host_paths: HostPaths::Any,
            id: None,
            clock: ClockPolicy::Step,
            clock_realtime: false,
            gate: None,
        })
    };
    assert_eq!(
        api.commands(),
        [
            command(false, RestoreAs::New),
            command(true, RestoreAs::Keep)
        ]
    );
}

#[test]
fn a_snapshot_is_loaded_with_other_taps_socket_cid_mac_and_drives() {
    let api = willing();
    let body = json!({
        "snapshot_path": "/s", "mem_file_path": "/m", "clock_realtime": false, "huge_pages": "Snapshot",
        "network_overrides": [
            { "iface_id": "eth0", "host_dev_name": "tap7" },
            { "iface_id": "eth1", "guest_mac": "06:00:00:00:00:07" },
        ],
        "vsock_override": { "uds_path": "/v7", "guest_cid": 7, "peers": "own" },
        "drive_overrides": [
            { "drive_id": "root", "path_on_host": "/r7", "copy": true },
            { "drive_id": "data", "path_on_host": "/d7", "overlay": true },
        ],
        "changed_drives": "refuse", "host_paths": "named-only", "snapshot_id": "0a".repeat(16),
        "instance_data": "web-7",
    });
    let (status, headers, answer) = api.send("PUT", "/snapshot/load", body.to_string());
    assert_eq!(status, 204, "{answer:?}");
    assert_eq!(headers["deprecation"], "true", "for mem_file_path");
    let id = |text| config::DeviceId::new(text).unwrap();
    let overrides = DeviceOverrides {
        drives: vec![
            config::DriveOverride {
                id: id("root"),
                path: "/r7".into(),
                source: config::DriveSource::Copy,
            },
            config::DriveOverride {
                id: id("data"),
                path: "/d7".into(),
                source: config::DriveSource::Overlay,
            },
        ],
        nets: vec![
            config::NetOverride {
                id: id("eth0"),
                host_dev_name: Some(config::InterfaceName::new("tap7").unwrap()),
                guest_mac: None,
            },
            config::NetOverride {
                id: id("eth1"),
                host_dev_name: None,
                guest_mac: Some("06:00:00:00:00:07".parse().unwrap()),
            },
        ],
        vsock: config::VsockOverride {
            uds_path: Some("/v7".into()),
            guest_cid: Some(config::Cid::new(7).unwrap()),
            peers: Some(config::VsockPeers::Own),
        },
        instance_data: Some(config::InstanceData::new("web-7").unwrap()),
    };
    let expected = Command::LoadSnapshot(LoadSnapshot {
        state: "/s".into(),
        memory: "/m".into(),
        resume: false,
        generation: RestoreAs::New,
        overrides,
        changed_drives: ChangedDrives::Refuse,
        host_paths: HostPaths::NamedOnly,
        id: Some(SnapshotId::from_bytes([0x0a; 16])),
        clock: ClockPolicy::Step,
        clock_realtime: false,
        gate: None,
    });
    assert_eq!(api.commands(), [expected]);
    for (field, value, expected) in [
        ("huge_pages", json!("2M"), "huge pages are not supported"),
        (
            "network_overrides",
            json!([{ "iface_id": "" }]),
            "cannot be empty",
        ),
        (
            "network_overrides",
            json!([{ "host_dev_name": "t" }]),
            "missing field `iface_id`",
        ),
        (
            "snapshot_id",
            json!("0A"),
            "32 lower-case hexadecimal digits",
        ),
        ("host_paths", json!("own"), "unknown variant `own`"),
        ("vsock_override", json!({ "guest_cid": 0 }), "guest CID"),
        ("vsock_override", json!({ "uds_path": "" }), "empty path"),
        (
            "drive_overrides",
            json!([{ "drive_id": "d" }]),
            "missing field `path_on_host`",
        ),
    ] {
        let mut body = json!({ "snapshot_path": "/s", "mem_file_path": "/m" });
        body[field] = value;
        let message = api.fault("PUT", "/snapshot/load", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
}

#[test]
fn a_snapshot_that_cannot_be_loaded_is_refused() {
    let api = willing();
    let file = json!({ "backend_type": "File", "backend_path": "/m" });
    let uffd = json!({ "backend_type": "Uffd", "backend_path": "/m" });
    let cases = [
        (json!({ "snapshot_path": "/s" }), "exactly one of"),
        (
            json!({ "snapshot_path": "/s", "mem_backend": file, "mem_file_path": "/m" }),
            "exactly",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_backend": uffd }),
            "\"File\"",
        ),
        (
            json!({ "mem_file_path": "/m" }),
            "missing field `snapshot_path`",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/s" }),
            "same file",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "" }),
            "empty path",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/m", "track_dirty_pages": true }),
            "track_dirty_pages is not supported",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/m", "enable_diff_snapshots": true }),
            "enable_diff_snapshots is not supported",
        ),
        (
            json!({ "snapshot_path": "/s", "mem_file_path": "/m", "generation": "old" }),
            "expected `new` or `keep`",
        ),
    ];
    for (body, expected) in cases {
        let message = api.fault("PUT", "/snapshot/load", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
}

#[test]
fn the_generation_is_shown_and_begun_anew() {
    let api = willing();
    let shown = |changes: u64| {
        json!({
            "id": "33221100-5544-7766-8899-aabbccddeeff",
            "raw": "00112233445566778899aabbccddeeff",
            "changes": changes,
            "since": "2023-11-14T22:13:20.123Z",
            "since_unix_ms": 1_700_000_000_123_u64,
            "ancestors": ["11111111-1111-1111-1111-111111111111"],
        "counter": 7,
        "driver": {"present": false, "version": 0, "reached": false, "reseeded": false, "outdated_watchers": 0, "required_watchers": 0, "ready_agents": 0, "expected_agents": 0, "adapted": false},
        })
    };
    assert_eq!(api.json("GET", "/generation", ""), shown(0));
    assert_eq!(api.json("PUT", "/generation", ""), shown(1));
    assert_eq!(api.json("PUT", "/generation", "{}"), shown(1));
    let new = Command::NewGeneration;
    assert_eq!(api.commands(), [Command::Generation, new.clone(), new]);
    assert!(
        api.fault("PUT", "/generation", r#"{"id":1}"#)
            .contains("unknown field")
    );
    assert_eq!(api.commands(), []);
}

#[test]
fn waiting_asks_for_the_generation_and_checks_its_limit() {
    let api = willing();
    // The scripted controller has no reports to wait for.
    let message = api.fault("PUT", "/generation/wait", r#"{"timeout_ms":1000}"#);
    assert_eq!(message, "the microVM is shutting down");
    assert_eq!(api.commands(), [Command::Generation, Command::State]);
    for (body, expected) in [
        (r#"{"timeout_ms":600001}"#, "600000 at most"),
        (r#"{"timeout_ms":-1}"#, "invalid value"),
        (r#"{"timeout_ms":1,"x":2}"#, "unknown field"),
        ("{}", "missing field"),
        ("", "Empty PUT request"),
    ] {
        let message = api.fault("PUT", "/generation/wait", body);
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
}

#[test]
fn a_deprecated_field_is_told_also_when_the_load_is_refused() {
    let api = Fixture::new(refusing);
    for (path, body) in [
        (
            "/snapshot/load",
            r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#,
        ),
        (
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"/v","vsock_id":"v"}"#,
        ),
    ] {
        let (status, headers, _) = api.send("PUT", path, body.to_owned());
        assert_eq!(status, 400);
        assert_eq!(headers["deprecation"], "true", "{path}");
    }
}

#[test]
fn a_guest_is_let_ask_for_snapshots_of_itself_within_bounds() {
    let api = willing();
    let shown = json!({
        "allowed": { "directory": "/s", "count": 2, "interval_ms": 3000, "quiesce_ms": 4 },
        "taken": [{ "number": 1, "tag": 7 }],
    });
    assert_eq!(api.json("GET", "/self-snapshot", ""), shown);
    api.done("PUT", "/self-snapshot", json!({ "directory": "/s" }));
    api.done("PUT", "/self-snapshot", shown["allowed"].clone());
    let set = |count, interval, quiesce| {
        Command::SetSelfSnapshot(SelfSnapshotConfig {
            directory: "/s".into(),
            count,
            interval: Duration::from_millis(interval),
            quiesce: Duration::from_millis(quiesce),
        })
    };
    let expected = [
        Command::SelfSnapshots,
        set(1, 10_000, 10_000),
        set(2, 3000, 4),
    ];
    assert_eq!(api.commands(), expected);
    for (body, said) in [
        (json!({}), "directory"),
        (json!({ "directory": "" }), "empty path"),
        (json!({ "directory": "/s", "count": 0 }), "count of 0"),
        (json!({ "directory": "/s", "count": 10_001 }), "1 to 10000"),
        (json!({ "directory": "/s", "quiesce_ms": 0 }), "quiesce_ms"),
        (json!({ "directory": "/s", "interval_ms": -1 }), "u64"),
        (json!({ "directory": "/s", "tag": 1 }), "unknown field"),
    ] {
        let fault = api.fault("PUT", "/self-snapshot", body.to_string());
        assert!(fault.contains(said), "{body}: {fault}");
    }
    assert_eq!(api.commands(), []);
}
