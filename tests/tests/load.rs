//! Snapshots of a guest that works.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_tests::shell::COMMAND_LIMIT;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

/// On each of 4 vCPUs: checksum the same data again and again; count what is right, tell what is wrong.
const WORK: &str = "head -c 100000 /bin/busybox > /tmp/data; want=$(sha256sum < /tmp/data); \
                    for c in 0 1 2 3; do echo 0 > /tmp/count$c; (n=0; while :; do \
                    if [ \"$(sha256sum < /tmp/data)\" = \"$want\" ]; then n=$((n+1)); \
                    echo $n > /tmp/new$c; mv /tmp/new$c /tmp/count$c; else echo wrong >> /tmp/wrong; fi; done) & done; true";

/// What is wrong: nothing, where the file is not there.
const TROUBLE: &str =
    "cat /tmp/wrong 2>/dev/null; dmesg | grep -E 'BUG|Oops|WARNING|stall|lockup' || true";

fn counts(vm: &mut Vm) -> Vec<u64> {
    let text = vm.shell("cat /tmp/count0 /tmp/count1 /tmp/count2 /tmp/count3");
    text.lines()
        .map(|line| line.trim().parse().expect("a count"))
        .collect()
}

/// Waits until every worker has done more than `before`.
fn wait_for_progress(vm: &mut Vm, before: &[u64]) {
    let mut patience = Patience::new(COMMAND_LIMIT);
    loop {
        let now = counts(vm);
        if now.iter().zip(before).all(|(now, before)| now > before) {
            return;
        }
        assert!(
            !patience.is_over(),
            "the workers stand still: {before:?}, {now:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_guest_with_4_busy_vcpus_goes_on_rightly_after_each_of_20_restores() {
    let mut vm = Boot::new(Guest::Small).cpus(4).ready();
    vm.shell(WORK);
    wait_for_progress(&mut vm, &[0; 4]);
    let before = counts(&mut vm);
    let snapshot = vm.snapshot();
    drop(vm);
    for round in 1..=20 {
        let mut restored = Vm::restore(&snapshot);
        wait_for_progress(&mut restored, &before);
        let trouble = restored.shell(TROUBLE);
        assert_eq!(trouble, "", "round {round}");
    }
}
