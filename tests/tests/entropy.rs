//! The entropy device, and with it what all virtio devices have in common, on real guests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::collections::HashSet;

use vmgenie_tests::vm::{BOOT_LIMIT, Boot};
use vmgenie_tests::{Guest, Vm};

/// What the kernel says when a device or its tables are not as they should be.
const COMPLAINTS: &str = "dmesg | grep -i -E 'virtio.*(fail|error|broken|invalid)|nobody cared|BUG:|WARNING:|acpi.*error' || true";

/// So many bytes of the device, in blocks of 64, which is what Linux asks the device for at a time.
fn drawn(vm: &mut Vm, blocks: u32) -> Vec<String> {
    let text = vm.shell(&format!(
        "dd if=/dev/hwrng bs=64 count={blocks} iflag=fullblock 2>/dev/null | od -An -v -tx1 -w64 | tr -d ' '"
    ));
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(lines.len() as u32, blocks, "{text}");
    assert!(lines.iter().all(|line| line.len() == 128), "{text}");
    lines
}

fn all_different(lines: &[String]) {
    let different: HashSet<&String> = lines.iter().collect();
    assert_eq!(different.len(), lines.len(), "{lines:#?}");
}

/// How many interrupts the device has raised.
fn interrupts(vm: &mut Vm) -> u64 {
    let line = vm.shell("grep virtio0 /proc/interrupts");
    assert!(line.contains("edge"), "{line}");
    let counts = line.split_whitespace().skip(1);
    counts.map_while(|word| word.parse::<u64>().ok()).sum()
}

#[test]
fn a_guest_draws_random_numbers_from_the_host() {
    let mut vm = Boot::new(Guest::Small).cpus(2).option("--entropy").booted();
    let device = vm.shell("cat /sys/bus/acpi/devices/LNRO0005:00/path");
    assert!(device.contains("V000"), "{device}");
    let name = vm.shell("cat /sys/class/misc/hw_random/rng_current");
    assert!(name.starts_with("virtio_rng"), "{name}");
    let features = vm.shell("cat /sys/bus/virtio/devices/virtio0/features");
    // VIRTIO_F_VERSION_1, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC.
    for bit in [32, 29, 28] {
        assert_eq!(features.as_bytes()[bit], b'1', "{bit} of {features}");
    }
    let before = interrupts(&mut vm);
    all_different(&drawn(&mut vm, 256));
    assert!(interrupts(&mut vm) > before);
    assert_eq!(vm.shell(COMPLAINTS), "");
}

#[test]
fn a_driver_that_is_unbound_and_bound_again_starts_the_device_anew() {
    let mut vm = Boot::new(Guest::Small).option("--entropy").booted();
    for _ in 0..3 {
        vm.shell("echo virtio0 > /sys/bus/virtio/drivers/virtio_rng/unbind");
        // Reset; Linux has acknowledged it again at once, for the next driver.
        let status = vm.shell("cat /sys/bus/virtio/devices/virtio0/status");
        assert_eq!(status.trim(), "0x00000001");
        vm.shell("echo virtio0 > /sys/bus/virtio/drivers/virtio_rng/bind");
        all_different(&drawn(&mut vm, 16));
    }
    // And the transport as well, which takes down the virtio device itself.
    vm.shell("echo LNRO0005:00 > /sys/bus/platform/drivers/virtio-mmio/unbind");
    assert_eq!(vm.shell("ls /sys/bus/virtio/devices"), "");
    vm.shell("echo LNRO0005:00 > /sys/bus/platform/drivers/virtio-mmio/bind");
    all_different(&drawn(&mut vm, 16));
    assert_eq!(vm.shell(COMPLAINTS), "");
}

#[test]
fn clones_draw_numbers_of_their_own() {
    let mut vm = Boot::new(Guest::Small).cpus(2).option("--entropy").booted();
    let mut all = drawn(&mut vm, 8);
    let snapshot = vm.snapshot();
    vm.client.resume().unwrap();
    let mut clones = [vm, Vm::restore(&snapshot), Vm::restore(&snapshot)];
    for clone in &mut clones {
        // The first block may have been in the guest's memory before the snapshot.
        all.extend_from_slice(&drawn(clone, 9)[1..]);
    }
    all_different(&all);
    for clone in &mut clones {
        assert_eq!(clone.shell(COMPLAINTS), "");
    }
}

#[test]
fn a_guest_that_draws_all_the_time_goes_on_after_each_of_many_restores() {
    let mut vm = Boot::new(Guest::Small).cpus(2).option("--entropy").booted();
    // A reader that waits for the device for most of its life, and counts what it got.
    vm.shell(
        "(n=0; while dd if=/dev/hwrng of=/tmp/block bs=64 count=16 iflag=fullblock 2>/dev/null; do \
         n=$((n+1)); echo $n > /tmp/new; mv /tmp/new /tmp/count; done) > /dev/null 2>&1 &",
    );
    let count = "cat /tmp/count 2>/dev/null || echo 0";
    let mut last: u64 = 0;
    for round in 0..10 {
        // More than this many means that the reader has gone on.
        let wait = format!(
            "until [ $({count}) -gt {} ]; do usleep 20000; done; {count}",
            last + 1
        );
        last = vm.shell(&wait).trim().parse().unwrap();
        let snapshot = vm.snapshot();
        vm = Vm::restore(&snapshot);
        assert!(last > 0, "round {round}");
    }
    assert_eq!(vm.shell(COMPLAINTS), "");
}

#[test]
fn a_reboot_starts_the_device_anew() {
    let mut vm = Boot::new(Guest::Small)
        .option("--entropy")
        .option("--on-reboot=restart")
        .ready();
    drawn(&mut vm, 4);
    vm.console.send("reboot -f\n");
    vm.console.wait_for("@@ready\n", BOOT_LIMIT);
    all_different(&drawn(&mut vm, 16));
    assert_eq!(vm.shell(COMPLAINTS), "");
}

#[test]
fn the_stock_kernels_modules_come_and_go_over_snapshots() {
    let mut vm = Boot::new(Guest::Debian).option("--entropy").ready();
    let load = "insmod /modules/virtio_mmio.ko && insmod /modules/virtio_rng.ko";
    let unload = "rmmod virtio_rng && rmmod virtio_mmio";
    // A snapshot before there is any driver, and one after it has gone, restore a device that is as after power-on.
    for _ in 0..2 {
        let snapshot = vm.snapshot();
        vm = Vm::restore(&snapshot);
        vm.shell(load);
        let name = vm.shell("cat /sys/class/misc/hw_random/rng_current");
        assert!(name.starts_with("virtio_rng"), "{name}");
        all_different(&drawn(&mut vm, 16));
        let snapshot = vm.snapshot();
        vm = Vm::restore(&snapshot);
        all_different(&drawn(&mut vm, 16));
        vm.shell(unload);
    }
    assert_eq!(vm.shell(COMPLAINTS), "");
}

#[test]
fn a_machine_without_devices_has_none() {
    let mut vm = Boot::new(Guest::Small).booted();
    assert_eq!(vm.shell("ls /sys/bus/virtio/devices"), "");
}
