//! The load that the others are too short for.

use std::time::Duration;

use vmgenie_tests::Guest;
use vmgenie_tests::vm::Boot;

use crate::{boot_with, generation, no_complaints};

#[test]
fn sixty_four_threads_open_acknowledge_trigger_and_close_for_a_minute() {
    let mut vm = boot_with(Boot::new(Guest::Small).cpus(2), "");
    let command = "sysgenid-test stress --seconds 60 --threads 64";
    let (status, text) = vm.run_within(command, Duration::from_secs(200));
    assert_eq!(status, 0, "{text}");
    assert!(text.lines().any(|line| line == "ok stress"), "{text}");
    println!("{text}");
    // The hypervisor is heard as before.
    let before = generation(&mut vm);
    vm.client.new_generation().unwrap();
    assert_eq!(generation(&mut vm), before + 2);
    assert_eq!(vm.shell("cat /sys/kernel/debug/sysgenid/watchers"), "0\n");
    vm.shell("rmmod sysgenid_vmgenid && rmmod sysgenid");
    no_complaints(&mut vm);
}
