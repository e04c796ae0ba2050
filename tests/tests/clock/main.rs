//! The guest's time: on all vCPUs alike, and never backwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod realtime;
mod vcpus;

use vmgenie_tests::Vm;

/// What `guest-load clock` has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    reads: u64,
    backwards: u64,
    worst_ns: u64,
    largest_step_ns: u64,
}

impl Seen {
    /// What a line of its output says.
    fn in_text(text: &str) -> Self {
        let line = text.lines().find(|line| line.starts_with("reads "));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        let number = |name| {
            let at = words.iter().position(|word| *word == name);
            let number = at.and_then(|at| words.get(at + 1)?.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {text:?}"))
        };
        Self {
            reads: number("reads"),
            backwards: number("backwards"),
            worst_ns: number("worst_ns"),
            largest_step_ns: number("largest_step_ns"),
        }
    }

    /// Reads the clock of a guest on all of its processors for a second.
    fn of(vm: &mut Vm, cpus: u8) -> Self {
        Self::in_text(&vm.shell(&format!("guest-load clock {cpus} 1")))
    }
}

/// The guest's source of time.
fn clock_source(vm: &mut Vm) -> String {
    vm.shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
        .trim()
        .to_owned()
}
