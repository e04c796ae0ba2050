//! A VMM that is killed while it writes a snapshot over another one.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::thread;

use vmgenie_api::wire::GenerationChoice;
use vmgenie_snapshot::fault;
use vmgenie_tests::process::signal;
use vmgenie_tests::tiny::{self, Memory, generation};
use vmgenie_tests::{Snapshot, Vm};

/// How many MiB the machine behind the old snapshot has touched.
const OLD: u64 = 1;
/// And the one behind the new snapshot.
const NEW: u64 = 3;
/// And the one that makes a snapshot after the crash.
const LATER: u64 = 2;

fn files(snapshot: &Snapshot) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(snapshot.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A machine that has touched so many MiB.
fn machine(mib: u64, environment: &[(&str, &str)]) -> Vm {
    tiny::boot_in(&format!("touch={mib}"), environment)
}

fn write(vm: &mut Vm, snapshot: &Snapshot) {
    vm.client.pause().unwrap();
    snapshot.create(&mut vm.client);
}

/// Restores the snapshot and returns how many MiB its machine had touched. The restored machine's own memory is looked at, not
/// the file.
fn restored(snapshot: &Snapshot) -> u64 {
    let mut vm = Vm::restore_as(snapshot, GenerationChoice::Keep);
    let again = vm.snapshot();
    let memory = Memory::of(&again);
    assert_eq!(
        memory.generation_id(),
        generation(&mut vm).raw,
        "state and memory belong together"
    );
    memory.touched_mib()
}

/// Has a machine that stops at `point` write over an old snapshot; returns the place.
fn killed_at(point: &str) -> Snapshot {
    let place = Snapshot::new();
    write(&mut machine(OLD, &[]), &place);
    let mut vm = machine(NEW, &[("VMGENIE_FAULT", &format!("{point}:abort"))]);
    vm.client.pause().unwrap();
    vm.client
        .create_snapshot(&place.request())
        .expect_err("this vmgenie was built without `--features vmgenie/fault-injection`");
    assert_eq!(
        vm.wait_status(tiny::LIMIT).signal(),
        Some(libc::SIGKILL),
        "{point}"
    );
    place
}

/// What a kill at the points from `from` to `to` leaves.
fn kill_at(points: &[&str], left: u64) {
    for point in points {
        let place = killed_at(point);
        assert_eq!(restored(&place), left, "after a kill at {point}");
        write(&mut machine(LATER, &[]), &place);
        assert_eq!(
            files(&place),
            ["memory", "state"],
            "after a kill at {point}"
        );
        assert_eq!(restored(&place), LATER, "after a kill at {point}");
    }
}

fn points() -> (&'static [&'static str], &'static [&'static str]) {
    let committed = fault::POINTS
        .iter()
        .position(|point| *point == fault::COMMITTED);
    fault::POINTS.split_at(committed.expect("a point"))
}

#[test]
fn a_kill_before_the_commit_leaves_the_old_snapshot_whole() {
    let (before, _) = points();
    assert!(before.len() >= 5);
    kill_at(before, OLD);
}

#[test]
fn a_kill_after_the_commit_leaves_the_new_snapshot_whole() {
    let (_, after) = points();
    assert!(after.len() >= 3);
    kill_at(after, NEW);
}

#[test]
fn an_error_at_each_point_leaves_a_running_vmm_and_a_whole_snapshot() {
    let (before, _) = points();
    for point in fault::POINTS {
        let place = Snapshot::new();
        write(&mut machine(OLD, &[]), &place);
        let mut vm = machine(NEW, &[("VMGENIE_FAULT", &format!("{point}:error"))]);
        vm.client.pause().unwrap();
        let error = vm
            .client
            .create_snapshot(&place.request())
            .unwrap_err()
            .to_string();
        assert!(error.contains("injected fault"), "{error}");
        let left = if before.contains(point) { OLD } else { NEW };
        if left == OLD {
            assert_eq!(files(&place), ["memory", "state"], "{point}");
        }
        assert_eq!(restored(&place), left, "{point}");
        vm.client.resume().unwrap();
        assert_eq!(generation(&mut vm).changes, 0);
    }
}

#[test]
fn a_kill_at_any_time_leaves_a_whole_snapshot() {
    let place = Snapshot::new();
    write(&mut machine(OLD, &[]), &place);
    for round in 0..8_u64 {
        let mut vm = machine(NEW, &[]);
        vm.client.pause().unwrap();
        let (pid, request) = (vm.pid(), place.request());
        thread::scope(|scope| {
            scope.spawn(|| vm.client.create_snapshot(&request));
            thread::sleep(std::time::Duration::from_micros(400 * round));
            signal(pid, libc::SIGKILL);
        });
        vm.wait_status(tiny::LIMIT);
        let left = restored(&place);
        assert!(left == OLD || left == NEW, "{left}");
    }
    write(&mut machine(LATER, &[]), &place);
    assert_eq!(files(&place), ["memory", "state"]);
    assert_eq!(restored(&place), LATER);
}

#[test]
fn machines_that_write_to_one_place_at_once_leave_one_whole_snapshot() {
    let place = Snapshot::new();
    let mut machines = [machine(1, &[]), machine(2, &[]), machine(3, &[])];
    let request = place.request();
    thread::scope(|scope| {
        for vm in &mut machines {
            let request = &request;
            scope.spawn(move || {
                vm.client.pause().unwrap();
                for _ in 0..5 {
                    vm.client.create_snapshot(request).unwrap();
                }
            });
        }
        // A reader among the writers always finds a pair that belongs together, once there is one.
        let mut found = 0;
        while found < 5 {
            match vmgenie_snapshot::open_snapshot(&place.state(), &place.memory()) {
                Ok(_) => found += 1,
                Err(error) => assert_eq!(found, 0, "{error}"),
            }
        }
    });
    assert_eq!(files(&place), ["memory", "state"]);
    assert!((1..=3).contains(&restored(&place)));
}
