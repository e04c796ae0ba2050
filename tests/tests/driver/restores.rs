//! Restores, as programs see them.

use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{boot, boot_with, generation, no_complaints, start, told};

/// A program that has started before the snapshot learns of the restore in all four ways.
fn noticed_in_every_way(guest: Guest) {
    let mut vm = boot(guest);
    let text = start(&mut vm, "sysgenid-test notice");
    assert!(text.contains("ready 1\n"), "{text}");
    let snapshot = vm.snapshot();
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        let text = told(&mut clone, "ok notice");
        let lines: Vec<&str> = text.lines().collect();
        // The VMM moves the counter by one; the driver by another, and tells of that one.
        for line in [
            "read Ok(3)",
            "poll Ok(65) Ok(3)",
            "wait Err(4)",
            "mapped at last 3",
            "uevent Some(\"SYSGENID=3\")",
        ] {
            let times = lines.iter().filter(|said| **said == line).count();
            assert_eq!(times, 1, "{line:?} in {text}");
        }
        // Whether the thread with the mapping runs between the two is the scheduler's choice.
        let first = lines
            .iter()
            .any(|line| ["mapped 2", "mapped 3"].contains(line));
        assert!(first, "{text}");
        assert_eq!(generation(&mut clone), 3);
        no_complaints(&mut clone);
    }
    vm.client.resume().unwrap();
    assert_eq!(generation(&mut vm), 1, "the original is no clone");
    assert!(!vm.shell("cat /tmp/told").contains("read Ok"));
}

#[test]
fn a_read_a_poll_a_mapping_and_a_wait_notice_a_restore_of_the_small_kernel() {
    noticed_in_every_way(Guest::Small);
}

#[test]
fn a_read_a_poll_a_mapping_and_a_wait_notice_a_restore_of_the_stock_kernel() {
    noticed_in_every_way(Guest::Debian);
}

/// Ten generations in a chain of snapshots of clones of clones.
#[test]
fn ten_generations_in_a_chain_are_ten_for_the_counter() {
    let mut vm = boot(Guest::Small);
    for round in 1..=10u32 {
        let snapshot = vm.snapshot();
        drop(vm);
        vm = Vm::restore(&snapshot);
        assert_eq!(generation(&mut vm), 2 * round);
        assert_eq!(vm.client.generation().unwrap().counter, 2 * round);
    }
    let snapshot = vm.snapshot();
    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(generation(&mut kept), 20);
    no_complaints(&mut kept);
}

/// The interrupt comes a minute late, and no call waits for it.
fn no_call_is_answered_in_the_old_generation(guest: Guest) {
    const HOLD: (&str, &str) = ("VMGENIE_HOLD_EVENTS", "60000");
    let mut vm = boot(guest);
    let mut old = 0;
    for (call, answer) in [
        ("read", "Ok(NEW)"),
        ("write", "Err(22)"),
        ("poll", "Ok(65)"),
        ("wait", "Err(4)"),
        ("track", "Ok(NEW)"),
    ] {
        let text = start(&mut vm, &format!("sysgenid-test at-once {call}"));
        assert!(text.contains(&format!("ready {old}\n")), "{text}");
        let snapshot = vm.snapshot();
        drop(vm);
        vm = Vm::restore_in(&[HOLD], &snapshot, GenerationChoice::New);
        let text = told(&mut vm, "ok at-once");
        let new = old + 2;
        let line = format!(
            "loaded {} answer {} after {new} events 0",
            old + 1,
            answer.replace("NEW", &new.to_string())
        );
        assert!(text.contains(&line), "{call}: {line:?} in {text}");
        old = new;
    }
    no_complaints(&mut vm);
}

#[test]
fn no_call_of_the_small_kernel_waits_for_the_interrupt() {
    no_call_is_answered_in_the_old_generation(Guest::Small);
}

#[test]
fn no_call_of_the_stock_kernel_waits_for_the_interrupt() {
    no_call_is_answered_in_the_old_generation(Guest::Debian);
}

/// A mapping is made with the address space locked: it shows the page as it is, and nothing is reseeded
/// under that lock. The next call deals with the new generation.
#[test]
fn a_mapping_is_made_without_dealing_with_a_new_generation() {
    const HOLD: (&str, &str) = ("VMGENIE_HOLD_EVENTS", "60000");
    let mut vm = boot(Guest::Small);
    start(&mut vm, "sysgenid-test at-once map");
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore_in(&[HOLD], &snapshot, GenerationChoice::New);
    let text = told(&mut clone, "ok at-once");
    let line = "loaded 1 answer Ok(1) after 1 events 0";
    assert!(text.contains(line), "{text}");
    assert_eq!(generation(&mut clone), 2);
    no_complaints(&mut clone);
}

/// A thread that does nothing but load never gets an old value after a resume.
#[test]
fn the_first_load_after_each_of_fifty_resumes_is_of_the_new_generation() {
    const ROUNDS: usize = 50;
    let mut vm = boot_with(Boot::new(Guest::Small).cpus(2), "");
    vm.shell("test -e /dev/vmclock0 || insmod /modules/ptp_vmclock.ko");
    start(&mut vm, "sysgenid-test first-load");
    let mut seen = 0;
    for _ in 0..ROUNDS {
        let snapshot = vm.snapshot();
        drop(vm);
        vm = Vm::restore(&snapshot);
        seen += 1;
        told(&mut vm, &format!("resume {seen} "));
    }
    let text = told(&mut vm, "resume");
    let resumes: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("resume"))
        .collect();
    assert_eq!(resumes.len(), ROUNDS, "{text}");
    let stale: Vec<&&str> = resumes
        .iter()
        .filter(|line| !line.contains(" stale 0 "))
        .collect();
    assert!(stale.is_empty(), "{stale:?}");
    no_complaints(&mut vm);
}
