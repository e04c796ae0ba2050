//! The fork point of a machine without an agent: all CPUs stand still in the kernel while the snapshot is taken.
//!
//! In the clones notifications are held back, so that nothing but the fork point can have told of the new generation. Each test that
//! shows that something does not happen is beside one that takes a part away, and sees it happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_api::wire::{
    CooperativeCreate, CooperativeCreated, GenerationChoice, Missing, SnapshotCreate, SnapshotHow,
};
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot_with, generation, no_complaints, start, told};

/// Longer than any test.
pub(crate) const HOLD: (&str, &str) = ("VMGENIE_HOLD_EVENTS", "6000000");
const CPUS: u8 = 2;
/// A guest without random numbers of its CPU's; those of the host are for others to show.
pub(crate) const STARVED: &str = "clearcpuid=rdrand,rdseed";

/// The kernel's name where its modules for tests are.
pub(crate) fn kernel(guest: Guest) -> &'static str {
    match guest {
        Guest::Small => "small",
        Guest::Debian => "debian",
        other => panic!("{other:?} has no modules for tests"),
    }
}

/// A guest with both modules, in which the driver's fork point has `faults`.
pub(crate) fn boot(guest: Guest, cmdline: &str, faults: &str) -> Vm {
    let mut vm = boot_with(Boot::new(guest).cpus(CPUS).cmdline(cmdline).extras(), "");
    // Only a generator that has been seeded can be reseeded.
    vm.shell("dd if=/dev/random of=/dev/null bs=1 count=1 2> /dev/null");
    if !faults.is_empty() {
        let kernel = kernel(guest);
        vm.shell(&format!("insmod /tests/{kernel}/fork_faults.ko {faults}"));
    }
    vm
}

/// Takes a snapshot at the fork point of a machine without an agent; it goes on.
pub(crate) fn fork(vm: &mut Vm) -> (Snapshot, CooperativeCreated) {
    let (snapshot, cooperation) = fork_any(vm);
    assert_eq!(cooperation.how, SnapshotHow::KernelOnly);
    (snapshot, cooperation)
}

pub(crate) fn fork_any(vm: &mut Vm) -> (Snapshot, CooperativeCreated) {
    let snapshot = Snapshot::new();
    let created = vm.client.create_snapshot(&SnapshotCreate {
        cooperative: Some(CooperativeCreate {
            quiesce_ms: 60_000,
            ..CooperativeCreate::default()
        }),
        ..snapshot.request()
    });
    let created = created.unwrap_or_else(|error| {
        panic!("{error}: {}", vm.shell("dmesg | grep sysgenid"));
    });
    let cooperation = created.cooperation.expect("an answer about the guest");
    (snapshot, cooperation)
}

pub(crate) fn restore(snapshot: &Snapshot) -> Vm {
    Vm::restore_in(&[HOLD], snapshot, GenerationChoice::New)
}

/// No interrupt has told of the generation.
pub(crate) fn nobody_told(clone: &mut Vm) {
    let events = clone.shell("cat /sys/firmware/acpi/interrupts/gpe05");
    assert_eq!(events.split_whitespace().next(), Some("0"), "{events}");
}

/// What the program has told when it has told so many lines that begin with `word`.
fn told_times(vm: &mut Vm, word: &str, times: usize) -> Vec<String> {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = vm.shell("cat /tmp/told");
        let lines = text.lines().filter(|line| line.starts_with(word));
        if lines.count() >= times {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(!patience.is_over(), "too few {word:?} in {text:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The values of the counter that each CPU saw in a clone, after that of the snapshot.
fn seen_in_a_clone(guest: Guest, faults: &str) -> BTreeMap<String, Vec<u32>> {
    let mut vm = boot(guest, "", faults);
    start(&mut vm, "sysgenid-test spin");
    let (snapshot, _) = fork(&mut vm);
    assert!(
        !vm.shell("cat /tmp/told").contains("saw"),
        "in the original"
    );
    assert_eq!(generation(&mut vm), 0);
    no_complaints(&mut vm);
    drop(vm);
    let mut clone = restore(&snapshot);
    let mut patience = Patience::new(LIMIT);
    loop {
        let mut seen = BTreeMap::<String, Vec<u32>>::new();
        for line in clone.shell("cat /tmp/told").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["saw", cpu, value] = words[..] {
                let values = seen.entry(cpu.to_owned()).or_default();
                values.push(value.parse().unwrap());
            }
        }
        let last = |values: &Vec<u32>| values.last() == Some(&2);
        if seen.len() == usize::from(CPUS) && seen.values().all(last) {
            nobody_told(&mut clone);
            assert_eq!(generation(&mut clone), 2);
            no_complaints(&mut clone);
            return seen;
        }
        assert!(!patience.is_over(), "the CPUs have seen {seen:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The hypervisor moves the counter to 1 before any CPU runs, the driver to 2. It takes its time between the two.
fn no_instruction_runs_in_between(guest: Guest) {
    for (cpu, values) in seen_in_a_clone(guest, "milliseconds=50") {
        assert_eq!(values, [2], "on CPU {cpu}");
    }
}

#[test]
fn no_instruction_of_a_clone_runs_before_the_small_kernel_has_dealt_with_it() {
    no_instruction_runs_in_between(Guest::Small);
}

#[test]
fn no_instruction_of_a_clone_runs_before_the_stock_kernel_has_dealt_with_it() {
    no_instruction_runs_in_between(Guest::Debian);
}

fn without_the_stop_they_run(guest: Guest) {
    let seen = seen_in_a_clone(guest, "stop=0 milliseconds=50");
    assert!(seen.values().any(|values| values[..] == [1, 2]), "{seen:?}");
}

#[test]
fn where_the_cpus_of_the_small_kernel_do_not_stand_still_programs_see_the_host_s_step() {
    without_the_stop_they_run(Guest::Small);
}

#[test]
fn where_the_cpus_of_the_stock_kernel_do_not_stand_still_programs_see_the_host_s_step() {
    without_the_stop_they_run(Guest::Debian);
}

/// A draw in a clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Draw {
    /// How, and on which CPU.
    thread: String,
    /// It was begun when the machine had gone on already.
    whole: bool,
    bytes: String,
}

/// What three clones draw that have nothing but the ID and what the driver does with it.
fn draws_of_clones(guest: Guest, program: &str, faults: &str) -> Vec<Vec<Draw>> {
    let mut vm = boot(guest, STARVED, &format!("seed=0 {faults}"));
    start(&mut vm, program);
    let (snapshot, _) = fork_any(&mut vm);
    drop(vm);
    let clones = [(); 3].map(|()| {
        let mut clone = restore(&snapshot);
        let lines = told_times(&mut clone, "shown", 2 * usize::from(CPUS));
        nobody_told(&mut clone);
        let draws = lines.iter().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["drawn", how, cpu, before, after, bytes] = words[..] else {
                return None;
            };
            Some(Draw {
                thread: format!("{how} {cpu}"),
                whole: before == after,
                bytes: bytes.to_owned(),
            })
        });
        draws.collect::<Vec<Draw>>()
    });
    clones.into()
}

/// How many draws came in more than one of the clones.
fn equal(clones: &[Vec<Draw>], whole: bool) -> usize {
    let sets = clones.iter().map(|draws| {
        let of_kind = draws.iter().filter(|draw| draw.whole == whole);
        of_kind
            .map(|draw| draw.bytes.as_str())
            .collect::<BTreeSet<&str>>()
    });
    let mut times = BTreeMap::<&str, usize>::new();
    for bytes in sets.flatten() {
        *times.entry(bytes).or_default() += 1;
    }
    times.values().filter(|times| **times > 1).count()
}

fn each_draw_that_begins_after_the_resume_differs(guest: Guest) {
    let clones = draws_of_clones(guest, "sysgenid-test draw", "");
    let straddling: Vec<usize> = clones
        .iter()
        .map(|draws| draws.iter().filter(|draw| !draw.whole).count())
        .collect();
    println!(
        "straddling {straddling:?}, equal of those {}",
        equal(&clones, false)
    );
    for draws in &clones {
        // Each thread has one draw under way at most.
        let mut threads = BTreeSet::new();
        for draw in draws.iter().filter(|draw| !draw.whole) {
            assert!(threads.insert(&draw.thread), "{draw:?} straddles as well");
        }
    }
    assert_eq!(equal(&clones, true), 0, "{clones:#?}");
}

#[test]
fn on_the_small_kernel_each_draw_that_begins_after_the_resume_differs() {
    each_draw_that_begins_after_the_resume_differs(Guest::Small);
}

#[test]
fn on_the_stock_kernel_each_draw_that_begins_after_the_resume_differs() {
    each_draw_that_begins_after_the_resume_differs(Guest::Debian);
}

/// A parked thread has nothing in hand: there is no draw that began before and ended after.
fn parked_threads_draw_nothing_twice(guest: Guest) {
    let clones = draws_of_clones(guest, "sysgenid-test draw --park", "");
    let all: Vec<&Draw> = clones.iter().flatten().collect();
    assert!(all.iter().all(|draw| draw.whole), "{all:#?}");
    assert_eq!(equal(&clones, true), 0, "{clones:#?}");
}

#[test]
fn on_the_small_kernel_parked_threads_draw_nothing_that_another_clone_draws() {
    parked_threads_draw_nothing_twice(Guest::Small);
}

#[test]
fn on_the_stock_kernel_parked_threads_draw_nothing_that_another_clone_draws() {
    parked_threads_draw_nothing_twice(Guest::Debian);
}

/// What shows that the tests above would see equal draws.
fn without_the_reseeding_they_are_equal(guest: Guest) {
    let clones = draws_of_clones(guest, "sysgenid-test draw", "reseed=0");
    let drawn: usize = clones.iter().map(Vec::len).sum();
    // The kernel may reseed by itself before all have been drawn.
    let equal = equal(&clones, true);
    assert!(equal >= drawn / 6, "{equal} equal of {drawn}");
}

#[test]
fn on_the_small_kernel_draws_are_equal_where_it_is_not_reseeded() {
    without_the_reseeding_they_are_equal(Guest::Small);
}

#[test]
fn on_the_stock_kernel_draws_are_equal_where_it_is_not_reseeded() {
    without_the_reseeding_they_are_equal(Guest::Debian);
}

/// Once, and not thrice: the notification comes some time after the fork point, and moves nothing. The original sees nothing at all.
fn all_is_told_once(guest: Guest) {
    let mut vm = boot(guest, "", "");
    start(&mut vm, "sysgenid-test notice");
    let before = vm.client.generation().unwrap();
    let counter = generation(&mut vm);
    let (snapshot, _) = fork(&mut vm);
    let (again, _) = fork(&mut vm);
    let after = vm.client.generation().unwrap();
    assert_eq!((&before.id, before.counter), (&after.id, after.counter));
    assert_eq!(generation(&mut vm), counter, "the original is no clone");
    let text = vm.shell("cat /tmp/told");
    assert_eq!(text.trim(), format!("ready {counter}"));
    no_complaints(&mut vm);
    drop(vm);
    // As the same machine it goes on as the original.
    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(generation(&mut kept), counter);
    no_complaints(&mut kept);
    drop(kept);
    for snapshot in [snapshot, again] {
        let mut clone = Vm::restore_in(
            &[("VMGENIE_HOLD_EVENTS", "3000")],
            &snapshot,
            GenerationChoice::New,
        );
        let text = told(&mut clone, "ok notice");
        let new = counter + 2;
        assert_eq!(generation(&mut clone), new);
        for line in [
            format!("read Ok({new})"),
            "wait Err(4)".to_owned(),
            // No program ever sees the host's step.
            format!("mapped {new}"),
            format!("uevent Some(\"SYSGENID={new}\")"),
        ] {
            let times = text.lines().filter(|said| **said == line).count();
            assert_eq!(times, 1, "{line:?} in {text}");
        }
        let mut patience = Patience::new(LIMIT);
        while clone
            .shell("cat /sys/firmware/acpi/interrupts/gpe05")
            .trim_start()
            .starts_with("0 ")
        {
            assert!(!patience.is_over(), "the notification never came");
            std::thread::sleep(Duration::from_millis(200));
        }
        // The chain has been called as well; the program acknowledges nothing.
        clone.wait_missing(&[Missing::Watchers]);
        assert_eq!(generation(&mut clone), new, "once, and not thrice");
        no_complaints(&mut clone);
    }
}

#[test]
fn a_clone_of_the_small_kernel_is_told_once_and_its_original_not_at_all() {
    all_is_told_once(Guest::Small);
}

#[test]
fn a_clone_of_the_stock_kernel_is_told_once_and_its_original_not_at_all() {
    all_is_told_once(Guest::Debian);
}
