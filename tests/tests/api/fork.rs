//! Snapshots in which the guest takes part: the tiny guest plays its driver, so that each step can be had, and had a thousand times.

use std::fs;

use serde_json::{Value, json};
use vmgenie_api::wire::{CooperativeCreate, GenerationChoice, SnapshotCreate, SnapshotHow};
use vmgenie_tests::http::{ok, refused_with};
use vmgenie_tests::tiny::{self, LIMIT, generation};
use vmgenie_tests::{Snapshot, Vm};

/// The request for a snapshot in which the guest takes part.
fn request(snapshot: &Snapshot) -> SnapshotCreate {
    SnapshotCreate {
        cooperative: Some(CooperativeCreate::default()),
        ..snapshot.request()
    }
}

fn body(snapshot: &Snapshot, cooperative: &Value) -> String {
    json!({
        "snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory(),
        "cooperative": cooperative,
    })
    .to_string()
}

fn files(snapshot: &Snapshot) -> usize {
    fs::read_dir(snapshot.dir()).unwrap().count()
}

#[test]
fn the_original_goes_on_as_itself_and_a_clone_knows_that_it_is_one() {
    let mut original = tiny::boot("fork=0");
    let before = generation(&mut original);
    let snapshot = Snapshot::new();
    for _ in 0..3 {
        let made = original.client.create_snapshot(&request(&snapshot));
        let made = made.unwrap().cooperation.unwrap();
        assert_eq!(made.how, SnapshotHow::KernelOnly);
        assert!(made.heard_us <= made.quiesce_us && made.why_plain.is_none());
        assert_eq!(original.console.wait_for("o", LIMIT), "");
        assert_eq!(generation(&mut original).raw, before.raw);
        assert_eq!(ok(&mut original.client, "GET /", "")["state"], "Running");
    }
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        assert_eq!(clone.console.wait_for("c", LIMIT), "");
        let now = generation(&mut clone);
        assert_ne!(now.raw, before.raw);
        assert!(now.driver.adapted, "{now:?}");
        // It can be forked itself.
        let made = clone.client.create_snapshot(&request(&Snapshot::new()));
        made.unwrap();
        assert_eq!(clone.console.wait_for("o", LIMIT), "");
    }
    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    kept.console.wait_for("o", LIMIT);
    assert_eq!(generation(&mut kept).raw, before.raw);
}

/// The guest gives up at about the time at which the host stops it. Both say the same of it, each time.
#[test]
fn of_an_abort_and_a_snapshot_at_once_one_comes_first() {
    const ROUNDS: usize = 1000;
    let mut vm = tiny::boot("fork=64");
    let snapshot = Snapshot::new();
    let mut told = String::new();
    for round in 0..ROUNDS {
        let made = vm.client.create_snapshot(&request(&snapshot));
        match &made {
            Ok(_) => told.push('o'),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("not snapshotted in time"), "{round}: {text}");
                told.push('a');
            }
        }
        // Whatever it says instead would be before.
        let before = vm.console.wait_for(&told[round..], LIMIT);
        assert_eq!(before, "", "round {round}");
    }
    let taken = told.matches('o').count();
    println!(
        "{ROUNDS} rounds: {taken} snapshots, {} aborts",
        ROUNDS - taken
    );
    assert!((10..ROUNDS - 10).contains(&taken), "no race: {taken}");
}

#[test]
fn a_guest_that_cannot_take_part_is_refused_with_the_reason_or_snapshotted_without_it() {
    let cases = [
        ("", "no sysgenid driver", 10_000),
        ("fork=0 no", "hooks failed", 10_000),
        ("fork=0 slow", "did not come to stand still in time", 300),
        ("fork=0 deaf", "did not answer", 10_000),
    ];
    for (words, reason, quiesce_ms) in cases {
        let mut vm = tiny::boot(words);
        let snapshot = Snapshot::new();
        let refuse = json!({ "quiesce_ms": quiesce_ms });
        let refuse = body(&snapshot, &refuse);
        refused_with(&mut vm.client, "PUT /snapshot/create", refuse, reason);
        assert_eq!(files(&snapshot), 0, "{words}");
        assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
        let plain = json!({ "quiesce_ms": quiesce_ms, "fallback": "plain" });
        let answer = ok(
            &mut vm.client,
            "PUT /snapshot/create",
            body(&snapshot, &plain),
        );
        assert_eq!(answer["how"], "plain");
        let why = answer["why_plain"].as_str().unwrap();
        assert!(why.contains(reason), "{words}: {why}");
        drop(Vm::restore(&snapshot));
    }
}
