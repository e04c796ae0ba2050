//! Loading and unloading the modules.

use vmgenie_api::wire::Missing;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{boot, boot_with, generation, no_complaints, start, told};

fn log(vm: &mut Vm) -> String {
    vm.shell("dmesg | grep sysgenid || true")
}

#[test]
fn it_rides_along_where_the_kernel_has_a_driver_of_its_own() {
    for guest in [Guest::Small, Guest::Debian] {
        let mut vm = boot(guest);
        let text = log(&mut vm);
        assert!(
            text.contains("riding along with the kernel's vmgenid driver"),
            "{text}"
        );
        no_complaints(&mut vm);
    }
}

/// A guest in which the kernel's own driver is absent. Unloading it would not do: it leaves its handler.
fn alone() -> Vm {
    boot_with(
        Boot::new(Guest::Small).cmdline("module_blacklist=vmgenid"),
        "",
    )
}

#[test]
fn where_the_kernels_driver_is_absent_it_drives_the_device_and_reseeds() {
    let mut vm = alone();
    let text = log(&mut vm);
    assert!(text.contains("driving the VMGENID device"), "{text}");
    start(&mut vm, "sysgenid-test notice");
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    let text = told(&mut clone, "ok notice");
    assert!(text.contains("read Ok(3)\n"), "{text}");
    // The program acknowledges nothing.
    clone.wait_missing(&[Missing::Watchers]);
    assert!(clone.client.generation().unwrap().driver.reseeded);
    let reseeds = clone.shell("dmesg | grep -c 'crng reseeded due to virtual machine fork'");
    // In the new generation; when the driver was loaded, no fork was announced.
    assert_eq!(reseeds.trim(), "1");
    // Unloaded and loaded again it hears of the next one, and of no change that it has missed.
    clone.shell("rmmod sysgenid_vmgenid && insmod /modules/sysgenid_vmgenid.ko");
    let before = generation(&mut clone);
    clone.client.new_generation().unwrap();
    assert_eq!(generation(&mut clone), before + 2);
    no_complaints(&mut clone);
}

#[test]
fn without_a_backend_the_counter_moves_by_request_alone() {
    let mut vm = Boot::new(Guest::Small).booted();
    vm.shell("insmod /modules/sysgenid.ko");
    assert_eq!(vm.shell("sysgenid-test read-write"), "ok read-write\n");
    let before = generation(&mut vm);
    vm.shell("sysgenctl trigger");
    assert_eq!(generation(&mut vm), before + 1);
    // A backend that comes later goes on from there.
    vm.shell("insmod /modules/sysgenid_vmgenid.ko");
    assert_eq!(generation(&mut vm), before + 1);
    assert_eq!(vm.client.generation().unwrap().counter, before + 1);
    vm.client.new_generation().unwrap();
    assert_eq!(generation(&mut vm), before + 3);
    no_complaints(&mut vm);
}

#[test]
fn a_wrong_numbering_is_refused_with_a_reason() {
    let mut vm = Boot::new(Guest::Small).booted();
    let (status, _) = vm.run("insmod /modules/sysgenid.ko abi=7");
    assert_ne!(status, 0);
    let text = log(&mut vm);
    assert!(
        text.contains("abi=7 is none of 5 (the default) and 8"),
        "{text}"
    );
}

#[test]
fn the_modules_stay_while_they_are_used_and_go_when_they_are_not() {
    let mut vm = boot(Guest::Small);
    for use_of_it in [
        "sysgenid-test stress --seconds 5",
        "sysgenid-test at-once read",
    ] {
        vm.shell(&format!(
            "{use_of_it} > /dev/null & echo $! > /tmp/pid; sleep 1"
        ));
        let (status, text) = vm.run("rmmod sysgenid");
        assert_ne!(status, 0, "unloaded in use: {text}");
        if use_of_it.ends_with("read") {
            // Its page is mapped.
            let (status, text) = vm.run("rmmod sysgenid_vmgenid");
            assert_ne!(status, 0, "unloaded while its page was mapped: {text}");
        }
        vm.shell("kill $(cat /tmp/pid); wait; true");
    }
    for _ in 0..20 {
        vm.shell("rmmod sysgenid_vmgenid && rmmod sysgenid");
        vm.shell("insmod /modules/sysgenid.ko && insmod /modules/sysgenid_vmgenid.ko");
    }
    // The stress has moved the counter, and the device's page has kept it.
    let before = generation(&mut vm);
    vm.client.new_generation().unwrap();
    assert_eq!(generation(&mut vm), before + 2);
    no_complaints(&mut vm);
}

#[test]
fn unloading_under_load_is_refused_or_clean() {
    let mut vm = boot(Guest::Small);
    start(
        &mut vm,
        "(echo ready; sysgenid-test stress --seconds 10 --threads 8; echo over)",
    );
    vm.shell("i=0; while [ $i -lt 200 ]; do rmmod sysgenid_vmgenid 2>/dev/null && insmod /modules/sysgenid_vmgenid.ko; i=$((i+1)); done");
    assert!(told(&mut vm, "over").contains("ok stress"));
    no_complaints(&mut vm);
}

/// Without a backend nothing but the open file and the mapping holds the module.
#[test]
fn an_open_file_or_a_mapping_alone_keeps_the_module() {
    let mut vm = Boot::new(Guest::Small).booted();
    vm.shell("insmod /modules/sysgenid.ko");
    vm.shell("exec 3<>/dev/sysgenid");
    assert_ne!(
        vm.run("rmmod sysgenid").0,
        0,
        "unloaded while a file was open"
    );
    vm.shell("exec 3<&-");
    let text = start(&mut vm, "sysgenid-test hold");
    assert_eq!(text, "ready 0\n");
    assert_ne!(
        vm.run("rmmod sysgenid").0,
        0,
        "unloaded while its page was mapped"
    );
    // What has been mapped before a backend comes goes on with it.
    vm.shell("insmod /modules/sysgenid_vmgenid.ko");
    vm.client.new_generation().unwrap();
    let text = told(&mut vm, "loaded 2");
    assert!(!text.contains("loaded 0"), "{text}");
    vm.shell("kill $(pidof sysgenid-test) && while pidof sysgenid-test; do sleep 0.1; done");
    vm.shell("rmmod sysgenid_vmgenid && rmmod sysgenid && ! test -e /dev/sysgenid");
    no_complaints(&mut vm);
}
