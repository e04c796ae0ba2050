//! `sysgenctl agent` in clones.

use std::time::Duration;

use vm_agent::patience::{Patience, stretched};
use vmgenie_api::wire::Missing;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot, no_complaints};

const RAN: &str = "cat /tmp/ran 2>/dev/null || true";

/// Writes a hook that does `command`.
pub(crate) fn hook(vm: &mut Vm, name: &str, command: &str) {
    let script = format!("#!/bin/sh\\n{command}\\n");
    vm.shell(&format!(
        "mkdir -p /hooks && printf '{script}' > /hooks/{name} && chmod 755 /hooks/{name}"
    ));
}

#[test]
fn hooks_run_once_in_each_generation_and_one_that_hangs_is_cut_off() {
    let mut vm = boot(Guest::Small);
    hook(
        &mut vm,
        "10-first",
        "echo first $SYSGENID_OLD $SYSGENID_NEW >> /tmp/ran",
    );
    hook(&mut vm, "20-hangs", "echo hangs >> /tmp/ran; sleep 1000");
    hook(&mut vm, "30-last", "echo last >> /tmp/ran");
    let limit = stretched(Duration::from_secs(3)).as_secs();
    vm.shell(&format!(
        "sysgenctl agent --hooks /hooks --limit {limit}s > /tmp/agent 2>&1 &"
    ));
    let mut patience = Patience::new(LIMIT);
    while vm.shell("cat /sys/kernel/debug/sysgenid/watchers").trim() != "1" {
        assert!(!patience.is_over(), "{}", vm.shell("cat /tmp/agent"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(vm.shell(RAN), "");
    let snapshot = vm.snapshot();
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        // While the hook hangs the guest has not adapted, and the host is told why. Hooks of one directory are
        // of the second stage; the first had none, and is over.
        clone.wait_missing(&[Missing::Watchers, Missing::Ready]);
        // Its programs need not wait any longer when it has been cut off; the host knows better.
        assert_eq!(
            clone.shell("sysgenctl wait --timeout 40s"),
            "Nobody is outdated.\n"
        );
        let waited = clone.client.wait_for_generation(Duration::ZERO).unwrap();
        assert_eq!(waited.missing, [Missing::Ready]);
        assert_eq!(clone.shell(RAN), "first 0 2\nhangs\nlast\n");
        // The next generation finds it mended.
        clone.shell("rm /hooks/20-hangs");
        clone.client.new_generation().unwrap();
        assert!(clone.wait_adapted().adapted);
        assert_eq!(
            clone.shell(RAN),
            "first 0 2\nhangs\nlast\nfirst 2 4\nlast\n"
        );
        no_complaints(&mut clone);
    }
    vm.client.resume().unwrap();
    assert_eq!(vm.shell(RAN), "", "the original is no clone");
}
