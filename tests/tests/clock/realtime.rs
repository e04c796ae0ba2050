//! The guest's time of day after it has lain in a snapshot or stood still.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmgenie_api::wire::{ClockChoice, SnapshotLoad};
use vmgenie_tests::shell::{load_modules, start, told};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm};

use crate::clock_source;

/// How long a snapshot lies there.
const NIGHT: Duration = Duration::from_secs(30);
/// By how many seconds a clock that nobody has set is late after it, at least.
const LATE: f64 = 25.0;
/// How long a guest may take to set its clock.
const SOON: Duration = Duration::from_secs(20);

/// The host's time of day, in seconds.
fn host_time() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

/// What the guest's time of day was, in seconds, when the first watcher was woken.
fn woken(clone: &mut Vm) -> f64 {
    let text = told(clone, "ok notice");
    let line = text.lines().find_map(|line| line.strip_prefix("woken "));
    line.and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

/// By how many seconds the guest's time of day is behind the host's, and how long the question took.
fn behind(vm: &mut Vm) -> (f64, f64) {
    let before = host_time();
    // `adjtimex` of busybox tells microseconds, which its `date` does not.
    let text = vm.shell("adjtimex | grep time.tv");
    let after = host_time();
    let number = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.contains(name));
        let word = line.and_then(|line| line.split_whitespace().last());
        word.and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {text:?}"))
    };
    let guest = number("time.tv_sec") + number("time.tv_usec") / 1e6;
    (f64::midpoint(before, after) - guest, after - before)
}

fn is_right(vm: &mut Vm) -> bool {
    let (seconds, took) = behind(vm);
    eprintln!("behind by {seconds:.3} s, asked for {took:.3} s");
    seconds.abs() < 0.05 + took / 2.0
}

fn becomes_right(vm: &mut Vm) {
    let deadline = Instant::now() + SOON;
    while !is_right(vm) {
        assert!(Instant::now() < deadline, "the guest's clock stays wrong");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn restore(snapshot: &Snapshot, clock: ClockChoice) -> Vm {
    let mut vm = Vm::empty();
    vm.client
        .load_snapshot(&SnapshotLoad {
            resume_vm: true,
            clock,
            ..SnapshotLoad::of(snapshot.state(), snapshot.memory())
        })
        .expect("the snapshot is restored");
    vm
}

/// A guest with the clock source `source`, in a snapshot; and by how many seconds its time was behind.
fn goes_to_sleep(guest: Guest, source: &str) -> (Snapshot, f64) {
    let cmdline = format!("clocksource={source} tsc=reliable");
    let mut vm = Boot::new(guest).cmdline(&cmdline).ready();
    load_modules(&mut vm, "");
    assert_eq!(clock_source(&mut vm), source);
    // A guest that boots reads the time to the second, and on a busy machine that takes seconds.
    let (seconds, _) = behind(&mut vm);
    start(&mut vm, "sysgenid-test notice");
    (vm.snapshot(), seconds)
}

/// The snapshot is restored after the night: late if nobody sets the clock, else right.
fn wakes_up(snapshot: &Snapshot, before: f64, source: &str) {
    let mut late = restore(snapshot, ClockChoice::Keep);
    let at = host_time() - woken(&mut late);
    assert!(at > before + LATE, "kept: {at}, before: {before}");
    let (seconds, _) = behind(&mut late);
    assert!(seconds > before + LATE, "kept: {seconds}, before: {before}");
    drop(late);

    let before = host_time();
    let mut clone = restore(snapshot, ClockChoice::Step);
    // The clock was set before the first watcher was woken.
    let at = woken(&mut clone);
    let after = host_time();
    eprintln!(
        "{source}: kept {seconds:.3} s late; woken {:.3} s after the request",
        at - before
    );
    assert!(
        (before - 0.05..after + 0.05).contains(&at),
        "{before} {at} {after}"
    );
    assert!(is_right(&mut clone));
    assert_eq!(clock_source(&mut clone), source);
}

#[test]
fn both_kernels_have_the_right_time_by_either_clock_source_after_a_night() {
    let guests = [Guest::Small, Guest::Debian];
    let machines: Vec<_> = guests
        .into_iter()
        .flat_map(|guest| ["kvm-clock", "tsc"].map(|source| (guest, source)))
        .map(|(guest, source)| (goes_to_sleep(guest, source), source))
        .collect();
    std::thread::sleep(NIGHT);
    for ((snapshot, before), source) in &machines {
        wakes_up(snapshot, *before, source);
    }
}

/// A pause does not show in the monotonic clock, and the time of day is set after it.
fn a_pause_does_not_show(guest: Guest, source: &str) {
    let pause = Duration::from_secs(15);
    let cmdline = format!("clocksource={source} tsc=reliable");
    let mut vm = Boot::new(guest).cpus(2).cmdline(&cmdline).ready();
    load_modules(&mut vm, "");
    let stop = "/tmp/enough";
    vm.shell(&format!("guest-load clock 2 1 {stop} > /tmp/over 2>&1 &"));
    vm.client.pause().unwrap();
    std::thread::sleep(pause);
    vm.client.resume().unwrap();
    becomes_right(&mut vm);
    vm.shell(&format!("touch {stop}"));
    vm.shell("n=0; while ! grep reads /tmp/over; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done");
    let over = crate::Seen::in_text(&vm.shell("cat /tmp/over"));
    eprintln!("{over:?}");
    assert_eq!(over.backwards, 0, "{over:?}");
    assert!(
        over.largest_step_ns < pause.as_nanos() as u64 / 2,
        "{over:?}"
    );
    assert_eq!(clock_source(&mut vm), source);
}

#[test]
fn a_pause_does_not_show_by_kvm_clock() {
    a_pause_does_not_show(Guest::Small, "kvm-clock");
}

#[test]
fn a_pause_does_not_show_by_tsc_of_the_stock_kernel() {
    a_pause_does_not_show(Guest::Debian, "tsc");
}
