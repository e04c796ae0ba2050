//! Clones whose guests do not adapt in time.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;
use vmgenie_tests::process::{is_alive, wait_until};
use vmgenie_tests::{Vm, tiny};

use super::LIMIT;
use super::files::runs;
use super::place::{Forked, Place, spawn};
use crate::{stderr, vmgenie};

/// A guest with a driver that has told nothing of its generation yet.
fn with_driver() -> Vm {
    let mut vm = tiny::boot("echo ring");
    tiny::echo(&mut vm, "v");
    vm
}

#[test]
fn clones_whose_gates_were_opened_by_the_time_out_are_late() {
    let vm = with_driver();
    let place = Place::new();
    let more = "-n 2 --fallback plain --json --gate=timeout=100ms,on-timeout=open";
    let output = place.fork(vm.client.socket(), more).output().unwrap();
    let forked = Forked::of(&output, 5);
    let told = stderr(&output);
    for part in [
        "not all clones have adapted in time",
        "anonymous-instance-1: its gate was opened, and its random number generator",
        "anonymous-instance-2: its gate was opened",
        "They go on",
    ] {
        assert!(told.contains(part), "{told}");
    }
    for clone in forked.clones() {
        assert_eq!(
            (&clone["late"], &clone["ended"]),
            (&json!(true), &json!(false))
        );
        assert!(clone["adapted_us"].is_null(), "{clone}");
    }
    assert!(forked.pids().into_iter().all(is_alive));
}

#[test]
fn a_clone_that_was_ended_by_its_gate_takes_no_other_along() {
    let vm = with_driver();
    let place = Place::new();
    let dir = place.at("clones");
    let more = format!(
        "-n 2 --fallback plain --json --gate=timeout=10s,on-timeout=kill --dir {}",
        dir.display()
    );
    let forking = spawn(&mut place.fork(vm.client.socket(), &more));
    // The guest of one adapts.
    let socket = dir.join("clone-1.sock");
    wait_until("clone 1 runs", LIMIT, || runs(&socket));
    let mut console = vmgenie(["console".as_ref(), socket.as_os_str()]);
    let console = console.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut console = console.unwrap();
    console.stdin.as_mut().unwrap().write_all(b"rt").unwrap();
    let output = forking.wait_with_output().unwrap();
    console.kill().unwrap();
    console.wait().unwrap();
    let forked = Forked::of(&output, 5);
    let told = stderr(&output);
    for part in [
        "not all clones have adapted in time: anonymous-instance-2: its gate has ended it: ",
        "within 10s",
        "it lacks: reseeded, reached. The others go on",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let each = |what| forked.clones().iter().map(move |clone| clone[what].clone());
    assert!(each("ready").eq([true, false]) && each("ended").eq([false, true]));
    let alive: Vec<_> = forked.pids().into_iter().map(is_alive).collect();
    assert_eq!(alive, [true, false]);
    assert!(dir.join("clone-2.log").exists());
}

#[test]
fn a_machine_that_does_not_run_is_refused_before_there_is_a_vmm() {
    let mut vm = tiny::boot("");
    vm.client.pause().unwrap();
    let place = Place::new();
    let output = place.fork(vm.client.socket(), "-n 2").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = stderr(&output);
    let resume = format!(
        "is paused, and only a machine that runs can be forked: `vmgenie resume {}`",
        vm.client.socket().display()
    );
    assert!(told.contains(&resume) && !told.contains("PATCH"), "{told}");
    assert!(place.left().is_empty());
}
