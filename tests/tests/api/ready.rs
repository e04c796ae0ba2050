//! GET `/ready`, and what becomes of a machine whose guest does not adapt in time. The tiny guest plays the driver.

use std::time::Duration;

use serde_json::{Value, json};
use vmgenie_api::wire::{Missing, Ready, Stage};
use vmgenie_tests::http::call;
use vmgenie_tests::tiny::{self, LIMIT, echo};
use vmgenie_tests::{Snapshot, Vm, http};

/// A snapshot of a guest with a driver.
fn snapshot() -> Snapshot {
    let mut vm = tiny::boot("echo ring");
    assert_eq!(status(&mut vm), (503, "none".to_owned(), json!(["driver"])));
    echo(&mut vm, "v");
    assert_eq!(status(&mut vm), (200, "service".to_owned(), json!([])));
    vm.snapshot()
}

fn status(vm: &mut Vm) -> (u16, String, Value) {
    let (status, ready) = call(&mut vm.client, "GET /ready", "");
    let stage = ready["stage"].as_str().unwrap().to_owned();
    (status, stage, ready["missing"].clone())
}

fn load(snapshot: &Snapshot, gate: &Value) -> Vm {
    let mut vm = Vm::empty();
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
        "gate": gate,
    });
    http::done(&mut vm.client, "PUT /snapshot/load", body.to_string());
    vm
}

fn gate_of(ready: &Ready) -> (Stage, bool, bool) {
    let gate = ready.gate.as_ref().expect("a gate");
    (gate.open, gate.timed_out, gate.forced)
}

#[test]
fn a_clone_is_ready_when_it_has_adapted_with_and_without_a_gate() {
    let snapshot = snapshot();
    let gates = [Value::Null, json!({ "timeout_ms": 600_000 })];
    for gate in gates {
        let mut clone = load(&snapshot, &gate);
        let missing = json!(["reseeded", "reached"]);
        assert_eq!(status(&mut clone), (503, "none".to_owned(), missing));
        echo(&mut clone, "r");
        assert_eq!(status(&mut clone).0, 503);
        // A watcher is outdated: it knows who it is, and serves nobody yet.
        echo(&mut clone, "wt");
        let ready = clone.until_ready(|ready| ready.stage == Stage::Identity);
        assert_eq!(ready.missing, [Missing::Watchers]);
        echo(&mut clone, "a");
        let ready = clone.until_ready(|ready| ready.ready);
        assert_eq!(status(&mut clone).0, 200);
        let times = [
            ready.reseeded_us,
            ready.identity_us,
            ready.adapted_us,
            ready.service_us,
        ];
        assert!(
            times.iter().all(Option::is_some) && times.is_sorted(),
            "{times:?}"
        );
        // Not in a later generation, until it has adapted to that as well.
        clone.client.new_generation().unwrap();
        assert_eq!(status(&mut clone).0, 503);
        echo(&mut clone, "rt");
        clone.until_ready(|ready| ready.ready);
        let text = clone
            .client
            .request(hyper::Method::GET, "/metrics", "")
            .unwrap();
        let text = String::from_utf8(text.body.to_vec()).unwrap();
        let count = "vmgenie_restore_ready_us_count{id=\"anonymous-instance\"} 1\n";
        assert!(text.contains(count), "{text}");
    }
}

#[test]
fn a_gate_that_is_kept_opens_when_the_guest_has_adapted_after_all() {
    let gate = json!({ "timeout_ms": 100 });
    let mut clone = load(&snapshot(), &gate);
    let ready = clone.until_ready(|ready| gate_of(ready).1);
    assert_eq!(
        (ready.ready, gate_of(&ready)),
        (false, (Stage::None, true, false))
    );
    echo(&mut clone, "rt");
    let ready = clone.until_ready(|ready| ready.ready);
    assert_eq!(gate_of(&ready), (Stage::Service, true, false));
}

#[test]
fn a_gate_is_opened_by_its_time_out_if_it_says_so() {
    let gate = json!({ "timeout_ms": 100, "on_timeout": "open" });
    let mut clone = load(&snapshot(), &gate);
    let ready = clone.until_ready(|ready| ready.ready);
    assert_eq!(gate_of(&ready), (Stage::Service, true, true));
    assert_eq!(ready.missing, [Missing::Reseeded, Missing::Reached]);
    assert!(ready.adapted_us.is_none() && ready.service_us.is_some());
}

#[test]
fn a_machine_ends_with_its_time_out_if_its_gate_says_so() {
    let gate = json!({ "timeout_ms": 100, "on_timeout": "kill" });
    let snapshot = snapshot();
    let mut clone = load(&snapshot, &gate);
    assert_eq!(clone.wait_status(LIMIT).code(), Some(5));
    // One that adapts in time lives on, and so does one that stands still.
    let gate = json!({ "timeout_ms": 30_000, "on_timeout": "kill" });
    let mut clone = load(&snapshot, &gate);
    echo(&mut clone, "rt");
    clone.until_ready(|ready| ready.ready);
    let gate = json!({ "timeout_ms": 5_000, "on_timeout": "kill" });
    let mut clone = load(&snapshot, &gate);
    clone.client.pause().unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(http::ok(&mut clone.client, "GET /", "")["state"], "Paused");
    clone.client.resume().unwrap();
    assert_eq!(clone.wait_status(LIMIT).code(), Some(5));
}

/// Whoever has a reason to lie gains nothing by being early: what was told before the snapshot counts for nothing, and what is told after it
/// opens one's own gate alone.
#[test]
fn a_guest_that_reports_too_early_opens_nobody_elses_gate() {
    let mut vm = tiny::boot("echo ring");
    // It says so as often as it likes before the snapshot.
    echo(&mut vm, "vrtrtrtrt");
    let snapshot = vm.snapshot();
    let gate = json!({ "timeout_ms": 600_000 });
    let mut honest = load(&snapshot, &gate);
    let mut liar = load(&snapshot, &gate);
    echo(&mut liar, "rt");
    liar.until_ready(|ready| ready.ready);
    let ready = honest.client.ready().unwrap();
    assert_eq!((ready.stage, gate_of(&ready).0), (Stage::None, Stage::None));
    // Nor does one that goes while it is being looked at take anybody with it.
    echo(&mut liar, "gvgv");
    assert_eq!(http::ok(&mut liar.client, "GET /", "")["state"], "Running");
    let gate = liar.client.ready().unwrap().gate.unwrap();
    assert_eq!(gate.open, Stage::Service, "it is never shut again");
}
