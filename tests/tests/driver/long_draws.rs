//! Draws that are so long that the machine stands still in the midst of one: what two clones get of the rest.
//!
//! The kernel makes all of a draw from the state that it had when the draw began, and looks for no other. So the rest of a draw that is
//! cut by the fork point is expected to be the same in all clones; not so what a thread draws that was parked.

use std::collections::BTreeSet;

use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::{Guest, Vm};

use crate::fork_point::{STARVED, boot, fork, fork_any, nobody_told, restore};
use crate::{no_complaints, start, told};

const PAGE: usize = 4096;

/// How often a test looks for a draw in the midst of which the machine stood still.
const TRIES: usize = 4;

/// A draw of a megabyte.
#[derive(Debug)]
struct Draw {
    /// The counter before it and after it.
    begun: u32,
    ended: u32,
    /// How much of it was there at the first look after the resume.
    filled: usize,
    /// A digest of each page.
    pages: Vec<String>,
}

impl Draw {
    fn straddles(&self) -> bool {
        self.begun != self.ended
    }
}

/// What a clone draws, the first of it perhaps before the snapshot.
fn draws_of_clone(snapshot: &Snapshot) -> Vec<Draw> {
    let mut clone = restore(snapshot);
    let text = told(&mut clone, "shown");
    nobody_told(&mut clone);
    no_complaints(&mut clone);
    let draws = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["long", begun, ended, _, filled, digests] = words[..] else {
            return None;
        };
        let pages = digests.as_bytes().chunks(16);
        Some(Draw {
            begun: begun.parse().unwrap(),
            ended: ended.parse().unwrap(),
            filled: filled.parse().unwrap(),
            pages: pages
                .map(|page| String::from_utf8(page.to_vec()).unwrap())
                .collect(),
        })
    });
    draws.collect()
}

/// How many bytes of draws that were under way two clones have drawn after the resume, whole pages of them, and how many are equal.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rest {
    bytes: usize,
    equal: usize,
}

/// Draws that were begun after the resume have nothing in common. Of the one that was under way, if one was: its rest.
fn compare(clones: &[Vec<Draw>; 2]) -> Option<Rest> {
    let [one, other] = clones.each_ref().map(|draws| {
        let whole = draws.iter().filter(|draw| !draw.straddles());
        whole.flat_map(|draw| &draw.pages).collect::<BTreeSet<_>>()
    });
    assert!(one.len() >= 256 && other.len() >= 256, "too little drawn");
    assert_eq!(one.intersection(&other).count(), 0, "drawn in both clones");
    let [one, other] = clones.each_ref().map(|draws| {
        let mut straddling = draws.iter().filter(|draw| draw.straddles());
        let first = straddling.next();
        assert_eq!(straddling.count(), 0, "one thread has one draw under way");
        first
    });
    let (one, other) = (one?, other?);
    let from = one.filled.max(other.filled).div_ceil(PAGE);
    let pages = one.pages.iter().zip(&other.pages).skip(from);
    let (same, others): (Vec<_>, Vec<_>) = pages.partition(|(one, other)| one == other);
    Some(Rest {
        bytes: (same.len() + others.len()) * PAGE,
        equal: same.len() * PAGE,
    })
}

fn clones(snapshot: &Snapshot) -> [Vec<Draw>; 2] {
    [(); 2].map(|()| draws_of_clone(snapshot))
}

/// The rest of a draw that was cut by the fork point of the kernel alone is equal in clones, to the last byte.
fn the_rest_is_equal(vm: &mut Vm) {
    start(vm, "sysgenid-test draw --long");
    for _ in 0..TRIES {
        let (snapshot, _) = fork(vm);
        vm.client.pause().unwrap();
        let rest = compare(&clones(&snapshot));
        println!("the rest of a draw of 1 MiB: {rest:?}");
        vm.client.resume().unwrap();
        if let Some(rest) = rest
            && rest.bytes > 0
        {
            assert_eq!(rest.equal, rest.bytes, "the kernel looks again now: say so");
            vm.shell("killall sysgenid-test");
            return;
        }
    }
    panic!("the machine never stood still in the midst of a draw");
}

/// A thread that parks has ended its draw.
fn of_a_parked_thread_nothing_is(vm: &mut Vm) {
    start(vm, "sysgenid-test draw --long --park");
    let (snapshot, _) = fork_any(vm);
    vm.client.pause().unwrap();
    assert_eq!(compare(&clones(&snapshot)), None);
}

fn only_of_a_thread_that_does_not_park(guest: Guest) {
    let mut vm = boot(guest, STARVED, "seed=0");
    the_rest_is_equal(&mut vm);
    of_a_parked_thread_nothing_is(&mut vm);
}

#[test]
fn on_the_small_kernel_the_rest_of_a_long_draw_is_equal_in_clones_unless_its_thread_parks() {
    only_of_a_thread_that_does_not_park(Guest::Small);
}

#[test]
fn on_the_stock_kernel_the_rest_of_a_long_draw_is_equal_in_clones_unless_its_thread_parks() {
    only_of_a_thread_that_does_not_park(Guest::Debian);
}
