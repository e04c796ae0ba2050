//! Which requests begin a new generation, and which do not.

use std::collections::HashSet;

use serde_json::json;
use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::Vm;
use vmgenie_tests::http::{done, ok};
use vmgenie_tests::tiny::{self, Memory, generation};

#[test]
fn pausing_resuming_and_snapshotting_keep_the_generation() {
    let mut vm = tiny::boot("");
    let first = generation(&mut vm);
    assert_eq!(first.changes, 0);
    for _ in 0..3 {
        vm.client.pause().unwrap();
        assert_eq!(generation(&mut vm), first);
        vm.client.resume().unwrap();
        assert_eq!(generation(&mut vm), first);
    }
    let snapshot = vm.snapshot();
    assert_eq!(generation(&mut vm), first);
    assert_eq!(Memory::of(&snapshot).generation_id(), first.raw);
    vm.client.resume().unwrap();
    assert_eq!(generation(&mut vm), first);
}

#[test]
fn a_put_begins_a_new_generation_on_a_running_and_on_a_paused_machine() {
    let mut vm = tiny::boot("");
    let mut seen = vec![generation(&mut vm)];
    for (state, shown) in [
        ("Resumed", "Running"),
        ("Paused", "Paused"),
        ("Resumed", "Running"),
    ] {
        done(
            &mut vm.client,
            "PATCH /vm",
            format!(r#"{{"state": "{state}"}}"#),
        );
        for body in ["", "{}"] {
            let told = ok(&mut vm.client, "PUT /generation", body);
            let now = generation(&mut vm);
            assert_eq!(told, json!(now), "the answer is the new generation");
            let before = seen.last().unwrap();
            assert_eq!(now.changes, before.changes + 1);
            assert!(now.since_unix_ms >= before.since_unix_ms);
            seen.push(now);
            assert_eq!(ok(&mut vm.client, "GET /", "")["state"], shown);
        }
    }
    let ids: HashSet<_> = seen.iter().map(|generation| &generation.raw).collect();
    assert_eq!(ids.len(), seen.len(), "{seen:?}");
    let last = generation(&mut vm);
    assert_eq!(
        Memory::of(&vm.snapshot()).generation_id(),
        last.raw,
        "the guest's memory holds it"
    );
}

#[test]
fn a_restore_begins_a_new_generation_unless_the_caller_says_keep() {
    let mut original = tiny::boot("");
    original.client.new_generation().unwrap();
    let snapshot = original.snapshot();
    let saved = generation(&mut original);

    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(generation(&mut kept), saved);
    let mut new = Vm::restore_as(&snapshot, GenerationChoice::New);
    let restored = generation(&mut new);
    assert_ne!(restored.raw, saved.raw);
    assert_eq!(restored.changes, saved.changes + 1);
    assert_eq!(generation(&mut original), saved, "the original's stays");

    // And so it goes on in snapshots of clones.
    let again = new.snapshot();
    assert_eq!(Memory::of(&again).generation_id(), restored.raw);
    assert_eq!(Memory::of(&kept.snapshot()).generation_id(), saved.raw);
    let mut grandchild = Vm::restore(&again);
    assert_eq!(generation(&mut grandchild).changes, saved.changes + 2);
}

#[test]
fn twenty_restores_of_one_snapshot_have_twenty_generation_ids() {
    let mut original = tiny::boot("");
    let snapshot = original.snapshot();
    let mut ids = HashSet::from([generation(&mut original).raw]);
    for _ in 0..20 {
        let mut clone = Vm::restore(&snapshot);
        let told = generation(&mut clone);
        assert!(ids.insert(told.raw.clone()), "{} came twice", told.raw);
        assert_eq!(Memory::of(&clone.snapshot()).generation_id(), told.raw);
    }
}
