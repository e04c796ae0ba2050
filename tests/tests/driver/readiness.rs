//! Nobody is taken for adapted because nobody was there.

use std::time::{Duration, Instant};

use vmgenie_api::wire::{GenerationWait, GenerationWaited, Missing, Watchers};
use vmgenie_tests::{Guest, Vm};

use crate::agent::hook;
use crate::{LIMIT, boot, boot_with, no_complaints, start};
use vmgenie_tests::vm::Boot;

const AGENT: &str =
    "sysgenctl agent --require-success --retry 500ms --hooks /hooks --state /tmp/state";

/// The answer for so many agents.
fn wait(vm: &mut Vm, agents: Option<u32>, timeout: Duration) -> GenerationWaited {
    let wait = GenerationWait {
        timeout_ms: timeout.as_millis() as u64,
        agents,
        ..GenerationWait::default()
    };
    vm.client.wait_for(&wait).unwrap()
}

/// The same at once.
fn missing(vm: &mut Vm, agents: Option<u32>) -> Vec<Missing> {
    wait(vm, agents, Duration::ZERO).missing
}

fn until(vm: &mut Vm, what: &str, command: &str, said: &str) {
    let deadline = Instant::now() + LIMIT;
    while vm.shell(command) != said {
        assert!(Instant::now() < deadline, "{what}: {:?}", vm.shell(command));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A guest with an agent that has told the host of itself.
fn with_agent(guest: Guest) -> Vm {
    let mut vm = boot(guest);
    hook(
        &mut vm,
        "10-hangs",
        "echo began >> /tmp/ran; while [ ! -e /tmp/go ]; do sleep 0.1; done",
    );
    assert_eq!(missing(&mut vm, Some(1)), [Missing::Agent]);
    vm.shell(&format!("{AGENT} > /tmp/agent 2>&1 & echo $! > /tmp/pid"));
    let waited = wait(&mut vm, Some(1), LIMIT);
    assert!(waited.adapted, "{waited:?}: {}", vm.shell("cat /tmp/agent"));
    vm
}

/// An agent that dies in the middle of its hooks closes its file like one that has finished.
fn an_agent_is_killed(guest: Guest) {
    let mut vm = with_agent(guest);
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    until(
        &mut clone,
        "the hook",
        "cat /tmp/ran 2>/dev/null || true",
        "began\n",
    );
    clone.shell("kill -9 $(cat /tmp/pid)");
    until(
        &mut clone,
        "its end",
        "cat /sys/kernel/debug/sysgenid/watchers",
        "0\n",
    );
    // To programs nobody is outdated any more. The host knows that nothing was done.
    assert_eq!(clone.shell("sysgenctl wait"), "Nobody is outdated.\n");
    assert_eq!(
        missing(&mut clone, None),
        [Missing::Watchers, Missing::Ready]
    );
    assert_eq!(missing(&mut clone, Some(0)), [Missing::Watchers]);
    // The next one finds the generation, runs the hooks and speaks for the one that died.
    clone.shell("touch /tmp/go");
    clone.shell(&format!("{AGENT} > /tmp/agent 2>&1 &"));
    let waited = wait(&mut clone, None, LIMIT);
    assert!(
        waited.adapted,
        "{waited:?}: {}",
        clone.shell("cat /tmp/agent")
    );
    assert_eq!(
        (waited.driver.ready_agents, waited.driver.expected_agents),
        (1, 1)
    );
    assert_eq!(clone.shell("cat /tmp/ran"), "began\nbegan\n");
    no_complaints(&mut clone);
}

#[test]
fn a_machine_whose_agent_is_killed_has_not_adapted_until_another_one_has_done_its_work() {
    an_agent_is_killed(Guest::Debian);
}

#[test]
fn where_the_device_is_ours_too() {
    an_agent_is_killed(Guest::Small);
}

/// The agent is in its pause before a restart when the snapshot is taken, or was never there at all.
#[test]
fn a_machine_without_its_agent_has_not_adapted() {
    let mut vm = with_agent(Guest::Small);
    vm.shell("kill -9 $(cat /tmp/pid)");
    until(
        &mut vm,
        "its end",
        "cat /sys/kernel/debug/sysgenid/watchers",
        "0\n",
    );
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    // The machine had one: it is expected though nobody says so.
    let waited = wait(&mut clone, None, Duration::from_secs(3));
    assert_eq!(waited.missing, [Missing::Agent], "{waited:?}");
    clone.shell("touch /tmp/go");
    clone.shell(&format!("{AGENT} > /tmp/agent 2>&1 &"));
    assert!(wait(&mut clone, None, LIMIT).adapted);

    // One that never had an agent adapts as far as its kernel goes, unless one is asked for.
    let mut vm = boot(Guest::Small);
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    let waited = wait(&mut clone, None, LIMIT);
    assert!(
        waited.adapted && waited.driver.expected_agents == 0,
        "{waited:?}"
    );
    assert_eq!(missing(&mut clone, Some(1)), [Missing::Agent]);
}

#[test]
fn hooks_that_fail_and_a_directory_that_is_refused_are_no_success() {
    let mut vm = with_agent(Guest::Small);
    vm.shell("touch /tmp/go");
    hook(&mut vm, "20-fails", "[ -e /tmp/mended ]");
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    let failed = "grep -q 'not acknowledged' /tmp/agent && echo yes || true";
    until(&mut clone, "an attempt", failed, "yes\n");
    assert_eq!(
        missing(&mut clone, None),
        [Missing::Watchers, Missing::Ready]
    );
    clone.shell("touch /tmp/mended && chmod 777 /hooks");
    let waited = wait(&mut clone, None, Duration::from_secs(3));
    assert_eq!(waited.missing, [Missing::Watchers, Missing::Ready]);
    clone.shell("chmod 755 /hooks");
    assert!(wait(&mut clone, None, LIMIT).adapted);
    no_complaints(&mut clone);
}

/// Anybody can open the device and never acknowledge.
#[test]
fn a_watcher_without_privileges_holds_no_host_up_unless_it_is_asked_for() {
    for abi in ["", "abi=8"] {
        let mut vm = boot_with(Boot::new(Guest::Small), abi);
        let numbering = if abi.is_empty() { "5" } else { "8" };
        start(&mut vm, &format!("sysgenid-test --abi {numbering} idle"));
        let snapshot = vm.snapshot();
        drop(vm);
        let mut clone = Vm::restore(&snapshot);
        let waited = wait(&mut clone, None, LIMIT);
        assert!(waited.adapted, "{waited:?}");
        let driver = waited.driver;
        assert_eq!((driver.outdated_watchers, driver.required_watchers), (1, 0));
        let all = GenerationWait {
            timeout_ms: 0,
            watchers: Watchers::All,
            ..GenerationWait::default()
        };
        let waited = clone.client.wait_for(&all).unwrap();
        assert_eq!(waited.missing, [Missing::Watchers]);
        no_complaints(&mut clone);
    }
}

#[test]
fn what_follows_late_need_not_be_mapped() {
    let mut vm = Boot::new(Guest::Small).booted();
    vm.shell("insmod /modules/sysgenid.ko mmap=0");
    let (status, text) = vm.run("sysgenid-test mmap");
    assert_ne!(status, 0, "{text}");
    assert!(text.contains("errno 19"), "{text}");
    vm.shell("insmod /modules/sysgenid_vmgenid.ko");
    assert_eq!(vm.shell("sysgenid-test mmap"), "ok mmap\n");
    no_complaints(&mut vm);
}
