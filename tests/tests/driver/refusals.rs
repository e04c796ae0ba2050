//! Fork points that come to nothing: the machine goes on as it was, and the next one succeeds.

use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_api::wire::{CooperativeCreate, GenerationChoice, SnapshotCreate};
use vmgenie_tests::process::wait_until;
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::{Guest, Vm};

use crate::fork_point::{boot, fork, kernel, restore};
use crate::{LIMIT, generation, no_complaints, start};

/// Time enough, and too little.
const ENOUGH: u64 = 60_000;
const SHORT: u64 = 1000;

fn load(vm: &mut Vm, guest: Guest, faults: &str) {
    let kernel = kernel(guest);
    vm.shell(&format!("insmod /tests/{kernel}/fork_faults.ko {faults}"));
}

fn unload(vm: &mut Vm) {
    vm.shell("rmmod fork_faults");
}

fn request(snapshot: &Snapshot, quiesce_ms: u64) -> SnapshotCreate {
    SnapshotCreate {
        cooperative: Some(CooperativeCreate {
            quiesce_ms,
            ..CooperativeCreate::default()
        }),
        ..snapshot.request()
    }
}

/// Asks for a snapshot that comes to nothing: the host says why, the driver says it in the kernel's log, and nothing is left of it.
fn comes_to_nothing(vm: &mut Vm, request: &SnapshotCreate, why: &str) {
    let mut patience = Patience::new(LIMIT);
    loop {
        let error = vm.client.create_snapshot(request).unwrap_err().to_string();
        if error.contains(why) {
            break;
        }
        // On a busy host the driver may not be heard in time, which is a refusal as well.
        let unheard = error.contains("its driver did not answer");
        assert!(unheard && !patience.is_over(), "{error}");
    }
    assert!(!request.snapshot_path.exists() && !request.mem_file_path.exists());
}

/// The driver's word for it is in the log `times` times.
fn driver_said(vm: &mut Vm, word: &str, times: usize) {
    let mut patience = Patience::new(LIMIT);
    loop {
        let log = vm.shell("dmesg | grep 'no fork point' || true");
        let said = format!("no fork point: {word}");
        if log.lines().filter(|line| line.ends_with(&said)).count() == times {
            return;
        }
        assert!(!patience.is_over(), "not {times} times {word} in {log}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// It is the machine that it was, and nobody in it was told of anything.
fn nothing_has_happened(vm: &mut Vm, id: &str) {
    assert_eq!(vm.client.generation().unwrap().id, id);
    let counter = generation(vm);
    assert_eq!(vm.shell("cat /tmp/told").trim(), format!("ready {counter}"));
    no_complaints(vm);
}

/// The driver refuses: before the machine stands still, with a reason.
fn the_driver_refuses(vm: &mut Vm, guest: Guest, id: &str) {
    for (fails, why, word) in [
        ("ready", "random number generator is not ready", "NotSeeded"),
        ("reseed", "does not let its random number", "NotReseeded"),
        ("stop", "its log says why", "NotStopped"),
    ] {
        load(vm, guest, &format!("fails={fails}"));
        let snapshot = Snapshot::new();
        comes_to_nothing(vm, &request(&snapshot, ENOUGH), why);
        driver_said(vm, word, 1);
        unload(vm);
        nothing_has_happened(vm, id);
    }
}

/// The host's time is over before the machine stands still. When it does, it is told at once that nobody waits.
fn the_host_gives_up_first(vm: &mut Vm, guest: Guest, id: &str) {
    load(vm, guest, "hold=1");
    let snapshot = Snapshot::new();
    let why = "did not come to stand still in time";
    comes_to_nothing(vm, &request(&snapshot, SHORT), why);
    vm.shell("echo 0 > /sys/module/fork_faults/parameters/hold");
    driver_said(vm, "Cancelled", 1);
    unload(vm);
    nothing_has_happened(vm, id);
}

/// The machine stands, and the snapshot of it cannot be written.
fn the_snapshot_fails(vm: &mut Vm, id: &str) {
    let snapshot = Snapshot::new();
    let nowhere = SnapshotCreate {
        snapshot_path: snapshot.dir().join("nowhere/state"),
        mem_file_path: snapshot.dir().join("nowhere/memory"),
        ..request(&snapshot, ENOUGH)
    };
    comes_to_nothing(vm, &nowhere, "nowhere");
    driver_said(vm, "Cancelled", 2);
    nothing_has_happened(vm, id);
}

/// The next one succeeds. The machine gives up when the host has taken its snapshot already: it is told who it is nevertheless, and so is its clone.
fn the_guest_gives_up_too_late(vm: &mut Vm, guest: Guest, id: &str) {
    load(vm, guest, "late=1");
    let (snapshot, _) = fork(vm);
    unload(vm);
    nothing_has_happened(vm, id);
    let counter = generation(vm);
    let mut clone = restore(&snapshot);
    let told = || generation(&mut clone) == counter + 2;
    wait_until("the clone's counter has moved", LIMIT, told);
    no_complaints(&mut clone);
    drop(clone);
    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    nothing_has_happened(&mut kept, id);
}

fn whatever_goes_amiss(guest: Guest) {
    let mut vm = boot(guest, "", "");
    start(&mut vm, "sysgenid-test notice");
    let id = vm.client.generation().unwrap().id;
    the_driver_refuses(&mut vm, guest, &id);
    the_host_gives_up_first(&mut vm, guest, &id);
    the_snapshot_fails(&mut vm, &id);
    the_guest_gives_up_too_late(&mut vm, guest, &id);
}

#[test]
fn a_fork_point_of_the_small_kernel_that_fails_changes_nothing_and_the_next_one_succeeds() {
    whatever_goes_amiss(Guest::Small);
}

#[test]
fn a_fork_point_of_the_stock_kernel_that_fails_changes_nothing_and_the_next_one_succeeds() {
    whatever_goes_amiss(Guest::Debian);
}
