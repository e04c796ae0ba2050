//! Guests notice their new generations: each one, once, and no others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::collections::HashSet;
use std::time::Duration;

use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::evidence::Noticed;
use vmgenie_tests::vm::{BOOT_LIMIT, Boot};
use vmgenie_tests::{Guest, Snapshot, Vm};

/// How long a guest may take to notice, on a host that may be emulated and busy.
const NOTICE: Duration = Duration::from_secs(60);
/// How long a guest that has nothing to notice is given to notice it all the same.
const NOTHING: Duration = Duration::from_secs(3);

fn id(vm: &mut Vm) -> String {
    vm.client.generation().expect("the generation").raw
}

/// Three clones of one snapshot, and the original going on.
fn three_clones(guest: Guest) {
    let mut original = Boot::new(guest).cpus(2).booted();
    let first = id(&mut original);
    let snapshot = original.snapshot();
    original.client.resume().unwrap();
    let mut clones: Vec<Vm> = (0..3).map(|_| Vm::restore(&snapshot)).collect();
    let mut ids = HashSet::from([first.clone()]);
    for clone in &mut clones {
        let noticed = Noticed::wait(clone, 1, NOTICE);
        let host_side = id(clone);
        assert_eq!(
            noticed,
            Noticed {
                reseeds: 1,
                ids: vec![host_side.clone()]
            }
        );
        assert!(ids.insert(host_side), "two machines have one ID");
    }
    assert_eq!(id(&mut original), first);
    assert_eq!(
        Noticed::of(&mut original),
        Noticed {
            reseeds: 0,
            ids: vec![]
        }
    );
}

#[test]
fn three_clones_of_the_stock_kernel_know_that_they_are() {
    three_clones(Guest::Debian);
}

#[test]
fn three_clones_of_the_small_kernel_know_that_they_are() {
    three_clones(Guest::Small);
}

#[test]
fn ten_restores_in_a_chain_are_each_noticed_once() {
    let mut vm = Boot::new(Guest::Debian).booted();
    let mut ids = Vec::new();
    for generation in 1..=10 {
        let snapshot = vm.snapshot();
        vm = Vm::restore(&snapshot);
        ids.push(id(&mut vm));
        let noticed = Noticed::wait(&mut vm, generation, NOTICE);
        assert_eq!(
            noticed,
            Noticed {
                reseeds: generation,
                ids: ids.clone()
            }
        );
        assert_eq!(vm.client.generation().unwrap().changes, generation as u64);
    }
}

#[test]
fn pausing_and_resuming_is_no_new_generation() {
    let mut vm = Boot::new(Guest::Small).cpus(2).booted();
    let before = id(&mut vm);
    for _ in 0..10 {
        vm.client.pause().unwrap();
        vm.client.resume().unwrap();
    }
    std::thread::sleep(NOTHING);
    assert_eq!(id(&mut vm), before);
    assert_eq!(
        Noticed::of(&mut vm),
        Noticed {
            reseeds: 0,
            ids: vec![]
        }
    );
}

#[test]
fn a_restore_that_keeps_the_generation_raises_no_event() {
    let mut original = Boot::new(Guest::Small).booted();
    let before = id(&mut original);
    let interrupts = "sed -n 's/^ *9: *\\([0-9]*\\).*/\\1/p' /proc/interrupts";
    let count = original.shell(interrupts);
    let snapshot = original.snapshot();
    drop(original);
    let mut restored = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(id(&mut restored), before);
    std::thread::sleep(NOTHING);
    assert_eq!(restored.shell(interrupts), count);
    assert_eq!(
        Noticed::of(&mut restored),
        Noticed {
            reseeds: 0,
            ids: vec![]
        }
    );
}

#[test]
fn a_new_generation_of_a_running_guest_is_noticed() {
    let mut vm = Boot::new(Guest::Small).cpus(2).booted();
    let mut ids = Vec::new();
    for changes in 1..=3 {
        ids.push(vm.client.new_generation().unwrap().raw);
        let noticed = Noticed::wait(&mut vm, changes, NOTICE);
        assert_eq!(
            noticed,
            Noticed {
                reseeds: changes,
                ids: ids.clone()
            }
        );
    }
}

/// Snapshots a booting stock kernel when `moment` appears on its console, restores it, and has the guest's driver tell the ID
/// that it found when it got there.
fn early_snapshot(moment: &str, console: &str) {
    // Shows what the driver, which is built in, reads when it starts: it hands its 16 bytes to this function.
    let mut vm = Boot::new(Guest::Debian)
        .cmdline(console)
        .cmdline(
            "trace_event= kprobe_event=p:early,add_device_randomness,lo=+0(%di):x64,hi=+8(%di):x64,len=%si:u64",
        )
        .start();
    vm.console.wait_for(moment, BOOT_LIMIT);
    let old = id(&mut vm);
    let snapshot = vm.snapshot();
    drop(vm);
    let mut restored = Vm::restore(&snapshot);
    let new = id(&mut restored);
    restored.wait_ready();
    // The level that shows the moment on the console would go on writing into what the commands answer.
    restored.shell("dmesg -n 1");
    let crashes = "dmesg | grep -E 'BUG|Oops|WARNING|nobody cared' || true";
    assert_eq!(restored.shell(crashes), "");
    let trace = restored.shell("grep 'early:' /sys/kernel/tracing/trace | grep 'len=16' || true");
    let seen: Vec<String> = trace
        .lines()
        .filter_map(vmgenie_tests::evidence::id_in)
        .collect();
    assert!(
        seen.contains(&new),
        "the driver started with {seen:?}, not with {new}"
    );
    assert!(!seen.contains(&old), "the driver has seen the old ID {old}");
    // And it listens from then on.
    let next = restored.client.new_generation().unwrap().raw;
    let noticed = Noticed::wait(&mut restored, 1, NOTICE);
    assert_eq!(noticed.ids, [next]);
}

#[test]
fn a_snapshot_of_the_first_moments_of_a_boot_is_noticed_when_the_guest_gets_there() {
    early_snapshot("Linux version", "loglevel=6 earlyprintk=serial,ttyS0");
}

#[test]
fn a_snapshot_from_before_acpi_was_enabled_is_noticed_when_the_guest_gets_there() {
    early_snapshot("ACPI: Core revision", "loglevel=7");
}

#[test]
fn fifty_restores_of_one_snapshot_have_fifty_ids_and_none_hangs() {
    let mut original = Boot::new(Guest::Small).cpus(2).booted();
    let mut ids = HashSet::from([id(&mut original)]);
    let snapshot: Snapshot = original.snapshot();
    drop(original);
    for round in 1..=50 {
        let mut clone = Vm::restore(&snapshot);
        assert_eq!(
            clone.shell(&format!("echo alive {round}")).trim(),
            format!("alive {round}")
        );
        let host_side = id(&mut clone);
        assert!(
            ids.insert(host_side.clone()),
            "round {round} repeats {host_side}"
        );
        let noticed = Noticed::wait(&mut clone, 1, NOTICE);
        assert_eq!(
            noticed,
            Noticed {
                reseeds: 1,
                ids: vec![host_side]
            }
        );
    }
}

#[test]
fn the_generation_counter_and_vmclock_move_with_each_new_generation_and_only_then() {
    // Offset 0x68 of VMClock's page is its generation counter.
    const VMCLOCK: &str = "od -A n -t u8 -j 104 -N 8 /dev/vmclock0";
    let counter = |vm: &mut Vm| vm.client.generation().unwrap().counter;
    let clock = |vm: &mut Vm| -> u64 { vm.shell(VMCLOCK).trim().parse().unwrap() };
    let mut original = Boot::new(Guest::Small).booted();
    original.shell("test -e /dev/vmclock0 || insmod /modules/ptp_vmclock.ko");
    original.shell("ls -d /sys/bus/acpi/devices/VMGE0001:00");
    assert_eq!(counter(&mut original), 0);
    let first = clock(&mut original);
    let snapshot = original.snapshot();
    drop(original);
    let mut clone = Vm::restore(&snapshot);
    assert_eq!((counter(&mut clone), clock(&mut clone)), (1, first + 1));
    assert_eq!(clone.client.new_generation().unwrap().counter, 2);
    assert_eq!((counter(&mut clone), clock(&mut clone)), (2, first + 2));
    let chained = clone.snapshot();
    drop(clone);
    let mut kept = Vm::restore_as(&chained, GenerationChoice::Keep);
    assert_eq!((counter(&mut kept), clock(&mut kept)), (2, first + 2));
    assert!(!kept.client.generation().unwrap().driver.present);
}

/// The first bytes of the VMClock's page as the guest's own driver shows them: sequence count, disruption marker, generation.
fn vmclock(vm: &mut Vm) -> (u64, u64, u64) {
    let dump = "dd if=/dev/vmclock0 bs=4096 count=1 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'";
    let page = vm.shell(dump);
    let word = |offset: usize, bytes: usize| {
        let digits = &page.trim()[2 * offset..2 * (offset + bytes)];
        let digits = u64::from_str_radix(digits, 16).expect("hexadecimal digits");
        digits.swap_bytes() >> (64 - 8 * bytes)
    };
    assert_eq!(word(0, 4), 0x4b4c_4356, "VMClock's magic");
    (word(0x0c, 4), word(0x10, 8), word(0x68, 8))
}

#[test]
fn the_stock_kernels_vmclock_tells_of_each_generation() {
    let mut vm = Boot::new(Guest::Debian).ready();
    vm.shell("insmod /modules/ptp_vmclock.ko");
    assert_eq!(vmclock(&mut vm), (0, 0, 0));
    let counts = |vm: &mut Vm| vm.shell("grep . /sys/firmware/acpi/interrupts/gpe06");
    assert!(counts(&mut vm).trim_start().starts_with("0 "));
    let snapshot = vm.snapshot();
    let mut clone = Vm::restore(&snapshot);
    assert_eq!(vmclock(&mut clone), (2, 1, 1));
    assert_eq!(clone.client.generation().unwrap().counter, 1);
    Noticed::wait(&mut clone, 1, NOTICE);
    let counted = counts(&mut clone);
    assert!(counted.trim_start().starts_with("1 "), "{counted}");
    let complaints = "dmesg | grep -i -E 'acpi.*(error|exception|warning)|vmclock.*(error|fail)|BUG:|WARNING:' || true";
    assert_eq!(clone.shell(complaints), "");
    // The same machine, set down elsewhere: its clock was disrupted, its generation is the same.
    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(vmclock(&mut kept), (2, 1, 0));
}
