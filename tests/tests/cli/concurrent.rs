//! Commands that meet each other, or are killed in the middle.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use vmgenie_tests::process::signal;
use vmgenie_tests::vm::Vm;
use vmgenie_tests::{Snapshot, tiny};

use crate::{json, vmgenie};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program so many times at once.
fn at_once<A: AsRef<OsStr>>(arguments: &[Vec<A>]) -> Vec<Output> {
    let start = |arguments: &Vec<A>| {
        let mut command = vmgenie(arguments);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<_> = arguments.iter().map(start).collect();
    let end = |child: std::process::Child| child.wait_with_output().unwrap();
    children.into_iter().map(end).collect()
}

#[test]
fn three_snapshots_of_one_machine_at_once_all_succeed() {
    let vm = tiny::boot("touch=1");
    let place = Snapshot::new();
    let socket = text(vm.client.socket()).to_owned();
    for round in 0..5 {
        // Into one directory as well.
        let dirs: Vec<_> = (0..3)
            .map(|number| place.dir().join(format!("{round}-{}", number / 2)))
            .collect();
        let arguments = |dir: &std::path::PathBuf| {
            let dir = text(dir).to_owned();
            ["snapshot", "--api-sock", &socket, &dir]
                .map(str::to_owned)
                .to_vec()
        };
        let commands: Vec<_> = dirs.iter().map(arguments).collect();
        for output in at_once(&commands) {
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(json(["info", &socket])["state"], "Running");
    }
}

#[test]
fn a_snapshot_whose_client_is_killed_leaves_the_machine_running() {
    let vm = tiny::boot("touch=1");
    let place = Snapshot::new();
    let socket = text(vm.client.socket()).to_owned();
    for (kind, count) in [(libc::SIGKILL, 30), (libc::SIGINT, 15)] {
        for delay in 0..count {
            let dir = place.dir().join(format!("{kind}-{delay}"));
            let mut command = vmgenie(["snapshot", "--api-sock", &socket, text(&dir)]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            thread::sleep(Duration::from_micros(700 * delay));
            signal(child.id(), kind);
            child.wait().unwrap();
            // It waits its turn behind what the VMM may be doing.
            assert_eq!(
                json(["info", &socket])["state"],
                "Running",
                "{kind} {delay}"
            );
        }
    }
}

#[test]
fn a_paused_machine_stays_paused_and_one_that_runs_is_refused_unless_it_may_be_paused() {
    let mut vm: Vm = tiny::boot("");
    let place = Snapshot::new();
    let mut request = place.request();
    let told = vm.client.create_snapshot(&request).unwrap_err().to_string();
    assert!(told.contains("pause_vm"), "{told}");
    request.pause_vm = true;
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Running");
    // Also when it fails.
    let mut nowhere = request.clone();
    nowhere.mem_file_path = place.dir().join("nowhere/memory");
    vm.client.create_snapshot(&nowhere).unwrap_err();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Running");
    vm.client.pause().unwrap();
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Paused");
    request.resume_vm = true;
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Running");
}
