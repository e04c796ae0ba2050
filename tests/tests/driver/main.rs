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
mod examples;
mod hooks;
mod modules;
mod reseeding;
mod restores;
mod stress;
mod sysgenctl;
mod waiting;

use std::time::{Duration, Instant};

use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest with both modules.
fn boot(guest: Guest) -> Vm {
    boot_with(Boot::new(guest), "")
}

/// The same, with parameters for the first module.
fn boot_with(boot: Boot, parameters: &str) -> Vm {
    let mut vm = boot.ready();
    vm.shell(&format!("insmod /modules/sysgenid.ko {parameters}"));
    vm.shell("insmod /modules/sysgenid_vmgenid.ko");
    vm
}

/// The counter as the driver has it.
fn generation(vm: &mut Vm) -> u32 {
    let text = vm.shell("cat /sys/kernel/debug/sysgenid/generation");
    let number = text.trim().parse();
    number.unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

/// Starts a program in the guest's background, and waits for its line `ready ...`, which is returned.
fn start(vm: &mut Vm, program: &str) -> String {
    vm.shell(&format!("{program} > /tmp/told 2>&1 &"));
    told(vm, "ready")
}

/// What the program has told once it has told a line that starts with `word`.
fn told(vm: &mut Vm, word: &str) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        let text = vm.shell("cat /tmp/told");
        if text.lines().any(|line| line.starts_with(word)) {
            return text;
        }
        assert!(Instant::now() < deadline, "no {word:?} in {text:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The kernel log has nothing to complain about.
fn no_complaints(vm: &mut Vm) {
    const COMPLAINTS: &str = "BUG|WARNING|Oops|Call Trace|general protection|possible recursive|\
                              circular locking|KASAN|sleeping function|refcount_t";
    let log = vm.shell(&format!("dmesg | grep -E '{COMPLAINTS}' || true"));
    assert_eq!(log, "");
}
