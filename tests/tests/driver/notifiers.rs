//! What else befalls a machine, and what the host knows of the driver then.

use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot, load_modules, no_complaints};

/// A kernel that goes says so: the one that it may start in its place has perhaps no driver, and the host would wait for one. The module of tests
/// holds the task that reboots when all who want to hear of it have heard.
#[test]
fn a_kernel_that_reboots_tells_the_host_that_its_driver_goes() {
    let mut vm = Boot::new(Guest::Debian).extras().ready();
    load_modules(&mut vm, "");
    vm.shell("insmod /tests/debian/crng_delay.ko task=reboot symbol=__usermodehelper_disable");
    assert!(vm.client.generation().unwrap().driver.present);
    vm.console.send("reboot -f\n");
    vm.console.wait_for("crng_delay: held", LIMIT);
    assert!(!vm.client.generation().unwrap().driver.present);
}

/// Memory that comes back from a disk may be in another machine now, whose event was before that. Who opens `/dev/snapshot` and closes it has
/// begun a hibernation and not gone on: the kernel tells of both.
#[test]
fn after_a_hibernation_the_driver_looks_for_a_new_generation() {
    let mut vm = boot(Guest::Debian);
    let snapshot = vm.snapshot();
    drop(vm);
    // No event comes while this test looks.
    let environment = [("VMGENIE_HOLD_EVENTS", "600000")];
    let mut clone = Vm::restore_in(&environment, &snapshot, GenerationChoice::New);
    clone.shell("true");
    assert!(!clone.client.generation().unwrap().driver.reached);
    clone.shell(": < /dev/snapshot");
    let driver = clone.client.generation().unwrap().driver;
    assert!(driver.present && driver.reached, "{driver:?}");
    no_complaints(&mut clone);
}
