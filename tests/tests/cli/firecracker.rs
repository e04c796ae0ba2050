//! Firecracker's own command line: configuration files, no API, statuses.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use vmgenie_api::client::Client;
use vmgenie_tests::process::{signal, wait_until};
use vmgenie_tests::{Guest, Snapshot};

use crate::{fail, vmgenie};

const LIMIT: Duration = Duration::from_secs(60);

/// A configuration file in `dir`, of a tiny guest and what `more` says.
fn config(dir: &Path, more: &Value) -> String {
    let mut config = json!({
        "boot-source": { "kernel_image_path": Guest::Tiny.kernel(), "boot_args": "echo" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 32 },
    });
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Ended when this is dropped.
struct Running(Child);

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut command = vmgenie(arguments);
        command.stdout(Stdio::piped());
        let mut running = Self(command.spawn().unwrap());
        let mut said = [0; 6];
        running
            .0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .unwrap();
        assert_eq!(&said, b"ready\n");
        running
    }

    fn end(mut self) {
        signal(self.0.id(), libc::SIGTERM);
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_configuration_file_boots_a_machine_with_an_api() {
    let place = Snapshot::new();
    let drive = place.dir().join("disk.img");
    fs::write(&drive, vec![0; 1 << 20]).unwrap();
    let file = config(
        place.dir(),
        &json!({
            "drives": [{ "drive_id": "d", "is_root_device": false, "path_on_host": drive }],
            "vsock": { "guest_cid": 7, "uds_path": place.dir().join("v.sock") },
            "entropy": {}, "network-interfaces": [],
        }),
    );
    let socket = place.dir().join("api.sock");
    let arguments = [
        "--api-sock",
        socket.to_str().unwrap(),
        "--id",
        "fc-1",
        "--config-file",
        &file,
    ];
    let running = Running::start(&arguments);
    let mut client = Client::new(&socket).unwrap();
    assert_eq!(client.info().unwrap().id, "fc-1");
    let shown = client.config().unwrap();
    assert_eq!(shown.machine_config.mem_size_mib, 32);
    assert_eq!(shown.drives[0].drive_id, "d");
    assert_eq!(shown.vsock.unwrap().guest_cid, 7);
    assert!(shown.entropy.is_some());
    running.end();
    assert!(!socket.exists());
}

#[test]
fn without_an_api_there_is_a_machine_and_no_socket() {
    let place = Snapshot::new();
    let file = config(place.dir(), &json!({}));
    let socket = place.dir().join("api.sock");
    let metrics = place.dir().join("metrics");
    let running = Running::start(&[
        "--no-api",
        "--config-file",
        &file,
        "--api-sock",
        socket.to_str().unwrap(),
        "--metrics-path",
        metrics.to_str().unwrap(),
    ]);
    assert!(!socket.exists());
    // One line at the start, and one at the end.
    let lines = || {
        fs::read_to_string(&metrics)
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_until("a line of metrics", LIMIT, || lines() == 1);
    running.end();
    assert_eq!(lines(), 2);
}

#[test]
fn a_configuration_file_that_cannot_be_used_is_152_whatever_is_wrong_with_it() {
    let place = Snapshot::new();
    let drive = |path: &str| json!({ "drives": [{ "drive_id": "d", "is_root_device": false, "path_on_host": path }] });
    let rubbish = place.dir().join("rubbish");
    fs::write(&rubbish, vec![0x55; 5000]).unwrap();
    let root = json!({ "drives": [{ "drive_id": "d", "is_root_device": true, "path_on_host": rubbish }],
        "boot-source": { "kernel_image_path": Guest::Tiny.kernel(), "boot_args": "x".repeat(2040) } });
    for (more, part) in [
        (
            json!({ "boot-source": { "kernel_image_path": "/nowhere/k" } }),
            "/nowhere/k",
        ),
        (
            json!({ "boot-source": { "kernel_image_path": rubbish } }),
            "rubbish",
        ),
        (
            json!({ "machine-config": { "vcpu_count": 99, "mem_size_mib": 32 } }),
            "99 vCPUs",
        ),
        (
            json!({ "machine-config": { "vcpu_count": 1 } }),
            "mem_size_mib",
        ),
        (drive("/nowhere/d"), "/nowhere/d"),
        (root, "command line"),
        (
            json!({ "network-interfaces": [{ "iface_id": "n", "host_dev_name": "no/tap" }] }),
            "no/tap",
        ),
        (
            json!({ "vsock": { "guest_cid": 3, "uds_path": "/nowhere/v" } }),
            "/nowhere/v",
        ),
        (
            json!({ "logger": { "log_path": "/nowhere/log" } }),
            "/nowhere/log",
        ),
        (
            json!({ "metrics": { "metrics_path": "/nowhere/m" } }),
            "/nowhere/m",
        ),
        (json!({ "balloon": {} }), "balloon"),
        (
            json!({ "entropy": { "no-such-thing": 1 } }),
            "no-such-thing",
        ),
    ] {
        let file = config(place.dir(), &more);
        fail(["--no-api", "--config-file", &file], 152, part);
    }
    let file = place.dir().join("broken.json");
    fs::write(&file, "{").unwrap();
    let arguments = ["--no-api", "--config-file", file.to_str().unwrap()];
    fail(arguments, 152, "not the JSON that it should be");
    fail(
        ["--no-api", "--config-file", "/nowhere/c"],
        152,
        "/nowhere/c",
    );
    fail(["--level", "Loud"], 152, "Loud");
}

#[test]
fn a_command_line_that_cannot_be_used_is_153() {
    for (arguments, part) in [
        (&["--no-api"][..], "--config-file"),
        (&["--id", "a_b"], "letters, digits and hyphens"),
        (&["--id=x", "--no-such-option"], "--no-such-option"),
        (&["--api-sock"], "--api-sock"),
        (&["--enable-pci"], "--enable-pci is not supported"),
        (
            &["--seccomp-filter", "f"],
            "--seccomp-filter is not supported",
        ),
        (&["--http-api-max-payload-size", "many"], "many"),
    ] {
        fail(arguments, 153, part);
    }
}
