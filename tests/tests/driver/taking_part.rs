//! Programs that take part in a fork point: an agent that is asked, participants that park.

use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_api::wire::{
    CooperativeCreate, CooperativeCreated, GenerationChoice, SnapshotCreate, SnapshotHow,
};
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot_with, generation, no_complaints, start, told};

fn boot(guest: Guest) -> Vm {
    let mut vm = boot_with(Boot::new(guest).cpus(2), "");
    vm.shell("dd if=/dev/random of=/dev/null bs=1 count=1 2> /dev/null");
    vm
}

fn fork(vm: &mut Vm, snapshot: &Snapshot) -> Result<CooperativeCreated, String> {
    let created = vm.client.create_snapshot(&SnapshotCreate {
        cooperative: Some(CooperativeCreate {
            quiesce_ms: 60_000,
            ..CooperativeCreate::default()
        }),
        ..snapshot.request()
    });
    let created = created.map_err(|error| error.to_string())?;
    Ok(created.cooperation.expect("an answer about the guest"))
}

/// Waits until the program has told all of these lines, in this order; others may be in between.
fn tells(vm: &mut Vm, lines: &[&str]) {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = vm.shell("cat /tmp/told");
        let mut said = text.lines();
        if lines.iter().all(|line| said.any(|one| one == *line)) {
            return;
        }
        assert!(!text.contains("FAIL"), "{text}");
        assert!(!patience.is_over(), "no {lines:?} in {text:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The agent has the machine stand still when all participants are parked; each is told who it is.
fn an_agent_and_a_participant(guest: Guest) {
    let mut vm = boot(guest);
    start(&mut vm, "sysgenid-test forks");
    let snapshot = Snapshot::new();
    let cooperation = fork(&mut vm, &snapshot).unwrap();
    assert_eq!(cooperation.how, SnapshotHow::ForkPoint);
    let waited_for = cooperation.waited_for;
    assert!(waited_for.agent && waited_for.hooks && waited_for.parked);
    assert!(!waited_for.frozen);
    tells(&mut vm, &["pending 1", "forked 1 0 0"]);
    tells(&mut vm, &["parked Ok(0)"]);
    assert_eq!(generation(&mut vm), 0);
    // Once more, as it goes on.
    fork(&mut vm, &Snapshot::new()).unwrap();
    tells(&mut vm, &["forked 1 0 0", "pending 1", "forked 1 0 0"]);
    no_complaints(&mut vm);
    drop(vm);
    let hold = [("VMGENIE_HOLD_EVENTS", "6000000")];
    let mut clone = Vm::restore_in(&hold, &snapshot, GenerationChoice::New);
    tells(&mut clone, &["pending 1", "forked 2 2 0"]);
    tells(&mut clone, &["parked Ok(1)"]);
    assert_eq!(generation(&mut clone), 2);
    no_complaints(&mut clone);
}

#[test]
fn an_agent_of_the_small_kernel_is_asked_and_told_who_it_is() {
    an_agent_and_a_participant(Guest::Small);
}

#[test]
fn an_agent_of_the_stock_kernel_is_asked_and_told_who_it_is() {
    an_agent_and_a_participant(Guest::Debian);
}

/// An agent that ends, or refuses: nothing is taken, and the next request is the kernel's alone.
#[test]
fn an_agent_that_goes_or_refuses_ends_the_request() {
    let mut vm = boot(Guest::Small);
    for (reason, why) in [(0, "agent"), (3, "frozen")] {
        start(&mut vm, &format!("sysgenid-test leaves {reason}"));
        let snapshot = Snapshot::new();
        let error = fork(&mut vm, &snapshot).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(!snapshot.state().exists());
        told(&mut vm, "ok leaves");
    }
    let how = fork(&mut vm, &Snapshot::new()).unwrap().how;
    assert_eq!(how, SnapshotHow::KernelOnly);
    assert_eq!(generation(&mut vm), 0);
    no_complaints(&mut vm);
}

/// Who is parked, frozen, interrupted and without privileges: see the program.
fn who_has_parked_is_counted(guest: Guest) {
    let mut vm = boot(guest);
    vm.shell("mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    start(&mut vm, "sysgenid-test parks");
    let error = fork(&mut vm, &Snapshot::new()).unwrap_err();
    assert!(error.contains("park"), "{error}");
    told(&mut vm, "ok parks");
    no_complaints(&mut vm);
}

#[test]
fn the_stock_kernel_counts_who_has_parked_and_asks_again_who_was_interrupted() {
    who_has_parked_is_counted(Guest::Debian);
}
