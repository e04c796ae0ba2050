//! How machines end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::time::Duration;

use vmgenie_tests::Guest;
use vmgenie_tests::vm::{BOOT_LIMIT, Boot};

const END: Duration = Duration::from_secs(60);

#[test]
fn a_power_off_ends_the_process_with_0() {
    let mut vm = Boot::new(Guest::Small).ready();
    vm.console.send("poweroff -f\n");
    let (status, _) = vm.wait(END);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_reboot_restarts_the_machine_in_the_same_generation() {
    let mut vm = Boot::new(Guest::Small)
        .option("--on-reboot=restart")
        .ready();
    vm.client.new_generation().unwrap();
    let before = vm.client.generation().unwrap();
    let boot_id = vm.shell("cat /proc/sys/kernel/random/boot_id");
    vm.console.send("reboot -f\n");
    vm.console.wait_for("@@ready\n", BOOT_LIMIT);
    assert_ne!(vm.shell("cat /proc/sys/kernel/random/boot_id"), boot_id);
    // The ID, how often it changed and since when: all of it.
    assert_eq!(vm.client.generation().unwrap(), before);
}

#[test]
fn a_reboot_ends_the_process_with_0_if_that_was_asked_for() {
    let mut vm = Boot::new(Guest::Small).option("--on-reboot=exit").ready();
    vm.console.send("reboot -f\n");
    let (status, _) = vm.wait(END);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_triple_fault_ends_the_process_with_3() {
    let mut vm = Boot::new(Guest::Small).cmdline("reboot=t").ready();
    vm.console.send("reboot -f\n");
    let (status, _) = vm.wait(END);
    assert_eq!(status.code(), Some(3));
}

#[test]
fn the_stock_kernel_powers_off() {
    let mut vm = Boot::new(Guest::Debian).cpus(2).ready();
    vm.console.send("poweroff -f\n");
    let (status, _) = vm.wait(END);
    assert_eq!(status.code(), Some(0));
}
