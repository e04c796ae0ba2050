//! Clones with devices, and strings, of their own.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use vmgenie_api::client::Client;
use vmgenie_tests::net::Namespace;
use vmgenie_tests::process::{Stray, with_argument};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot};

use crate::{json, vmgenie};

/// Ends the clones that have their sockets in a directory.
struct Sweep<'a>(&'a Path);

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        for pid in with_argument(self.0.to_str().unwrap()) {
            drop(Stray(pid));
        }
    }
}

/// What a guest's shell answers over `vmgenie console`. Each `question` has a number of its own: what was answered before is shown again.
fn ask(socket: &str, question: u32, command: &str) -> String {
    let over = format!("@@over-{question}");
    let mut console = vmgenie(["console", socket]);
    let mut child = console
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    writeln!(input, "{command}; echo {over}").unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains(&over) {
        let len = output.read(&mut buffer).unwrap();
        assert!(len > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    seen.replace('\r', "")
}

#[test]
fn clones_are_told_by_templates_who_they_are_and_what_they_have() {
    let place = Snapshot::new();
    let at = |name: &str| place.dir().join(name).to_str().unwrap().to_owned();
    fs::write(at("disk.img"), vec![0; 1 << 20]).unwrap();
    let namespace = Namespace::new();
    for tap in ["tap0", "tap1", "tap2"] {
        namespace.run(|| vmgenie_tests::net::make_tap(tap).unwrap());
    }
    let snapshot = namespace.run(|| {
        let mut vm = Boot::new(Guest::Small)
            .option("--net=tap0,mac=06:00:00:00:00:09")
            .option(&format!("--drive={}", at("disk.img")))
            .option(&format!("--vsock={},cid=9", at("v.sock")))
            .option("--entropy")
            .option("--data=original")
            .ready();
        vm.shell("echo original > /tmp/name && dd if=/tmp/name of=/dev/vda conv=fsync");
        no_complaints(&mut vm);
        vm.snapshot()
    });
    let dir = place.dir().join("clones");
    let _sweep = Sweep(&dir);
    let from = snapshot.dir().to_str().unwrap().to_owned();
    let (drive, vsock) = (
        format!("disk0={},copy", at("disk-{n}.img")),
        at("v-{n}.sock"),
    );
    let arguments = [
        "clone",
        &from,
        "-n",
        "2",
        "--dir",
        dir.to_str().unwrap(),
        "--net",
        "net0=tap{n},mac=06:00:00:00:00:1{n}",
        "--drive",
        &drive,
        "--vsock",
        &vsock,
        "--cid",
        "100+{n}",
        "--data",
        "web-{n}",
    ];
    let shown = namespace.run(|| json(arguments));
    for (n, clone) in (1..).zip(shown["clones"].as_array().unwrap()) {
        let socket = clone["socket"].as_str().unwrap();
        let mut client = Client::new(socket).unwrap();
        let config = serde_json::to_value(client.config().unwrap()).unwrap();
        assert_eq!(
            config["network-interfaces"][0]["host_dev_name"],
            format!("tap{n}")
        );
        let mac = format!("06:00:00:00:00:1{n}");
        assert_eq!(config["network-interfaces"][0]["guest_mac"], mac);
        assert_eq!(
            config["drives"][0]["path_on_host"],
            at(&format!("disk-{n}.img"))
        );
        assert_eq!(
            config["vsock"],
            json!({ "guest_cid": 100 + n, "uds_path": at(&format!("v-{n}.sock")), "peers": "own" })
        );
        assert_eq!(client.instance_data().unwrap(), format!("web-{n}"));
        let said = ask(socket, 1, "sysgenctl data; head -c 9 /dev/vda");
        assert!(said.contains(&format!("web-{n}\noriginal\n")), "{said}");
        ask(socket, 2, "sysgenctl data | dd of=/dev/vda conv=fsync");
        let written = fs::read(at(&format!("disk-{n}.img"))).unwrap();
        assert!(written.starts_with(format!("web-{n}\n").as_bytes()));
    }
    assert!(fs::read(at("disk.img")).unwrap().starts_with(b"original\n"));
}
