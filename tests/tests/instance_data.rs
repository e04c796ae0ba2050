//! A guest reads by itself who it is among the clones of a snapshot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use vmgenie_api::wire::{GenerationChoice, SnapshotLoad};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::vm::{BOOT_LIMIT, Boot};
use vmgenie_tests::{Guest, Snapshot, Vm};

const FILE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.vmgenie.instance/raw";

/// What the guest reads, to the end of the file.
fn read(vm: &mut Vm) -> String {
    let text = vm.shell(&format!("tr -d '\\0' < {FILE}"));
    assert_eq!(vm.client.instance_data().unwrap(), text);
    text
}

fn boot(guest: Guest, data: &str) -> Vm {
    let mut vm = Boot::new(guest).option(&format!("--data={data}")).ready();
    if guest == Guest::Debian {
        vm.shell("insmod /modules/qemu_fw_cfg.ko");
    }
    vm
}

fn restore(snapshot: &Snapshot, generation: GenerationChoice, data: Option<&str>) -> Vm {
    let mut vm = Vm::empty();
    let request = SnapshotLoad {
        resume_vm: true,
        generation,
        instance_data: data.map(str::to_owned),
        ..SnapshotLoad::of(snapshot.state(), snapshot.memory())
    };
    vm.client.load_snapshot(&request).unwrap();
    vm
}

/// The original and its clones each read their own string, a clone with its first read.
fn clones(guest: Guest) {
    let mut vm = boot(guest, "original");
    assert_eq!(read(&mut vm), "original");
    assert_eq!(vm.shell("sysgenctl data"), "original\n");
    let size = vm.shell(&format!("wc -c < {FILE}"));
    assert_eq!(size.trim(), "4096", "the rest is zero");
    assert_eq!(vm.shell(&format!("stat -L -c %a {FILE}")), "400\n");
    let snapshot = vm.snapshot();
    vm.client.resume().unwrap();

    for text in ["web-1", "{\"name\": \"web-2\"}\nx", ""] {
        let mut clone = restore(&snapshot, GenerationChoice::New, Some(text));
        assert_eq!(read(&mut clone), text);
        no_complaints(&mut clone);
    }
    let mut nobody = restore(&snapshot, GenerationChoice::New, None);
    assert_eq!(read(&mut nobody), "", "nobody told it");
    let mut same = restore(&snapshot, GenerationChoice::Keep, None);
    assert_eq!(read(&mut same), "original");
    let mut same = restore(&snapshot, GenerationChoice::Keep, Some("moved"));
    assert_eq!(read(&mut same), "moved");

    assert_eq!(read(&mut vm), "original");
    let longest = "x".repeat(4096);
    vm.client.set_instance_data(&longest).unwrap();
    assert_eq!(read(&mut vm), longest);
    no_complaints(&mut vm);
}

#[test]
fn clones_of_the_small_kernel_know_who_they_are() {
    clones(Guest::Small);
}

#[test]
fn clones_of_the_stock_kernel_know_who_they_are() {
    clones(Guest::Debian);
}

#[test]
fn a_machine_that_boots_again_is_who_it_was() {
    let mut vm = boot(Guest::Small, "first");
    vm.client.set_instance_data("second").unwrap();
    vm.console.send("reboot -f\n");
    vm.console.wait_for("@@ready\n", BOOT_LIMIT);
    assert_eq!(read(&mut vm), "second");
}

#[test]
fn a_guest_without_instance_data_finds_an_empty_file() {
    let mut vm = Boot::new(Guest::Small).booted();
    assert_eq!(read(&mut vm), "");
    no_complaints(&mut vm);
}
