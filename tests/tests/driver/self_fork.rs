//! A program of the guest's that asks for a snapshot of its machine.

use std::path::Path;
use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_api::wire::{SelfSnapshot, SnapshotLoad};
use vmgenie_tests::shell::load_modules;
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, generation, no_complaints, told};

/// A guest with both modules. Its host lets it have `count` snapshots of itself there, if it is told where.
fn boot(own: Option<(&Path, u32)>) -> Vm {
    let mut vm = Vm::empty();
    if let Some((directory, count)) = own {
        let own = SelfSnapshot {
            count,
            interval_ms: 0,
            quiesce_ms: 60_000,
            ..SelfSnapshot::into(directory.to_owned())
        };
        vm.client.set_self_snapshot(&own).unwrap();
    }
    Boot::new(Guest::Small).cpus(2).booted_into(&mut vm);
    load_modules(&mut vm, "");
    vm.shell("dd if=/dev/random of=/dev/null bs=1 count=1 2> /dev/null");
    vm
}

/// Has a program ask in the background: it ends in the original and in each clone. By then the shell
/// waits for its next command, as it will in the clones.
fn ask(vm: &mut Vm, tag: u32) {
    let asked = format!("sleep 1; sysgenctl fork-self --tag {tag} --timeout 10s");
    vm.shell("rm -f /tmp/told");
    vm.shell(&format!(
        "({asked}; echo status $?) > /tmp/told 2>&1 < /dev/null &"
    ));
}

fn answer(vm: &mut Vm) -> String {
    told(vm, "status")
}

fn clone_of(place: &Snapshot, number: u32) -> Vm {
    let from = place.dir().join(number.to_string());
    let hold = [("VMGENIE_HOLD_EVENTS", "6000000")];
    let mut vm = Vm::spawn(&["api".to_owned()], &hold);
    let request = SnapshotLoad {
        resume_vm: true,
        ..SnapshotLoad::of(from.join("state"), from.join("memory"))
    };
    vm.client.load_snapshot(&request).unwrap();
    vm
}

/// Notifications are held back in the clones: it is by the fork point alone that they know what they are.
#[test]
fn a_program_that_asks_for_a_snapshot_learns_whether_it_goes_on_in_the_original_or_a_clone() {
    let place = Snapshot::new();
    let mut vm = boot(Some((place.dir(), 2)));
    for (number, tag) in [(1, 7), (2, 8)] {
        ask(&mut vm, tag);
        // Nobody asks the shell meanwhile.
        let mut patience = Patience::new(LIMIT);
        let last = loop {
            let taken = vm.client.self_snapshots().unwrap().taken;
            match taken.last().map(|it| (it.number, it.tag)) {
                Some(last) if last.0 == number => break last,
                _ => assert!(!patience.is_over(), "no snapshot {number}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(last, (number, tag));
        assert_eq!(answer(&mut vm), "original\nstatus 0\n");
    }
    assert_eq!(generation(&mut vm), 0);
    // It has had them all.
    ask(&mut vm, 9);
    let text = answer(&mut vm);
    assert!(
        text.contains("the host refuses") && text.ends_with("status 1\n"),
        "{text}"
    );
    no_complaints(&mut vm);
    drop(vm);
    for number in [1, 2] {
        let mut clone = clone_of(&place, number);
        assert_eq!(answer(&mut clone), "clone\nstatus 4\n");
        assert_eq!(generation(&mut clone), 2);
        // Nobody has allowed it anything.
        ask(&mut clone, 7);
        let text = answer(&mut clone);
        assert!(text.contains("none that a program may ask for"), "{text}");
        no_complaints(&mut clone);
    }
}

#[test]
fn a_program_whose_host_lets_nobody_ask_is_told_so() {
    let mut vm = boot(None);
    ask(&mut vm, 7);
    let text = answer(&mut vm);
    assert!(
        text.contains("none that a program may ask for\nstatus 1\n"),
        "{text}"
    );
    no_complaints(&mut vm);
}
