// SPDX-License-Identifier: GPL-2.0

//! Linux's `crng_reseed()` as steps, in all orders in which two reseedings and a snapshot can meet.
//!
//! One reseeding begins at any time, and the other one, that of the fork, in the clone. A key is as
//! old as its extraction: one from before the snapshot is in all clones. What decides is the key that
//! is there when both have ended.

use std::vec::Vec;

/// A step of a reseeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Takes `base_crng.lock`, which may have to wait.
    Lock,
    /// Extracts a key from the input pool; this is one step, because it has a lock of its own.
    Extract,
    /// Makes it the generator's.
    Install,
    Unlock,
    /// Waits until the other task has slept or ended, as `synchronize_rcu_tasks()` does: if it was
    /// preempted in its reseeding, that has ended.
    OtherHasEnded,
}
use Step::*;

/// As Linux 7.3 has it.
const LINUX: [Step; 4] = [Extract, Lock, Install, Unlock];
/// As `resources/kernel-patches` makes it.
const PATCHED: [Step; 4] = [Lock, Extract, Install, Unlock];

/// Whether a key was extracted in the clone, and knows of its ID.
type IsFresh = bool;

#[derive(Clone, Copy, Default)]
struct Task {
    at: usize,
    key: IsFresh,
}

#[derive(Clone, Copy, Default)]
struct Machine {
    is_clone: bool,
    /// Which task has the lock.
    lock: Option<usize>,
    installed: IsFresh,
    tasks: [Task; 2],
}

/// Counts the orders that end with a fresh key, and those that end with an old one. The first task is
/// the one that knows of no fork.
fn outcomes(programs: [&[Step]; 2]) -> (usize, usize) {
    let (mut fresh, mut old) = (0, 0);
    let mut pending = Vec::from([Machine::default()]);
    while let Some(machine) = pending.pop() {
        let next = successors(&machine, programs);
        let ended = (0..2).all(|task| machine.tasks[task].at == programs[task].len());
        assert!(ended || !next.is_empty(), "a deadlock");
        match (ended && machine.is_clone, machine.installed) {
            (true, true) => fresh += 1,
            (true, false) => old += 1,
            (false, _) => pending.extend(next),
        }
    }
    (fresh, old)
}

fn successors(machine: &Machine, programs: [&[Step]; 2]) -> Vec<Machine> {
    let mut next = Vec::new();
    if !machine.is_clone {
        next.push(Machine {
            is_clone: true,
            ..*machine
        });
    }
    for task in 0..2 {
        // The second one is the fork's.
        if task == 0 || machine.is_clone {
            next.extend(step(machine, task, programs));
        }
    }
    next
}

fn step(machine: &Machine, task: usize, programs: [&[Step]; 2]) -> Option<Machine> {
    let mut next = *machine;
    let me = &mut next.tasks[task];
    match programs[task].get(me.at)? {
        Lock if machine.lock.is_some() => return None,
        Lock => next.lock = Some(task),
        Unlock => next.lock = None,
        Extract => me.key = machine.is_clone,
        Install => next.installed = me.key,
        OtherHasEnded => {
            let other = 1 - task;
            let at = machine.tasks[other].at;
            if at != 0 && at != programs[other].len() {
                return None;
            }
        }
    }
    next.tasks[task].at += 1;
    Some(next)
}

#[test]
fn linux_may_end_with_a_key_that_all_clones_have() {
    let (fresh, old) = outcomes([&LINUX, &LINUX]);
    assert!(fresh > 0 && old > 0, "{fresh} fresh, {old} old");
}

#[test]
fn with_the_patch_no_order_ends_with_an_old_key() {
    let (fresh, old) = outcomes([&PATCHED, &PATCHED]);
    assert!(fresh > 0);
    assert_eq!(old, 0);
}

#[test]
fn a_second_reseeding_after_all_who_were_in_one_have_left_it_heals_linux_as_it_is() {
    let twice = [&LINUX[..], &[OtherHasEnded], &LINUX[..]].concat();
    let (fresh, old) = outcomes([&LINUX, &twice]);
    assert!(fresh > 0);
    assert_eq!(old, 0);
    let hasty = [LINUX, LINUX].concat();
    assert!(outcomes([&LINUX, &hasty]).1 > 0, "the wait is what heals");
}
