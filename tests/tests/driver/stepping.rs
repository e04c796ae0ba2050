//! What a clone's CPUs execute before its kernel's generator was reseeded, one instruction after the other.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::guest::is_debug_kernel;
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::{Guest, Vm};

use crate::fork_point::{HOLD, boot, fork};
use crate::{LIMIT, start};

/// What was executed.
#[derive(Debug, PartialEq, Eq)]
struct Steps {
    all: u64,
    /// At CPL 3.
    users: u64,
    /// They ended because the generator was reseeded, and not for their number.
    reseeded: bool,
}

/// Restores `snapshot` as a clone whose CPUs step, `limit` instructions at most. None if it told nothing for as
/// long as `patience`.
fn step(snapshot: &Snapshot, limit: u64, patience: Duration) -> Option<Steps> {
    let file = snapshot.dir().join("steps");
    let wanted = format!("{limit}:{}", file.display());
    let environment = [HOLD, ("VMGENIE_SINGLE_STEP", wanted.as_str())];
    let clone = Vm::restore_in(&environment, snapshot, GenerationChoice::New);
    let steps = told(&file, &clone, Patience::new(patience))?;
    fs::remove_file(file).unwrap();
    Some(steps)
}

fn told(file: &Path, clone: &Vm, mut patience: Patience) -> Option<Steps> {
    loop {
        let line = fs::read_to_string(file).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [all, users, reseeded] = words[..] {
            return Some(Steps {
                all: all.parse().unwrap(),
                users: users.parse().unwrap(),
                reseeded: reseeded.parse().unwrap(),
            });
        }
        if patience.is_over_at(|| clone.console.progress()) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program that computes without pause on each CPU, so that one of its instructions would be next.
fn busy(guest: Guest) -> Vm {
    let mut vm = boot(guest, "", "");
    start(&mut vm, "sysgenid-test spin");
    vm
}

fn no_step_is_the_user_s(guest: Guest) {
    // A kernel that looks at each access to memory takes hours for all of them, one by one.
    let to_the_end = !(guest == Guest::Small && is_debug_kernel());
    let limit = if to_the_end { 20_000_000 } else { 1 << 16 };
    let mut vm = busy(guest);
    let (snapshot, _) = fork(&mut vm);
    drop(vm);
    let steps = step(&snapshot, limit, LIMIT).expect("the steps are told");
    println!("{guest:?}: {steps:?}");
    assert!(steps.users == 0, "{steps:?}");
    assert_eq!(steps.reseeded, to_the_end, "{steps:?}");
    // It was stepped at all.
    assert!(steps.all > 1000, "{steps:?}");
}

#[test]
fn no_instruction_of_the_small_guest_s_programs_comes_before_the_reseeding() {
    no_step_is_the_user_s(Guest::Small);
}

#[test]
fn no_instruction_of_the_stock_guest_s_programs_comes_before_the_reseeding() {
    no_step_is_the_user_s(Guest::Debian);
}

/// The same without the fork point: programs go on where they were.
fn without_the_fork_point_they_are(guest: Guest) {
    /// A snapshot may come when the kernel has something to do for a while, or where a CPU that steps goes no further.
    const SNAPSHOTS: usize = 5;
    /// It takes a second.
    const PATIENCE: Duration = Duration::from_secs(20);
    let mut vm = busy(guest);
    let mut seen = Vec::new();
    for _ in 0..SNAPSHOTS {
        let snapshot = vm.snapshot();
        let steps = step(&snapshot, 1 << 14, PATIENCE);
        println!("{guest:?} without: {steps:?}");
        if steps
            .as_ref()
            .is_some_and(|it| it.users > 0 && !it.reseeded)
        {
            return;
        }
        seen.push(steps);
        vm.client.resume().unwrap();
    }
    panic!("no instruction of a program's: {seen:?}");
}

#[test]
fn without_the_fork_point_the_small_guest_s_programs_come_first() {
    without_the_fork_point_they_are(Guest::Small);
}

#[test]
fn without_the_fork_point_the_stock_guest_s_programs_come_first() {
    without_the_fork_point_they_are(Guest::Debian);
}
