//! `sysgenctl` in a guest: what it prints, and with which status it ends.

use serde_json::{Value, json};
use vmgenie_tests::{Guest, Vm};

use crate::{boot, boot_with, no_complaints, start, told};
use vmgenie_tests::vm::Boot;

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

#[test]
fn status_and_trigger_tell_what_the_driver_has() {
    for (parameters, abi) in [("", 5), ("abi=8", 8)] {
        let mut vm = boot_with(Boot::new(Guest::Small), parameters);
        let status = parsed(&vm.shell("sysgenctl status --json"));
        let expected = json!({
            "device": "/dev/sysgenid",
            "generation": 0,
            "abi": abi,
            "driver": {
                "generation": 0,
                "acknowledged": 0,
                "tracked": 0,
                "outdated": 0,
                "watchers": 1,
                "outdated_watchers": 0,
                "required": 0,
                "required_watchers": 0,
                "ready_agents": 0,
                "role": 0,
                "parked": 0,
            },
        });
        assert_eq!(status, expected);
        let triggered = parsed(&vm.shell("sysgenctl trigger --json"));
        assert_eq!(triggered, json!({"previous": 0, "generation": 1}));
        assert_eq!(vm.shell("sysgenctl trigger --min 100"), "1 -> 100\n");
        assert_eq!(vm.shell("sysgenctl trigger --min 7"), "100 -> 101\n");
        let status = vm.shell("sysgenctl status");
        assert!(
            status.starts_with(&format!("generation: 101\nabi: {abi}\n")),
            "{status}"
        );
        vm.shell("sysgenctl trigger --min 4294967295");
        let (status, text) = vm.run("sysgenctl trigger 2>&1");
        assert_eq!(status, 1, "{text}");
        no_complaints(&mut vm);
    }
}

#[test]
fn waiting_ends_when_nobody_is_outdated_or_the_time_is_over() {
    let mut vm = boot(Guest::Small);
    assert_eq!(vm.shell("sysgenctl wait"), "Nobody is outdated.\n");
    // A watcher that acknowledges nothing, for as long as the shell has it open.
    vm.shell("exec 3<>/dev/sysgenid");
    assert_eq!(
        vm.shell("sysgenctl wait --timeout 1s"),
        "Nobody is outdated.\n"
    );
    vm.shell("sysgenctl trigger");
    let (status, text) = vm.run("sysgenctl wait --timeout 500ms 2>&1");
    assert_eq!(status, 3, "{text}");
    vm.shell("(sysgenctl wait --timeout 50s --json > /tmp/waited 2>&1; echo $? >> /tmp/waited) 3<&- & sleep 1");
    assert_eq!(vm.shell("cat /tmp/waited"), "");
    let text = vm.shell("exec 3<&-; wait; cat /tmp/waited");
    let (line, status) = text.split_once('\n').expect("two lines");
    assert_eq!(status, "0\n");
    let line = parsed(line);
    assert_eq!(line["generation"], 1);
    assert!(line["waited_ms"].as_u64().unwrap() >= 500, "{line}");
    assert!(line["driver"]["watchers"].as_u64().is_some(), "{line}");
    no_complaints(&mut vm);
}

#[test]
fn watching_prints_each_generation_across_a_restore() {
    let mut vm = boot(Guest::Small);
    let (status, text) = vm.run("sysgenctl watch --count 1 --timeout 500ms 2>&1");
    assert_eq!(status, 3, "{text}");
    start(
        &mut vm,
        "(echo ready; sysgenctl watch --count 2 --json; echo status $?)",
    );
    let watched = "while [ $(cat /sys/kernel/debug/sysgenid/watchers) = 0 ]; do sleep 0.1; done";
    vm.shell(watched);
    vm.shell("sysgenctl trigger");
    told(&mut vm, "{");
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    let text = told(&mut clone, "status");
    let lines: Vec<&str> = text.lines().collect();
    let ["ready", first, second, "status 0"] = lines[..] else {
        panic!("{text}");
    };
    assert_eq!(parsed(first), json!({"previous": 0, "generation": 1}));
    assert_eq!(parsed(second), json!({"previous": 1, "generation": 3}));
    no_complaints(&mut clone);
}

#[test]
fn what_cannot_be_done_is_told_by_the_status() {
    let mut vm = Boot::new(Guest::Small).booted();
    let (status, text) = vm.run("sysgenctl status 2>&1");
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("could not open /dev/sysgenid"), "{text}");
    let (status, text) = vm.run("sysgenctl wait --timeout 5 2>&1");
    assert_eq!(status, 2, "{text}");
}
