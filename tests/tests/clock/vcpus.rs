//! All vCPUs of a machine have one TSC.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{Seen, clock_source};

const DEBUGFS: &str = "/sys/kernel/debug";

/// The `tsc-offset` of each vCPU of a machine, as the host's KVM has it.
fn offsets(vm: &Vm) -> BTreeMap<String, i64> {
    let kvm = Path::new(DEBUGFS).join("kvm");
    if !kvm.exists() {
        // Mounted already by another test, perhaps at this very moment.
        let _ = Command::new("mount")
            .args(["-t", "debugfs", "debugfs", DEBUGFS])
            .status();
    }
    let of_ours = format!("{}-", vm.pid());
    let machine = fs::read_dir(&kvm)
        .expect("debugfs of KVM")
        .map(|entry| entry.unwrap())
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&of_ours))
        .expect("the machine's directory");
    fs::read_dir(machine.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("vcpu"))
        .map(|entry| {
            let text = fs::read_to_string(entry.path().join("tsc-offset")).unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, text.trim().parse().unwrap())
        })
        .collect()
}

/// How far apart the TSCs of a machine's vCPUs are, in ticks.
fn spread(vm: &Vm, cpus: u8) -> u64 {
    let offsets = offsets(vm);
    assert_eq!(offsets.len(), usize::from(cpus), "{offsets:?}");
    let (least, most) = (
        offsets.values().min().unwrap(),
        offsets.values().max().unwrap(),
    );
    most.abs_diff(*least)
}

/// A machine with so many vCPUs and its restores, each restored from a snapshot of the last one.
fn a_chain_of_restores(guest: Guest, cpus: u8, source: &str) {
    let boot = Boot::new(guest).cpus(cpus);
    let mut vm = boot
        .cmdline(&format!("clocksource={source} tsc=reliable"))
        .ready();
    assert_eq!(clock_source(&mut vm), source);
    assert_eq!(spread(&vm, cpus), 0, "at boot");
    // The clock is read over each snapshot as well, in the guest's background: by as many as an emulated host can bear.
    let (stop, readers) = ("/tmp/enough", cpus.min(8));
    vm.shell(&format!(
        "guest-load clock {readers} 1 {stop} > /tmp/over 2>&1 &"
    ));
    let mut all = Vec::new();
    for _ in 0..2 {
        let snapshot = vm.snapshot();
        drop(vm);
        vm = Vm::restore(&snapshot);
        let seen = Seen::of(&mut vm, cpus);
        all.push((spread(&vm, cpus), seen));
        eprintln!(
            "{cpus} vCPUs, {source}: spread {} ticks, {seen:?}",
            spread(&vm, cpus)
        );
    }
    vm.shell(&format!("touch {stop}"));
    vm.shell("n=0; while ! grep reads /tmp/over; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done");
    let over = Seen::in_text(&vm.shell("cat /tmp/over"));
    eprintln!("{cpus} vCPUs, {source}: over all restores {over:?}");
    for (spread, seen) in &all {
        assert_eq!((*spread, seen.backwards), (0, 0), "{all:?}");
    }
    assert_eq!(over.backwards, 0, "{over:?}");
    assert_eq!(clock_source(&mut vm), source);
}

#[test]
fn two_vcpus_have_one_tsc_after_a_chain_of_restores() {
    a_chain_of_restores(Guest::Small, 2, "tsc");
}

#[test]
fn four_vcpus_have_one_tsc_after_a_chain_of_restores() {
    a_chain_of_restores(Guest::Small, 4, "tsc");
}

#[test]
fn four_vcpus_of_the_stock_kernel_have_one_kvm_clock_after_a_chain_of_restores() {
    a_chain_of_restores(Guest::Debian, 4, "kvm-clock");
}

#[test]
fn eight_vcpus_have_one_kvm_clock_after_a_chain_of_restores() {
    a_chain_of_restores(Guest::Small, 8, "kvm-clock");
}

#[test]
fn twelve_vcpus_have_one_tsc_after_a_chain_of_restores() {
    a_chain_of_restores(Guest::Small, 12, "tsc");
}
