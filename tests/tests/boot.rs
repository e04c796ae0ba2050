//! Booting real Linux guests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::process::{Command, Stdio};

use vmgenie_tests::guest::vmgenie;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

/// Lines of the kernel log that tell of broken firmware tables.
const COMPLAINTS: &str = "dmesg | grep -i -E 'acpi.*(error|exception|warning)|BIOS bug|firmware \
                          (bug|warn)|FADT|BUG:|WARNING:|Oops' || true";

fn boots(guest: Guest, cpus: u8) {
    let mut vm = Boot::new(guest).cpus(cpus).ready();
    assert_eq!(vm.shell("nproc").trim(), cpus.to_string());
    assert_eq!(vm.shell(COMPLAINTS), "");
    check_topology(&mut vm, cpus);
    check_clock_and_devices(&mut vm);
}

/// One socket, one thread a core, APIC ids from 0 on.
fn check_topology(vm: &mut Vm, cpus: u8) {
    let ids = vm.shell("grep '^apicid' /proc/cpuinfo | sed 's/.*: //' | tr '\\n' ' '");
    let expected: Vec<String> = (0..cpus).map(|id| id.to_string()).collect();
    assert_eq!(ids.trim(), expected.join(" "));
    let table = vm.shell("lscpu");
    let field = |name: &str| {
        let line = table
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{table}"))
            .rsplit(' ')
            .next()
            .unwrap()
    };
    assert_eq!(field("CPU(s):"), cpus.to_string());
    assert_eq!(field("Thread(s) per core:"), "1");
    assert_eq!(field("Core(s) per socket:"), cpus.to_string());
    assert_eq!(field("Socket(s):"), "1");
    assert_eq!(field("Hypervisor vendor:"), "KVM");
}

fn check_clock_and_devices(vm: &mut Vm) {
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let clock = vm.shell(&format!("cat {clock}"));
    assert!(matches!(clock.trim(), "kvm-clock" | "tsc"), "{clock}");
    assert!(
        vm.shell("cat /sys/bus/acpi/devices/VMGENCTR:00/path")
            .contains("VGEN")
    );
    // No driver has been loaded for these two, and nobody complains (see above).
    for (device, name) in [("VMGE0001:00", "SGEN"), ("AMZNC10C:00", "VCLK")] {
        let path = vm.shell(&format!("cat /sys/bus/acpi/devices/{device}/path"));
        assert!(path.contains(name), "{path}");
    }
    assert!(vm.shell("cat /proc/interrupts").lines().any(|line| {
        line.trim_start().starts_with("9:") && line.contains("fasteoi") && line.contains("acpi")
    }));
    assert!(vm.shell("ls /sys/bus/pnp/devices").contains("00:"));
}

#[test]
fn the_stock_kernel_boots_with_1_vcpu() {
    boots(Guest::Debian, 1);
}

#[test]
fn the_stock_kernel_boots_with_4_vcpus() {
    boots(Guest::Debian, 4);
}

#[test]
fn the_small_kernel_boots_with_1_vcpu() {
    boots(Guest::Small, 1);
}

#[test]
fn the_small_kernel_boots_with_4_vcpus() {
    boots(Guest::Small, 4);
}

#[test]
fn the_small_kernel_boots_as_a_bzimage() {
    boots(Guest::SmallBzImage, 2);
}

#[test]
fn a_guest_has_the_memory_that_was_asked_for_on_both_sides_of_the_gap() {
    let mut vm = Boot::new(Guest::Small).memory("3300M").ready();
    let total: u64 = vm
        .shell("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .trim()
        .parse()
        .unwrap();
    assert!((3100 << 10..3300 << 10).contains(&total), "{total} kB");
    let map = vm.shell("dmesg | grep e820");
    assert!(map.contains("0x0000000100000000"), "{map}");
}

#[test]
fn a_kernel_that_does_not_fit_the_smallest_memory_is_refused_with_the_reason() {
    let output = Command::new(vmgenie())
        .args(["run", "--memory=32M", "--kernel"])
        .arg(Guest::Debian.kernel())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("into 32 MiB of guest memory"), "{text}");
}
