//! Firecracker's dialect as a program sees it that was written for Firecracker: a client library that we did not write, and the
//! state rules of what is configured before the start.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "the helpers of tests fail as tests do"
)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::instance::Instance;
use firecracker_rs_sdk::models::{
    BootSource, InstanceState as State, LogLevel, Logger, MachineConfiguration, Metrics,
    SnapshotCreateParams, SnapshotLoadParams, SnapshotType,
};
use serde_json::{Value, json};
use vm_agent::patience::Patience;
use vmgenie_api::client::Client;
use vmgenie_tests::http::{call, done, ok, refused_with};
use vmgenie_tests::{Guest, Vm};

/// What Firecracker says of a request that comes too late.
const NOT_AFTER_START: &str =
    "The requested operation is not supported after starting the microVM.";
/// What it says of one that comes too early.
const NOT_BEFORE_START: &str =
    "The requested operation is not supported before starting the microVM.";
/// What it says of a load after something of the machine was set.
const NOT_AFTER_CONFIGURING: &str = "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
     boot-specific resources.";

/// Starts vmgenie as the library starts Firecracker: only the path of the binary is another.
fn start(dir: &Path, name: &str) -> Instance {
    let mut instance = FirecrackerOption::new(vmgenie_tests::guest::vmgenie())
        .api_sock(dir.join(format!("{name}.sock")))
        .id(name)
        .level("Info")
        .log_path(Some(dir.join(format!("{name}.log"))))
        .stdin("/dev/null")
        .stdout(dir.join(format!("{name}.console")))
        .stderr(dir.join(format!("{name}.err")))
        .build()
        .expect("the options are right");
    instance.start_vmm().expect("the VMM listens");
    instance
}

fn wait_for(dir: &Path, name: &str, text: &str) {
    let path = dir.join(format!("{name}.console"));
    let mut patience = Patience::new(Duration::from_secs(60));
    loop {
        let console = fs::read(&path).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        if console.contains(text) {
            return;
        }
        assert!(
            !patience.is_over(),
            "no {text:?} on the console: {console:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_client_library_of_firecracker_boots_pauses_snapshots_and_restores() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut vm = start(dir, "first");
    let version = vm.get_firecracker_version().unwrap();
    assert!(version.firecracker_version.starts_with("1."));
    assert_eq!(vm.describe_instance().unwrap().state, State::NotStarted);
    vm.put_machine_configuration(&MachineConfiguration {
        cpu_template: None,
        smt: Some(false),
        mem_size_mib: 32,
        track_dirty_pages: Some(false),
        vcpu_count: 1,
        huge_pages: None,
    })
    .unwrap();
    assert_eq!(vm.get_machine_configuration().unwrap().mem_size_mib, 32);
    vm.put_guest_boot_source(&BootSource {
        boot_args: Some("touch=1".to_owned()),
        initrd_path: None,
        kernel_image_path: Guest::Tiny.kernel(),
    })
    .unwrap();
    vm.put_logger(&Logger {
        level: Some(LogLevel::Debug),
        log_path: dir.join("second.log"),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: None,
    })
    .unwrap();
    vm.put_metrics(&Metrics {
        metrics_path: dir.join("metrics"),
    })
    .unwrap();
    vm.start().unwrap();
    assert_eq!(vm.describe_instance().unwrap().state, State::Running);
    wait_for(dir, "first", "ready");
    vm.pause().unwrap();
    assert_eq!(vm.describe_instance().unwrap().state, State::Paused);
    vm.create_snapshot(&SnapshotCreateParams {
        mem_file_path: dir.join("memory"),
        snapshot_path: dir.join("state"),
        snapshot_type: Some(SnapshotType::Full),
        version: None,
    })
    .unwrap();
    vm.resume().unwrap();
    vm.create_sync_action(firecracker_rs_sdk::models::ActionType::FlushMetrics)
        .unwrap();
    let config = vm.get_export_vm_config().unwrap();
    assert_eq!(config.machine_config.unwrap().vcpu_count, 1);

    let mut clone = start(dir, "second");
    clone
        .load_snapshot(&SnapshotLoadParams {
            enable_diff_snapshots: Some(false),
            mem_file_path: Some(dir.join("memory")),
            mem_backend: None,
            resume_vm: Some(true),
            snapshot_path: dir.join("state"),
        })
        .unwrap();
    let told = clone.describe_instance().unwrap();
    assert_eq!((told.id.as_str(), told.state), ("second", State::Running));

    let log = fs::read_to_string(dir.join("second.log")).unwrap();
    assert!(log.contains("DEBUG") && log.contains("vmm/src/"), "{log}");
    let metrics = fs::read_to_string(dir.join("metrics")).unwrap();
    let line: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(line["put_api_requests"]["boot_source_count"], 1);
    assert_eq!(line["put_api_requests"]["actions_count"], 1);
    assert!(
        line["latencies_us"]["full_create_snapshot"]
            .as_u64()
            .unwrap()
            > 0
    );
}

#[test]
fn devices_log_and_metrics_are_configured_before_the_start_only() {
    let mut vm = Vm::empty();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let client = &mut vm.client;
    let drive = |path: &Path| {
        json!({ "drive_id": "d", "is_root_device": false, "path_on_host": path, "is_read_only": true }).to_string()
    };
    let missing = dir.path().join("missing");
    refused_with(client, "PUT /drives/d", drive(&missing), "missing");
    refused_with(client, "PUT /drives/d", drive(dir.path()), "neither");
    // Log and metrics are no part of a machine: a snapshot could still be loaded.
    done(
        client,
        "PUT /logger",
        json!({ "log_path": dir.path().join("log") }).to_string(),
    );
    let metrics = json!({ "metrics_path": dir.path().join("metrics") }).to_string();
    done(client, "PUT /metrics", metrics.clone());
    refused_with(
        client,
        "PUT /metrics",
        metrics.clone(),
        "initialized already",
    );
    refused_with(
        client,
        "PATCH /drives/d",
        r#"{"drive_id": "d"}"#,
        NOT_BEFORE_START,
    );
    let load = r#"{"snapshot_path": "/nowhere/s", "mem_file_path": "/nowhere/m"}"#;
    refused_with(client, "PUT /snapshot/load", load, "/nowhere/s");
    done(client, "PUT /entropy", "{}");
    refused_with(client, "PUT /snapshot/load", load, NOT_AFTER_CONFIGURING);
    let entropy = json!({ "rate_limiter": null });
    assert_eq!(ok(client, "GET /vm/config", "")["entropy"], entropy);

    let source = json!({ "kernel_image_path": Guest::Tiny.kernel(), "boot_args": "touch=1" });
    done(client, "PUT /boot-source", source.to_string());
    done(
        client,
        "PUT /actions",
        r#"{"action_type": "InstanceStart"}"#,
    );
    for (request, body) in [
        ("PUT /drives/d", drive(&disk)),
        (
            "PUT /network-interfaces/n",
            r#"{"iface_id": "n", "host_dev_name": "tap0"}"#.to_owned(),
        ),
        (
            "PUT /vsock",
            r#"{"guest_cid": 3, "uds_path": "/tmp/v"}"#.to_owned(),
        ),
        ("PUT /entropy", "{}".to_owned()),
        ("PUT /logger", "{}".to_owned()),
        ("PUT /metrics", metrics),
    ] {
        refused_with(client, request, body, NOT_AFTER_START);
    }
    refused_with(
        client,
        "PATCH /drives/d",
        r#"{"drive_id": "d"}"#,
        "no drive d",
    );
    refused_with(
        client,
        "PATCH /network-interfaces/n",
        r#"{"iface_id": "n"}"#,
        "no network interface n",
    );
    done(client, "PUT /actions", r#"{"action_type": "FlushMetrics"}"#);
    done(
        client,
        "PUT /actions",
        r#"{"action_type": "SendCtrlAltDel"}"#,
    );
    let (status, document) = call(client, "GET /openapi.json", "");
    assert_eq!(
        (status, &document["info"]["title"]),
        (200, &"vmgenie".into())
    );
    let line = fs::read_to_string(dir.path().join("metrics")).unwrap();
    let line: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert!(line["put_api_requests"]["drive_fails"].as_u64().unwrap() >= 3);
}

#[test]
fn com_02_what_comes_too_early_or_too_late_is_refused_in_firecrackers_words() {
    let mut vm = Vm::empty();
    let dir = tempfile::tempdir().unwrap();
    let files = json!({
        "snapshot_path": dir.path().join("s"), "mem_file_path": dir.path().join("m"),
    });
    let client = &mut vm.client;
    for (request, body) in [
        ("PUT /snapshot/create", files.clone()),
        ("PUT /actions", json!({ "action_type": "SendCtrlAltDel" })),
        ("PUT /actions", json!({ "action_type": "FlushMetrics" })),
        ("PATCH /vm", json!({ "state": "Paused" })),
        ("PATCH /drives/d", json!({ "drive_id": "d" })),
        ("PATCH /network-interfaces/n", json!({ "iface_id": "n" })),
    ] {
        refused_with(client, request, body.to_string(), NOT_BEFORE_START);
    }
    let source = Guest::Tiny.boot_source();
    let size = json!({ "vcpu_count": 1, "mem_size_mib": 32 });
    done(client, "PUT /boot-source", source.to_string());
    done(client, "PUT /machine-config", size.to_string());
    let start = json!({ "action_type": "InstanceStart" });
    done(client, "PUT /actions", start.to_string());
    for (request, body) in [
        // What a client that sent it twice takes for success.
        ("PUT /actions", start),
        ("PUT /boot-source", source),
        ("PUT /machine-config", size.clone()),
        ("PATCH /machine-config", size),
        ("PUT /vsock", json!({ "guest_cid": 3, "uds_path": "v" })),
        ("PUT /entropy", json!({})),
        ("PUT /logger", json!({})),
        ("PUT /serial", json!({})),
        (
            "PUT /metrics",
            json!({ "metrics_path": dir.path().join("metrics") }),
        ),
        ("PUT /snapshot/load", files),
    ] {
        refused_with(client, request, body.to_string(), NOT_AFTER_START);
    }
}

#[test]
fn cfg_03_a_shown_configuration_is_a_configuration_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("config"), dir.path().join("c.sock"));
    let mut vm = Vm::empty();
    let fresh = ok(&mut vm.client, "GET /vm/config", "");
    assert_eq!(fresh["boot-source"]["kernel_image_path"], "");
    for body in [
        ("PUT /boot-source", Guest::Tiny.boot_source()),
        (
            "PUT /machine-config",
            json!({ "vcpu_count": 2, "mem_size_mib": 64 }),
        ),
        ("PUT /entropy", json!({})),
    ] {
        done(&mut vm.client, body.0, body.1.to_string());
    }
    let shown = ok(&mut vm.client, "GET /vm/config", "");
    assert_eq!(shown["entropy"], json!({ "rate_limiter": null }));
    let mut with_more = shown.clone();
    with_more["not-a-name"] = json!(1);
    fs::write(&file, with_more.to_string()).unwrap();
    let errors = dir.path().join("errors");
    let mut again = Command::new(vmgenie_tests::guest::vmgenie());
    again
        .arg("--api-sock")
        .arg(&socket)
        .arg("--config-file")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&errors).unwrap());
    let mut again = Killed(again.spawn().unwrap());
    let mut patience = Patience::new(Duration::from_secs(60));
    let mut client = loop {
        let mut client = Client::new(&socket).unwrap();
        match client.connect() {
            Ok(()) => break client,
            Err(error) => assert!(!patience.is_over(), "{error}"),
        }
        assert_eq!(again.0.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ok(&mut client, "GET /vm/config", ""), shown);
    let told = fs::read_to_string(&errors).unwrap();
    assert!(
        told.contains("\"not-a-name\", which is not known"),
        "{told}"
    );
}

#[test]
fn the_boot_timer_tells_how_long_a_guest_took_to_boot() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let config = json!({
        "boot-source": { "kernel_image_path": Guest::Tiny.kernel(), "boot_args": "timer" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 32 },
    });
    fs::write(dir.join("config"), config.to_string()).unwrap();
    for timer in [true, false] {
        let name = format!("timer-{timer}");
        let console = fs::File::create(dir.join(format!("{name}.console"))).unwrap();
        let mut vm = Command::new(vmgenie_tests::guest::vmgenie());
        vm.args(["--no-api", "--level", "Info", "--config-file"])
            .arg(dir.join("config"))
            .arg("--log-path")
            .arg(dir.join(&name))
            .args(timer.then_some("--boot-timer"))
            .stdin(Stdio::null())
            .stdout(console);
        let mut vm = Killed(vm.spawn().unwrap());
        // What the guest writes without a timer goes nowhere, and it goes on.
        wait_for(dir, &name, "ready");
        assert!(vm.0.try_wait().unwrap().is_none());
        let log = fs::read_to_string(dir.join(&name)).unwrap();
        let times: Vec<u64> = log
            .lines()
            .filter_map(|line| line.split_once("Guest-boot-time = "))
            .flat_map(|(_, times)| times.split(' '))
            .filter_map(|word| word.parse().ok())
            .collect();
        match (timer, times.as_slice()) {
            (true, &[us, ms, cpu_us, cpu_ms]) => {
                assert!(us > 0 && ms == us / 1000, "{log}");
                assert!(cpu_us > 0 && cpu_ms == cpu_us / 1000, "{log}");
            }
            (false, []) => {}
            _ => panic!("{log}"),
        }
    }
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
