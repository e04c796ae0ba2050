//! Who reseeds the kernel's random number generator, and when.

use std::time::Duration;

use vm_agent::patience::{Patience, stretched};
use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{boot, boot_with, generation, no_complaints, start, told};

const TRACE: &str = "/sys/kernel/tracing";

/// Has the kernel note each reseeding and each generation.
fn trace(vm: &mut Vm) {
    for (name, symbol) in [
        ("reseeded", "crng_reseed"),
        ("forked", "add_vmfork_randomness"),
        ("began", "sysgenid:sysgenid_begin_generation"),
    ] {
        vm.shell(&format!(
            "echo 'p:{name} {symbol}' >> {TRACE}/kprobe_events && echo 1 > {TRACE}/events/kprobes/{name}/enable"
        ));
    }
    vm.shell(&format!("echo > {TRACE}/trace"));
}

/// What the kernel has noted since, in order.
fn noted(vm: &mut Vm) -> Vec<String> {
    let text = vm.shell(&format!("cat {TRACE}/trace"));
    let events = text.lines().filter(|line| !line.starts_with('#'));
    let names = events.filter_map(|line| {
        let words = line.split_whitespace();
        let mut names = words.filter_map(|word| word.strip_suffix(':'));
        names.find(|name| ["reseeded", "forked", "began"].contains(name))
    });
    names.map(str::to_owned).collect()
}

fn position(events: &[String], name: &str) -> Option<usize> {
    events.iter().position(|event| event == name)
}

/// A call finds the new generation before the kernel's driver has heard of it. The driver reseeds, then the
/// counter moves; when the kernel's driver comes, it moves no more.
#[test]
fn where_a_call_comes_first_it_reseeds_and_the_late_notification_moves_nothing() {
    // The call has to come within that time.
    let hold = stretched(Duration::from_secs(20));
    let hold_ms = hold.as_millis().to_string();
    let environment = [("VMGENIE_HOLD_EVENTS", hold_ms.as_str())];
    let mut vm = boot(Guest::Small);
    trace(&mut vm);
    start(&mut vm, "sysgenid-test at-once read");
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore_in(&environment, &snapshot, GenerationChoice::New);
    let text = told(&mut clone, "ok at-once");
    assert!(text.contains("answer Ok(2) after 2 events 0"), "{text}");
    let events = noted(&mut clone);
    let (reseeded, began) = (position(&events, "reseeded"), position(&events, "began"));
    assert!(reseeded.is_some() && reseeded < began, "{events:?}");
    assert_eq!(position(&events, "forked"), None, "{events:?}");
    // Those of the kernel who want to hear of a fork, as WireGuard does, know nothing yet. The host knows that.
    let chain = |clone: &mut Vm| clone.client.generation().unwrap().driver.chain;
    assert_eq!(chain(&mut clone), Some(false));
    let patience = Patience::new(crate::LIMIT + hold);
    let heard = patience.wait_until(Duration::from_secs(2), || {
        position(&noted(&mut clone), "forked").is_some()
    });
    assert!(heard, "the notification never came");
    let patience = Patience::new(crate::LIMIT);
    let told = patience.wait_until(Duration::from_millis(200), || {
        chain(&mut clone) == Some(true)
    });
    assert!(told, "the host was not told");
    assert_eq!(generation(&mut clone), 2);
    let events = noted(&mut clone);
    let began = events.iter().filter(|event| *event == "began").count();
    assert_eq!(began, 1, "{events:?}");
    no_complaints(&mut clone);
}

/// Nobody calls. The kernel's driver hears of the generation and reseeds, and only then the counter moves.
#[test]
fn where_the_notification_comes_first_the_counter_moves_after_the_kernel_has_reseeded() {
    let mut vm = boot(Guest::Small);
    trace(&mut vm);
    let events = events_of_a_notification(vm);
    let forked = position(&events, "forked").unwrap_or_else(|| panic!("{events:?}"));
    // What came before is the generator's own: a young one is reseeded every few seconds.
    check_order(&events[forked..]);
    assert_eq!(position(&events[..forked], "began"), None, "{events:?}");
}

/// The same where the kernel's driver is absent and ours has the device.
#[test]
fn where_the_device_is_ours_the_counter_moves_after_the_reseeding() {
    let boot = Boot::new(Guest::Small).cmdline("module_blacklist=vmgenid");
    let mut vm = boot_with(boot, "");
    trace(&mut vm);
    let events = events_of_a_notification(vm);
    check_order(&events);
    // Those of the kernel who want to hear of a fork are told when no lock is held.
    let (began, forked) = (position(&events, "began"), position(&events, "forked"));
    assert!(began < forked, "{events:?}");
}

fn check_order(events: &[String]) {
    let order = ["reseeded", "began"].map(|name| position(events, name));
    assert!(
        order.iter().all(Option::is_some) && order.is_sorted(),
        "{events:?}"
    );
}

fn events_of_a_notification(mut vm: Vm) -> Vec<String> {
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    assert!(clone.wait_adapted().adapted);
    let events = noted(&mut clone);
    assert_eq!(generation(&mut clone), 2);
    no_complaints(&mut clone);
    events
}
