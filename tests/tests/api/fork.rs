//! Snapshots in which the guest takes part: the tiny guest plays its driver, so that each step can be had, and had a thousand times.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use vm_agent::patience::Patience;
use vmgenie_api::wire::{CooperativeCreate, GenerationChoice, SnapshotCreate, SnapshotHow};
use vmgenie_tests::http::{ok, refused, refused_with};
use vmgenie_tests::room::is_emulated;
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

/// How a round has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Taken,
    Aborted,
    /// The guest crashed or fell silent: the emulated processor loses one now and then.
    Lost,
}

/// One snapshot. The guest says the same of it as the host.
fn race(vm: &mut Vm, snapshot: &Snapshot) -> Round {
    let made = vm.client.create_snapshot(&request(snapshot));
    let (round, word) = match made.map_err(|error| error.to_string()) {
        Ok(_) => (Round::Taken, "o"),
        Err(text) if text.contains("not snapshotted in time") => (Round::Aborted, "a"),
        Err(text) if text.contains("did not answer") => {
            // One that is there answers the next time, and may not have missed this one.
            let again = vm.client.create_snapshot(&request(snapshot));
            let again = again.map_err(|error| error.to_string());
            assert!(again.is_err_and(|text| text.contains("did not answer")));
            return Round::Lost;
        }
        Err(text) if text.contains("shutting down") => return Round::Lost,
        Err(text) => panic!("{text}"),
    };
    // Whatever it says instead would be before.
    assert_eq!(vm.console.wait_for(word, LIMIT), "", "{round:?}");
    round
}

/// The guest gives up at about the time at which the host stops it. Both say the same of it, each time.
#[test]
fn of_an_abort_and_a_snapshot_at_once_one_comes_first() {
    const ROUNDS: usize = 1000;
    /// More than are lost of a thousand rounds; on a real KVM none is.
    const LOST: usize = 10;
    let snapshot = Snapshot::new();
    let mut vm = tiny::boot("fork=64");
    let (mut taken, mut aborted, mut lost) = (0, 0, 0);
    while taken + aborted < ROUNDS {
        match race(&mut vm, &snapshot) {
            Round::Taken => taken += 1,
            Round::Aborted => aborted += 1,
            Round::Lost => {
                lost += 1;
                assert!(is_emulated() && lost < LOST, "{lost} guests are lost");
                vm = tiny::boot("fork=64");
            }
        }
    }
    println!("{ROUNDS} rounds: {taken} snapshots, {aborted} aborts, {lost} guests lost");
    assert!((10..ROUNDS - 10).contains(&taken), "no race: {taken}");
}

#[test]
fn a_guest_that_cannot_take_part_is_refused_with_the_reason_or_snapshotted_without_it() {
    let cases = [
        ("", "no sysgenid driver", 10_000),
        ("fork=0 no", "hooks failed", 10_000),
        ("fork=0 slow", "did not come to stand still in time", 300),
        ("fork=0 deaf", "did not answer", 10_000),
        ("fork=0 deaf", "did not answer", 300),
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

/// A request that waits for the guest, and the connection that it came over.
fn asked(vm: &mut Vm, snapshot: &Snapshot, quiesce_ms: u32) -> UnixStream {
    let long = body(snapshot, &json!({ "quiesce_ms": quiesce_ms }));
    let length = long.len();
    let head =
        format!("PUT /snapshot/create HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let mut patience = Patience::new(LIMIT);
    loop {
        let mut connection = UnixStream::connect(vm.socket()).unwrap();
        connection
            .write_all((head.clone() + &long).as_bytes())
            .unwrap();
        // Of two that come at once either may be the first.
        if ask(vm).contains("waits for the guest already") {
            return connection;
        }
        assert!(!patience.is_over(), "it is never asked");
    }
}

/// Asks for a short time, and is refused: why.
fn ask(vm: &mut Vm) -> String {
    let short = body(&Snapshot::new(), &json!({ "quiesce_ms": 200 }));
    refused(&mut vm.client, "PUT /snapshot/create", short)
}

#[test]
fn a_request_whose_client_has_gone_is_called_off() {
    let mut vm = tiny::boot("fork=0 slow");
    let snapshot = Snapshot::new();
    let connection = asked(&mut vm, &snapshot, 600_000);
    drop(connection);
    let mut patience = Patience::new(LIMIT);
    while !ask(&mut vm).contains("did not come to stand still in time") {
        assert!(!patience.is_over(), "it is never called off");
    }
    assert_eq!(files(&snapshot), 0);
}

#[test]
fn that_it_was_paused_meanwhile_is_told_as_the_reason() {
    let mut vm = tiny::boot("fork=0 slow");
    let snapshot = Snapshot::new();
    let mut connection = asked(&mut vm, &snapshot, 3000);
    vm.client.pause().unwrap();
    let mut answer = [0; 1024];
    let length = connection.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.contains("was paused meanwhile"), "{answer}");
    assert_eq!(files(&snapshot), 0);
    vm.client.resume().unwrap();
}
