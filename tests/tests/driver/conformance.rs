//! The interface, every call and every errno, on both kernels and in both numberings. The guest runs
//! the checks; each of them is a line.

use std::time::Duration;

use vmgenie_tests::Guest;
use vmgenie_tests::guest::is_debug_kernel;
use vmgenie_tests::vm::Boot;

use crate::{boot, boot_with, generation, no_complaints};

/// How long all checks may take.
const ALL: Duration = Duration::from_secs(180);

fn conforms(guest: Guest, abi: &str) {
    let mut vm = boot_with(Boot::new(guest), &format!("abi={abi}"));
    // The small kernel has no 32-bit programs.
    let more = match guest {
        Guest::Debian => format!(" && sysgenid-test --abi {abi} compat && echo ok 32-bit"),
        _ => " && echo ok 32-bit".to_owned(),
    };
    let command = format!(
        "sysgenid-test --abi {abi} all --seconds 5{more} && sysgenid-test --abi {abi} overflow"
    );
    let (status, lines) = vm.run_within(&command, ALL);
    assert_eq!(status, 0, "{lines}");
    assert!(!lines.contains("FAIL"), "{lines}");
    for name in [
        "read-write",
        "generations",
        "wait",
        "tracking",
        "ioctl",
        "library",
        "mmap",
        "epoll",
        "blocked-read",
        "wait-process",
        "unprivileged",
        "user-namespace",
        "capabilities",
        "ready",
        "roles",
        "stopped",
        "descriptors",
        "file-info",
        "select",
        "uevents",
        "32-bit",
        "open-close",
        "stress",
        "overflow",
    ] {
        let line = format!("ok {name}");
        assert!(
            lines.lines().any(|said| said == line),
            "no {line:?} in:\n{lines}"
        );
    }
    no_complaints(&mut vm);
    assert_eq!(generation(&mut vm), u32::MAX);
    assert_eq!(vm.shell("cat /sys/kernel/debug/sysgenid/watchers"), "0\n");
    // At the counter's end the hypervisor still is heard.
    vm.client.new_generation().unwrap();
    assert_eq!(generation(&mut vm), 1);
    vm.shell("rmmod sysgenid_vmgenid && rmmod sysgenid");
    no_complaints(&mut vm);
}

#[test]
fn the_small_kernels_device_keeps_its_word() {
    conforms(Guest::Small, "5");
}

#[test]
fn the_small_kernels_device_keeps_the_word_of_deployed_drivers() {
    conforms(Guest::Small, "8");
}

#[test]
fn the_stock_kernels_device_keeps_its_word() {
    conforms(Guest::Debian, "5");
}

#[test]
fn the_stock_kernels_device_keeps_the_word_of_deployed_drivers() {
    conforms(Guest::Debian, "8");
}

/// Only the kernel that looks for mistakes can be told to have no memory.
#[test]
fn opening_without_memory_leaves_no_watcher() {
    if !is_debug_kernel() {
        println!("not tried: this kernel gives memory always");
        return;
    }
    let mut vm = boot(Guest::Small);
    assert_eq!(vm.shell("sysgenid-test no-memory"), "ok no-memory\n");
    no_complaints(&mut vm);
}
