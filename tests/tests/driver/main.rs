//! The guest's driver on real guests: what programs see of a new generation, and when.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod agent;
mod aws_lc;
mod conformance;
mod contracts;
mod cooperative;
mod crng;
mod examples;
mod fork_point;
mod hooks;
mod languages;
mod long_draws;
mod modules;
mod notifiers;
mod readiness;
mod refusals;
mod reseeding;
mod restores;
mod self_fork;
mod stepping;
mod stress;
mod sysgenctl;
mod taking_part;
mod waiting;

use std::time::Duration;

use vmgenie_tests::shell::{generation, load_modules, no_complaints, start, told};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest that has booted, and has both modules.
fn boot(guest: Guest) -> Vm {
    boot_with(Boot::new(guest), "")
}

/// The same, with parameters for the first module.
fn boot_with(boot: Boot, parameters: &str) -> Vm {
    let mut vm = boot.booted();
    load_modules(&mut vm, parameters);
    vm
}
