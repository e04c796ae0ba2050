//! `--gate` of `restore` and `clone`.

use serde_json::Value;
use vmgenie_api::client::Client;
use vmgenie_api::wire::Stage;
use vmgenie_tests::process::{Stray, with_argument};
use vmgenie_tests::{Snapshot, tiny};

use crate::{fail, json, run, stderr, stdout, vmgenie};

/// A snapshot of a guest whose driver is played.
fn snapshot() -> Snapshot {
    let mut vm = tiny::boot("echo ring");
    tiny::echo(&mut vm, "v");
    vm.snapshot()
}

#[test]
fn a_restored_machine_whose_guest_does_not_adapt_in_time_ends_with_a_status_of_its_own() {
    let snapshot = snapshot();
    let dir = snapshot.dir().to_str().unwrap();
    let output = run(["restore", dir, "--gate=timeout=100ms,on-timeout=kill"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let told = stderr(&output);
    for part in ["within 100ms", "it lacks: reseeded, reached"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(stdout(&output), "");
    fail(
        ["restore", dir, "--gate=tap"],
        2,
        "on-timeout=keep|kill|open",
    );
    let kept = ["restore", dir, "--gate", "--generation", "keep"];
    fail(kept, 1, "leave gate out");
}

/// Has the machines listed where no others are.
fn in_place(place: &Snapshot, arguments: &[&str]) -> Value {
    let mut command = vmgenie(arguments);
    command.arg("--json").env("XDG_RUNTIME_DIR", place.dir());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn clones_have_a_gate_and_tell_how_far_they_are() {
    let snapshot = snapshot();
    let place = Snapshot::new();
    let dir = snapshot.dir().to_str().unwrap();
    let to = place.dir().to_str().unwrap();
    let shown = in_place(
        &place,
        &["clone", dir, "-n", "2", "--dir", to, "--gate=link,agents=0"],
    );
    let clones = shown["clones"].as_array().unwrap();
    let mut machines = Vec::new();
    for clone in clones {
        let socket = clone["socket"].as_str().unwrap().to_owned();
        let ready = Client::new(&socket).unwrap().ready().unwrap();
        assert_eq!((ready.ready, ready.stage), (false, Stage::None));
        assert_eq!(ready.gate.map(|gate| gate.open), Some(Stage::None));
        let told = json(["generation", &socket]);
        assert_eq!(told["ready"]["gate"]["open"], "none");
        let told = run(["generation", &socket]);
        assert!(stdout(&told).contains("stage:       none"), "{told:?}");
        machines.push(clone["pid"].as_i64().unwrap());
    }
    let listed = in_place(&place, &["ps"]);
    let listed = listed.as_array().unwrap().iter();
    let of_clones = listed.filter(|machine| machines.contains(&machine["pid"].as_i64().unwrap()));
    assert!(of_clones.clone().count() == 2 && of_clones.clone().all(|m| m["stage"] == "none"));
    for pid in with_argument(to) {
        drop(Stray(pid));
    }
}
