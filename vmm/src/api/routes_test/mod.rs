use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Request};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use vmgenie_api::{headers::FIRECRACKER_DIALECT, limits::BODY_LIMIT, wire};
use vmgenie_machine::config::{BootSource, Cmdline, HugePages, MachineConfig};
use vmgenie_machine::request::{CreateSnapshot, LoadSnapshot};

use super::*;
use crate::api::limits;
use crate::api::testing::{Seen, agreeable, controller, refusing};
use crate::controller::command::CommandResult;

/// The API in front of a scripted controller, without a socket.
struct Fixture {
    runtime: Runtime,
    router: Router,
    seen: Seen,
}

impl Fixture {
    fn new(script: impl FnMut(&Command) -> CommandResult + Send + 'static) -> Self {
        let (handle, seen) = controller(script);
        Self::of(handle, seen)
    }

    fn of(handle: ControllerHandle, seen: Seen) -> Self {
        let info = ApiInfo {
            id: "test".to_owned(),
            version: "1.2.3".to_owned(),
            body_limit: vmgenie_api::limits::BODY_LIMIT,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
            router: router(info, handle),
            seen,
        }
    }

    fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, HeaderMap, Bytes) {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Full::new(body.into())).unwrap();
        self.runtime.block_on(async {
            let response = limits::answer(self.router.clone(), BODY_LIMIT, request, || {}).await;
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            (head.status.as_u16(), head.headers, body)
        })
    }

    /// Expects 204 without a body.
    fn done(&self, method: &str, path: &str, body: Value) {
        let (status, _, answer) = self.send(method, path, body.to_string());
        assert_eq!(
            (status, answer.as_ref()),
            (204, &b""[..]),
            "{method} {path} {body}"
        );
    }

    /// Expects 200 with JSON.
    fn json(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, headers, answer) = self.send(method, path, body.to_owned());
        assert_eq!(status, 200, "{method} {path}: {answer:?}");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        serde_json::from_slice(&answer).unwrap()
    }

    /// Expects 400 and returns the message.
    fn fault(&self, method: &str, path: &str, body: impl Into<Bytes>) -> String {
        let (status, _, answer) = self.send(method, path, body);
        assert_eq!(status, 400, "{method} {path}: {answer:?}");
        let fault: wire::Fault = serde_json::from_slice(&answer).unwrap();
        fault.fault_message
    }

    /// The commands that the controller was sent since the last look.
    fn commands(&self) -> Vec<Command> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn willing() -> Fixture {
    Fixture::new(agreeable)
}

#[test]
fn the_root_tells_who_is_there() {
    let expected = json!({
        "app_name": "vmgenie", "id": "test", "state": "Running", "vmm_version": "1.2.3",
    });
    assert_eq!(willing().json("GET", "/", ""), expected);
}

#[test]
fn the_version_names_the_dialect_and_vmgenie() {
    let expected =
        json!({ "firecracker_version": FIRECRACKER_DIALECT, "vmgenie_version": "1.2.3" });
    assert_eq!(willing().json("GET", "/version", ""), expected);
}

#[test]
fn the_configuration_is_shown_whole() {
    let api = willing();
    let machine = json!({
        "vcpu_count": 2, "mem_size_mib": 256, "smt": false, "track_dirty_pages": false,
        "huge_pages": "None",
    });
    let expected = json!({
        "balloon": null, "drives": [],
        "boot-source": {
            "kernel_image_path": "/vmlinux", "initrd_path": null, "boot_args": "console=ttyS0",
        },
        "cpu-config": null, "logger": null, "machine-config": machine, "metrics": null,
        "mmds-config": null, "network-interfaces": [], "vsock": null, "entropy": null,
        "pmem": [], "memory-hotplug": null,
    });
    assert_eq!(api.json("GET", "/vm/config", ""), expected);
    assert_eq!(api.json("GET", "/machine-config", ""), machine);
}

#[test]
fn a_machine_configuration_is_set() {
    let api = willing();
    api.done(
        "PUT",
        "/machine-config",
        json!({ "vcpu_count": 4, "mem_size_mib": 512 }),
    );
    let with_defaults = json!({
        "vcpu_count": 4, "mem_size_mib": 512, "smt": false, "track_dirty_pages": false,
        "huge_pages": "None", "cpu_template": null,
    });
    api.done("PUT", "/machine-config", with_defaults);
    let expected = Command::SetMachineConfig(MachineConfig::new(4, 512).unwrap());
    assert_eq!(api.commands(), [expected.clone(), expected]);
}

#[test]
fn a_patch_changes_only_what_it_names() {
    let api = willing();
    api.done("PATCH", "/machine-config", json!({ "mem_size_mib": 1024 }));
    let expected = MachineConfig::new(2, 1024).unwrap();
    assert_eq!(
        api.commands(),
        [Command::Config, Command::SetMachineConfig(expected)]
    );
    for (body, expected) in [
        (json!({ "smt": true }), expected.with_smt(true)),
        (
            json!({ "huge_pages": "2M" }),
            expected.with_huge_pages(HugePages::TwoMib),
        ),
        (
            json!({ "huge_pages": "Transparent" }),
            expected.with_huge_pages(HugePages::Transparent),
        ),
    ] {
        let mut body = body;
        body["mem_size_mib"] = json!(1024);
        api.done("PATCH", "/machine-config", body);
        let expected = Command::SetMachineConfig(expected.unwrap());
        assert_eq!(api.commands().last(), Some(&expected));
    }
}

#[test]
fn a_machine_configuration_that_cannot_be_is_refused_before_the_controller_sees_it() {
    let api = willing();
    let cases = [
        (json!({ "vcpu_count": 0, "mem_size_mib": 128 }), "1 to 32"),
        (json!({ "vcpu_count": 33, "mem_size_mib": 128 }), "1 to 32"),
        (
            json!({ "vcpu_count": 1, "mem_size_mib": 31 }),
            "MiB of memory",
        ),
        (json!({ "vcpu_count": 1, "mem_size_mib": u64::MAX }), "MiB"),
        (
            json!({ "vcpu_count": -1, "mem_size_mib": 128 }),
            "invalid value",
        ),
        (
            json!({ "vcpu_count": "1", "mem_size_mib": 128 }),
            "invalid type",
        ),
        (json!({ "vcpu_count": 1 }), "missing field `mem_size_mib`"),
        (
            json!({ "vcpu_count": 3, "mem_size_mib": 128, "smt": true }),
            "smt",
        ),
        (
            json!({ "vcpu_count": 1, "mem_size_mib": 128, "track_dirty_pages": true }),
            "track_dirty",
        ),
        (
            json!({ "vcpu_count": 1, "mem_size_mib": 129, "huge_pages": "2M" }),
            "huge pages",
        ),
        (
            json!({ "vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2" }),
            "CPU templates",
        ),
        (
            json!({ "vcpu_count": 1, "mem_size_mib": 128, "ht_enabled": false }),
            "unknown field",
        ),
    ];
    for (body, expected) in cases {
        let message = api.fault("PUT", "/machine-config", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
    assert!(
        api.fault("PATCH", "/machine-config", "{}")
            .contains("changes nothing")
    );
    assert!(
        api.fault(
            "PATCH",
            "/machine-config",
            r#"{"smt":true,"vcpu_count":31}"#
        )
        .contains("smt")
    );
    assert!(
        api.fault("PATCH", "/machine-config", r#"{"vcpu_count":99}"#)
            .contains("1 to 32")
    );
}

#[test]
fn a_boot_source_is_set() {
    let api = willing();
    api.done("PUT", "/boot-source", json!({ "kernel_image_path": "/k" }));
    let whole = json!({ "kernel_image_path": "/k", "initrd_path": "/i", "boot_args": "quiet" });
    api.done("PUT", "/boot-source", whole);
    let kernel = PathBuf::from("/k");
    let plain = BootSource {
        kernel: kernel.clone(),
        initrd: None,
        cmdline: Cmdline::default(),
    };
    let cmdline = Cmdline::new("quiet").unwrap();
    let whole = BootSource {
        kernel,
        initrd: Some("/i".into()),
        cmdline,
    };
    assert_eq!(
        api.commands(),
        [Command::SetBootSource(plain), Command::SetBootSource(whole)]
    );
}

#[test]
fn a_boot_source_that_cannot_be_is_refused() {
    let api = willing();
    let long = "x".repeat(2048);
    let cases = [
        (json!({}), "missing field `kernel_image_path`"),
        (
            json!({ "kernel_image_path": "" }),
            "kernel_image_path is an empty path",
        ),
        (
            json!({ "kernel_image_path": "/k", "initrd_path": "" }),
            "initrd_path is an empty path",
        ),
        (
            json!({ "kernel_image_path": "/k", "boot_args": "a\u{0}b" }),
            "offset 1",
        ),
        (
            json!({ "kernel_image_path": "/k", "boot_args": long }),
            "2048 bytes",
        ),
        (json!({ "kernel_image_path": 7 }), "invalid type"),
        (json!([]), "invalid length"),
    ];
    for (body, expected) in cases {
        let message = api.fault("PUT", "/boot-source", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
}

#[test]
fn the_three_actions_are_passed_on() {
    let api = willing();
    for action in ["InstanceStart", "FlushMetrics", "SendCtrlAltDel"] {
        api.done("PUT", "/actions", json!({ "action_type": action }));
    }
    assert_eq!(
        api.commands(),
        [
            Command::Start,
            Command::FlushMetrics,
            Command::PressPowerButton
        ]
    );
    let other = api.fault("PUT", "/actions", r#"{"action_type":"Dance"}"#);
    assert!(other.contains("unknown variant `Dance`"), "{other}");
    assert_eq!(api.commands(), []);
}

#[test]
fn the_machine_is_paused_and_resumed() {
    let api = willing();
    api.done("PATCH", "/vm", json!({ "state": "Paused" }));
    api.done("PATCH", "/vm", json!({ "state": "Resumed" }));
    assert_eq!(api.commands(), [Command::Pause, Command::Resume]);
    assert!(
        api.fault("PATCH", "/vm", r#"{"state":"Running"}"#)
            .contains("`Paused` or `Resumed`")
    );
}

/// Every endpoint with a body that it takes.
fn endpoints() -> Vec<(&'static str, &'static str, String)> {
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": 128 });
    let snapshot = json!({ "snapshot_path": "/s", "mem_file_path": "/m" });
    let all = [
        ("GET", "/", json!(null)),
        ("GET", "/version", json!(null)),
        ("GET", "/vm/config", json!(null)),
        ("GET", "/machine-config", json!(null)),
        ("PUT", "/machine-config", machine.clone()),
        ("PATCH", "/machine-config", machine),
        (
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": "/k", "boot_args": "quiet" }),
        ),
        ("PUT", "/actions", json!({ "action_type": "InstanceStart" })),
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PUT", "/snapshot/create", snapshot.clone()),
        ("PUT", "/snapshot/load", snapshot),
        ("GET", "/generation", json!(null)),
        ("PUT", "/generation", json!({})),
        (
            "PUT",
            "/drives/a",
            json!({ "drive_id": "a", "is_root_device": true, "path_on_host": "/d" }),
        ),
        (
            "PATCH",
            "/drives/a",
            json!({ "drive_id": "a", "path_on_host": "/e" }),
        ),
        (
            "PUT",
            "/network-interfaces/n",
            json!({ "iface_id": "n", "host_dev_name": "tap0" }),
        ),
        ("PATCH", "/network-interfaces/n", json!({ "iface_id": "n" })),
        ("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "/v" })),
        ("PUT", "/entropy", json!({})),
        ("GET", "/instance-data", json!(null)),
        ("PUT", "/instance-data", json!({ "data": "web-1" })),
        ("PUT", "/logger", json!({ "level": "Off" })),
        ("PUT", "/metrics", json!({ "metrics_path": "/m" })),
        ("GET", "/self-snapshot", json!(null)),
        ("PUT", "/self-snapshot", json!({ "directory": "/s" })),
    ];
    let text = |body: Value| {
        if body.is_null() {
            String::new()
        } else {
            body.to_string()
        }
    };
    all.into_iter()
        .map(|(method, path, body)| (method, path, text(body)))
        .collect()
}

#[test]
fn what_the_controller_refuses_is_passed_on_word_for_word() {
    let api = Fixture::new(refusing);
    for (method, path, body) in endpoints()
        .into_iter()
        .filter(|(_, path, _)| *path != "/version")
    {
        let message = api.fault(method, path, body);
        assert_eq!(
            message,
            refusing(&Command::State).unwrap_err().0,
            "{method} {path}"
        );
    }
}

#[test]
fn a_controller_that_is_gone_or_confused_is_a_fault_and_no_panic() {
    let (handle, commands) = crate::api::testing::controller_handle();
    drop(commands);
    let gone = Fixture {
        router: router(
            ApiInfo {
                id: String::new(),
                version: String::new(),
                body_limit: 0,
            },
            handle,
        ),
        ..willing()
    };
    // Answers each question with what belongs to another.
    let confused = Fixture::new(|command| match command {
        Command::State => Ok(Reply::Done),
        _ => Ok(Reply::State(crate::controller::command::VmState::Paused)),
    });
    for (method, path, body) in endpoints()
        .into_iter()
        .filter(|(_, path, _)| *path != "/version")
    {
        assert!(
            gone.fault(method, path, body.clone())
                .contains("shutting down")
        );
        assert!(
            confused
                .fault(method, path, body)
                .contains("a fault in vmgenie")
        );
    }
}

#[test]
fn unknown_paths_and_methods_are_refused() {
    let api = willing();
    let message = api.fault("PUT", "/drive/rootfs", "{}");
    assert_eq!(
        message,
        "Invalid request method and/or path: PUT /drive/rootfs."
    );
    let message = api.fault("DELETE", "/vm", "");
    assert_eq!(message, "Invalid request method and/or path: DELETE /vm.");
    assert!(api.fault("GET", "/actions", "").contains("GET /actions"));
    let long = format!("/{}", "x".repeat(5000));
    assert!(api.fault("GET", &long, "").len() < 300);
    assert_eq!(api.commands(), []);
}

#[test]
fn a_get_request_has_no_body() {
    let api = willing();
    for (_, path, _) in endpoints()
        .into_iter()
        .filter(|(method, ..)| *method == "GET")
    {
        assert_eq!(
            api.fault("GET", path, "{}"),
            "GET request cannot have a body."
        );
    }
}

#[test]
fn a_body_may_have_51200_bytes_and_no_more() {
    let api = willing();
    let body = |len: usize| {
        let text = r#"{"state":"Paused"}"#;
        text.to_owned() + &" ".repeat(len - text.len())
    };
    api.send("PATCH", "/vm", body(BODY_LIMIT));
    assert_eq!(api.commands(), [Command::Pause]);
    for len in [BODY_LIMIT + 1, 4 << 20] {
        assert!(api.fault("PATCH", "/vm", body(len)).contains("51200 bytes"));
    }
    assert_eq!(api.commands(), []);
}

#[test]
fn deep_nesting_and_broken_text_are_refused() {
    let api = willing();
    for body in [
        "[".repeat(50_000),
        r#"{"state":"Paused"}x"#.into(),
        "{".into(),
        String::new(),
    ] {
        api.fault("PATCH", "/vm", body);
    }
    api.fault("PATCH", "/vm", &b"{\"state\":\"\xff\"}"[..]);
    api.fault("PATCH", "/vm", r#"{"state":"Paused","state":"Paused"}"#);
    assert_eq!(api.commands(), []);
}

mod devices;
mod document;
mod random_bodies;
mod ready;
mod snapshots;

#[test]
fn no_path_has_a_head() {
    let api = willing();
    for (_, path, _) in endpoints() {
        // The answer to a HEAD has no body.
        assert_eq!(api.send("HEAD", path, "").0, 400, "{path}");
    }
    assert_eq!(api.commands(), []);
}
