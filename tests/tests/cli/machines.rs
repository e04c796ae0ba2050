//! `vmgenie ps` and `vmgenie stop`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vmgenie_tests::process::is_alive;
use vmgenie_tests::{Guest, Snapshot, Vm};

use crate::{stderr, stdout, vmgenie};

const LIMIT: Duration = Duration::from_secs(60);

/// Machines that only this test lists.
pub(crate) struct Place(Snapshot);

impl Place {
    pub(crate) fn new() -> Self {
        Self(Snapshot::new())
    }

    fn runtime_dir(&self) -> &str {
        self.0.dir().to_str().unwrap()
    }

    /// Starts a machine, and waits until it says `ready`.
    fn start(&self, arguments: &[&str], ready: &str) -> Vm {
        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let mut vm = Vm::spawn(&arguments, &[("XDG_RUNTIME_DIR", self.runtime_dir())]);
        vm.console.wait_for(ready, vmgenie_tests::vm::BOOT_LIMIT);
        vm
    }

    pub(crate) fn tiny(&self, id: &str) -> Vm {
        let kernel = Guest::Tiny.kernel();
        let kernel = kernel.to_str().unwrap();
        let arguments = ["run", "--kernel", kernel, "--memory=32M", "--id", id];
        self.start(&arguments, "ready\n")
    }

    /// A VMM that has no machine yet.
    pub(crate) fn empty(&self, id: &str) -> Vm {
        let arguments = ["api".to_owned(), format!("--id={id}")];
        Vm::spawn(&arguments, &[("XDG_RUNTIME_DIR", self.runtime_dir())])
    }

    /// Where they are listed.
    pub(crate) fn dir(&self) -> &Path {
        self.0.dir()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = vmgenie(arguments);
        command.env("XDG_RUNTIME_DIR", self.runtime_dir());
        command
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn fail(&self, arguments: &[&str], part: &str) {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains(part), "{output:?}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn machines_are_listed_while_they_run_and_stopped_by_name_process_or_socket() {
    let place = Place::new();
    let none = place.json(&["ps"]);
    assert_eq!(none.as_array().unwrap().len(), 0);
    let mut vms = ["web-1", "web-2", "web-3"].map(|id| place.tiny(id));
    vms[1].client.pause().unwrap();
    let listed = place.json(&["ps"]);
    let states: Vec<_> = listed.as_array().unwrap().iter().collect();
    assert_eq!(states.len(), 3);
    for (entry, vm) in states.iter().zip(&vms) {
        assert_eq!(entry["pid"], vm.pid());
        assert_eq!(entry["api_socket"], vm.socket().to_str().unwrap());
    }
    assert_eq!(
        states
            .iter()
            .map(|entry| &entry["state"])
            .collect::<Vec<_>>(),
        ["Running", "Paused", "Running"]
    );
    let output = place.command(&["ps"]).output().unwrap();
    let text = stdout(&output);
    let row = text.lines().find(|line| line.contains("web-2")).unwrap();
    assert!(
        row.contains("Paused") && row.contains(&vms[1].pid().to_string()),
        "{text}"
    );

    let [first, second, third] = &mut vms;
    let pid = second.pid().to_string();
    let socket = third.socket();
    let stopped = place.json(&["stop", "web-1"]);
    assert_eq!(
        (&stopped["pid"], &stopped["powered_off"]),
        (&first.pid().into(), &false.into())
    );
    place.json(&["stop", &pid]);
    place.json(&["stop", socket.to_str().unwrap()]);
    for vm in [first, second, third] {
        assert_eq!(vm.wait_status(LIMIT).code(), Some(0), "as by SIGTERM");
    }
    assert_eq!(place.json(&["ps"]).as_array().unwrap().len(), 0);
    place.fail(&["stop", "web-1"], "there is no machine web-1");
}

#[test]
fn one_of_two_machines_of_a_name_is_not_guessed() {
    let place = Place::new();
    let vms = [place.tiny("twin"), place.tiny("twin")];
    place.fail(&["stop", "twin"], "2 machines are named twin");
    assert!(vms.iter().all(|vm| is_alive(vm.pid())));
}

#[test]
fn a_killed_machine_is_forgotten() {
    let place = Place::new();
    let mut vm = place.tiny("lost");
    vm.kill();
    assert_eq!(place.json(&["ps"]).as_array().unwrap().len(), 0);
    place.fail(&["stop", "lost"], "there is no machine lost");
}

#[test]
fn a_guest_that_does_not_power_off_is_ended_after_a_while() {
    let place = Place::new();
    let mut vm = place.tiny("deaf");
    let stopped = place.json(&["stop", "deaf", "--power-off=300ms"]);
    assert_eq!(stopped["powered_off"], false);
    assert_eq!(vm.wait_status(LIMIT).code(), Some(0));
}

#[test]
fn a_power_button_that_cannot_be_reached_is_told_and_the_machine_goes_on() {
    let place = Place::new();
    let kernel = Guest::Tiny.kernel();
    let kernel = kernel.to_str().unwrap();
    let arguments = ["run", "--kernel", kernel, "--memory=32M", "--id=alone"];
    let mut child = place
        .command(&arguments)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let listed = || place.json(&["ps"]).as_array().unwrap().len();
    vmgenie_tests::process::wait_until("it is listed", LIMIT, || listed() == 1);
    place.fail(
        &["stop", "alone", "--power-off"],
        "serves no API, by which its power button",
    );
    assert!(child.try_wait().unwrap().is_none());
    place.fail(&["console", "alone"], "serves no API");
    place.json(&["stop", "alone"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A guest that listens to its power button powers itself off.
fn powers_off(guest: Guest) {
    let place = Place::new();
    let kernel = guest.kernel();
    let initrd = guest.initrd().unwrap();
    let arguments = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--initrd",
        initrd.to_str().unwrap(),
        "--cmdline",
        guest.cmdline(),
        "--memory",
        guest.memory(),
        "--id=server",
    ];
    let mut vm = place.start(&arguments, "@@ready\n");
    if guest == Guest::Debian {
        for module in ["evdev", "button"] {
            vm.shell(&format!("insmod /modules/{module}.ko"));
        }
    }
    vm.shell("[ -c /dev/input/event0 ]");
    // As a program does that listens to the button; an event has 24 bytes.
    vm.shell("(head -c 24 /dev/input/event0 > /dev/null; poweroff -f) > /dev/null 2>&1 &");
    // The program has to be there before the button is pressed.
    vm.shell("until ls -l /proc/[0-9]*/fd | grep -q event0; do sleep 0.1; done");
    let stopped = place.json(&["stop", "server", "--power-off=2m"]);
    assert_eq!(stopped["powered_off"], true, "{}", vm.console.text());
    assert_eq!(vm.wait_status(LIMIT).code(), Some(0));
}

#[test]
fn a_small_kernel_powers_off_by_its_button() {
    powers_off(Guest::Small);
}

#[test]
fn the_stock_kernel_powers_off_by_its_button() {
    powers_off(Guest::Debian);
}

#[test]
fn a_name_that_is_none_is_refused() {
    let place = Place::new();
    for id in ["", "a b", "a\u{1b}[2J", &"x".repeat(65)] {
        let output = place
            .command(&["api", "--api-sock", "/nowhere/s", "--id", id])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{id:?}: {output:?}");
    }
}
