//! Snapshots that the host asks for, with `sysgenctl agent` in the guest: hooks of each stage, and what goes amiss.

use std::collections::HashSet;
use std::time::Duration;

use vm_agent::patience::{Patience, stretched};
use vmgenie_api::wire::{
    CooperativeCreate, CooperativeCreated, MAX_QUIESCE_MS, Missing, SnapshotFallback, SnapshotHow,
};
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::examples::secrets;
use crate::{LIMIT, boot, boot_with, generation, no_complaints};

const ETC: &str = "/etc/sysgenid";
const AGENT: &str = "sysgenctl agent --require-success --retry 500ms --state /tmp/state";
const RAN: &str = "cat /tmp/ran 2>/dev/null || true";
const RESUMED: [&str; 2] = ["resume 10-first", "resume 20-second"];
const STAGES: [&str; 4] = [
    "quiesce.d",
    "adapt.d/identity",
    "adapt.d/service",
    "resume.d",
];

/// They are waited for.
const PARTICIPANTS: [&str; 2] = ["c/participant", "rust/participant"];

/// Writes a hook that notes its stage and its name, and then does `command`.
pub(super) fn hook(vm: &mut Vm, stage: &str, name: &str, command: &str) {
    let note = format!("echo $SYSGENID_STAGE {name} $SYSGENID_OUTCOME >> /tmp/ran");
    let script = format!("#!/bin/sh\\n{note}\\n{command}\\n");
    vm.shell(&format!("mkdir -p {ETC}/{stage}"));
    let file = format!("{ETC}/{stage}/{name}");
    vm.shell(&format!("printf '{script}' > {file} && chmod 755 {file}"));
}

/// Starts the agent, and waits until requests come to it.
pub(super) fn start_agent(vm: &mut Vm, options: &str) {
    vm.shell(&format!("mkdir -p {ETC}; : > /tmp/agent"));
    vm.shell(&format!(
        "{AGENT} {options} > /tmp/agent 2>&1 & echo $! > /tmp/pid"
    ));
    until(vm, "the host was told");
}

/// Waits until the agent has said that.
pub(super) fn until(vm: &mut Vm, said: &str) {
    until_in(vm, "/tmp/agent", said);
}

/// Waits until a file has that in it.
fn until_in(vm: &mut Vm, file: &str, said: &str) {
    let mut patience = Patience::new(LIMIT);
    loop {
        let log = vm.shell(&format!("cat {file}"));
        if log.contains(said) {
            return;
        }
        assert!(!patience.is_over(), "no {said:?} in {log}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A guest with two hooks in each stage, and an agent.
fn with_agent(guest: Guest, options: &str) -> Vm {
    let mut vm = boot(guest);
    for stage in STAGES {
        for name in ["10-first", "20-second"] {
            hook(&mut vm, stage, name, "");
        }
    }
    start_agent(&mut vm, options);
    vm
}

/// Asks for a snapshot; the guest may take so long to be quiet.
fn ask(
    vm: &mut Vm,
    quiesce: Duration,
    fallback: SnapshotFallback,
) -> Result<(Snapshot, CooperativeCreated), String> {
    let snapshot = Snapshot::new();
    let mut request = snapshot.request();
    request.cooperative = Some(CooperativeCreate {
        quiesce_ms: (quiesce.as_millis() as u64).min(MAX_QUIESCE_MS),
        fallback,
    });
    let made = vm.client.create_snapshot(&request);
    let made = made.map_err(|error| error.to_string())?;
    Ok((snapshot, made.cooperation.expect("it was asked for")))
}

/// The same with time enough, where it must succeed.
pub(super) fn taken(vm: &mut Vm) -> (Snapshot, CooperativeCreated) {
    let taken = ask(vm, stretched(LIMIT), SnapshotFallback::Refuse);
    taken.unwrap_or_else(|error| panic!("{error}: {}", vm.shell("cat /tmp/agent")))
}

/// The same where it must be refused: why.
pub(super) fn refused(vm: &mut Vm, quiesce: Duration) -> String {
    match ask(vm, stretched(quiesce), SnapshotFallback::Refuse) {
        Ok((_, made)) => panic!("{made:?}: {}", vm.shell("cat /tmp/agent")),
        Err(why) => why,
    }
}

/// What the hooks have noted, when the last of it is there.
pub(super) fn ran(vm: &mut Vm, last: &str) -> Vec<String> {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = vm.shell(RAN);
        let lines: Vec<String> = text.lines().map(|line| line.trim_end().into()).collect();
        if lines.last().is_some_and(|line| line == last) {
            return lines;
        }
        assert!(
            !patience.is_over(),
            "{text}: {}",
            vm.shell("cat /tmp/agent")
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The hooks of `resume.d` with an outcome.
fn resumed(outcome: &str) -> [String; 2] {
    RESUMED.map(|hook| format!("{hook} {outcome}"))
}

#[test]
fn services_are_quiesced_backwards_the_original_resumes_and_clones_adapt_in_two_stages() {
    let mut vm = with_agent(Guest::Small, "");
    let (snapshot, made) = taken(&mut vm);
    assert_eq!(made.how, SnapshotHow::ForkPoint, "{made:?}");
    let waited = made.waited_for;
    // The small guest has no control groups, and the agent goes on without.
    assert!(waited.agent && waited.hooks && waited.parked && !waited.frozen);
    let quiesced = ["quiesce 20-second", "quiesce 10-first"].map(str::to_owned);
    let [_, last] = resumed("original");
    assert_eq!(
        ran(&mut vm, &last),
        [quiesced.clone(), resumed("original")].concat()
    );
    assert_eq!(generation(&mut vm), 0, "the original is no clone");
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        let waited = clone.wait_adapted_of(Some(1));
        assert!(waited.adapted, "{:?}", waited.missing);
        let adapted = [
            "identity 10-first",
            "identity 20-second",
            "service 10-first",
            "service 20-second",
        ];
        let expected = [
            &quiesced[..],
            &adapted.map(str::to_owned),
            &resumed("clone"),
        ];
        assert_eq!(ran(&mut clone, "resume 20-second clone"), expected.concat());
        assert_eq!(generation(&mut clone), 2);
        assert_eq!(clone.run("[ -e /run/sysgenid/quiesced ]").0, 1);
        no_complaints(&mut clone);
    }
    no_complaints(&mut vm);
    // It goes on, and can be asked again.
    taken(&mut vm);
}

#[test]
fn a_quiesce_hook_that_fails_or_hangs_is_a_refusal_and_services_go_on() {
    let mut vm = with_agent(Guest::Small, "");
    for (command, limit, why) in [
        ("exit 1", LIMIT, "one of its quiesce hooks failed"),
        (
            "trap : TERM; while :; do sleep 1; done",
            Duration::from_secs(8),
            "one of its quiesce hooks did not end in time",
        ),
    ] {
        vm.shell("rm -f /tmp/ran");
        hook(&mut vm, "quiesce.d", "20-second", command);
        let error = refused(&mut vm, limit);
        assert!(
            error.contains(why),
            "{error}: {}",
            vm.shell("cat /tmp/agent")
        );
        let expected = [
            &["quiesce 20-second".to_owned()][..],
            &resumed("called-off"),
        ];
        let last = "resume 20-second called-off";
        assert_eq!(ran(&mut vm, last), expected.concat(), "{command}");
    }
    // The machine is snapshotted nevertheless if the caller wants it, and says why it took no part.
    hook(&mut vm, "quiesce.d", "20-second", "exit 1");
    let (_, made) = ask(&mut vm, stretched(LIMIT), SnapshotFallback::Plain).unwrap();
    assert_eq!(made.how, SnapshotHow::Plain);
    assert!(
        made.why_plain
            .is_some_and(|why| why.contains("hooks failed"))
    );
    vm.client.resume().ok();
    // Mended, it takes part.
    vm.shell("rm -f /tmp/ran");
    hook(&mut vm, "quiesce.d", "20-second", "");
    assert_eq!(taken(&mut vm).1.how, SnapshotHow::ForkPoint);
    ran(&mut vm, "resume 20-second original");
    no_complaints(&mut vm);
}

#[test]
fn an_agent_that_is_killed_while_it_quiesces_is_a_refusal_and_the_next_one_resumes() {
    let mut vm = with_agent(Guest::Small, "");
    hook(
        &mut vm,
        "quiesce.d",
        "20-second",
        "kill -9 $PPID; sleep 1000",
    );
    let error = refused(&mut vm, LIMIT);
    assert!(error.contains("its agent has ended"), "{error}");
    vm.shell("[ -e /run/sysgenid/quiesced ]");
    assert_eq!(vm.shell(RAN), "quiesce 20-second\n");
    start_agent(&mut vm, "");
    let expected = [
        &["quiesce 20-second".to_owned()][..],
        &resumed("called-off"),
    ];
    assert_eq!(
        ran(&mut vm, "resume 20-second called-off"),
        expected.concat()
    );
    assert_eq!(vm.run("[ -e /run/sysgenid/quiesced ]").0, 1);
    no_complaints(&mut vm);
}

#[test]
fn participants_are_parked_at_the_fork_point_and_clones_renew_before_the_next_piece() {
    let mut vm = boot_with(Boot::new(Guest::Small).extras(), "");
    for program in PARTICIPANTS {
        vm.shell(&format!("/examples/{program} > {} 2>&1 &", output(program)));
        until_in(&mut vm, &output(program), "secret: ");
    }
    start_agent(&mut vm, "");
    let (snapshot, made) = taken(&mut vm);
    assert!(made.waited_for.parked, "{made:?}");
    let mut known = HashSet::new();
    for program in PARTICIPANTS {
        until_in(&mut vm, &output(program), "parked: goes on");
        known.extend(secrets(&vm.shell(&format!("cat {}", output(program)))));
    }
    assert_eq!(known.len(), 2, "the original keeps its secrets");
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        assert!(clone.wait_adapted_of(Some(1)).adapted);
        for program in PARTICIPANTS {
            let file = output(program);
            until_in(&mut clone, &file, "generation 2: renewed\nsecret: ");
            let text = clone.shell(&format!("cat {file}"));
            assert!(text.contains("\nparked: a clone\ngeneration 2"), "{text}");
            let last = secrets(&text).pop().expect("a secret");
            assert!(known.insert(last), "{program}: drawn before: {text}");
        }
        no_complaints(&mut clone);
    }
    // One that does not park is waited for, and nothing comes of the request.
    vm.shell("killall -STOP participant");
    let error = refused(&mut vm, Duration::from_secs(8));
    assert!(error.contains("have not parked in time"), "{error}");
    vm.shell("killall -CONT participant");
    taken(&mut vm);
    no_complaints(&mut vm);
}

/// The file with what the example has said.
fn output(program: &str) -> String {
    format!("/tmp/{}", program.replace('/', "-"))
}

/// Puts all processes of a guest without a service manager where systemd has them: process 1 and the shell
/// into a group that is kept, a program that counts into one that is frozen.
fn with_groups(vm: &mut Vm) {
    vm.shell("mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    vm.shell("cd /sys/fs/cgroup && mkdir init.scope sysgenid.slice web.slice");
    // Threads of the kernel stay.
    vm.shell(
        "for p in $(cat /sys/fs/cgroup/cgroup.procs); do \
         echo $p > /sys/fs/cgroup/init.scope/cgroup.procs; done 2>/dev/null; true",
    );
    vm.shell(
        "sh -c 'echo 0 > /sys/fs/cgroup/web.slice/cgroup.procs; \
         while :; do echo >> /tmp/beats; sleep 0.1; done' &",
    );
}

const FROZEN: &str = "grep -q frozen.1 /sys/fs/cgroup/web.slice/cgroup.events";

/// Starts the agent in a slice of its own.
fn agent_in_slice(vm: &mut Vm, options: &str) {
    vm.shell(&format!("mkdir -p {ETC}; : > /tmp/agent"));
    vm.shell(&format!(
        "sh -c 'echo 0 > /sys/fs/cgroup/sysgenid.slice/cgroup.procs; echo $$ > /tmp/pid; \
         exec {AGENT} {options} > /tmp/agent 2>&1' &"
    ));
    until(vm, "the host was told");
}

#[test]
fn programs_are_frozen_at_the_fork_point_and_in_a_clone_until_it_has_its_identity() {
    let mut vm = boot(Guest::Debian);
    with_groups(&mut vm);
    let note = format!("{FROZEN} && echo frozen >> /tmp/ran; true");
    for stage in STAGES {
        hook(&mut vm, stage, "10-look", &note);
    }
    agent_in_slice(&mut vm, "--freeze required");
    let (snapshot, made) = taken(&mut vm);
    assert!(made.waited_for.frozen, "{made:?}");
    assert_eq!(
        ran(&mut vm, "resume 10-look original"),
        ["quiesce 10-look", "resume 10-look original"]
    );
    beats(&mut vm);
    let mut clone = Vm::restore(&snapshot);
    let waited = clone.wait_adapted_of(Some(1));
    assert!(waited.adapted, "{:?}", waited.missing);
    let expected = [
        "quiesce 10-look",
        "identity 10-look",
        "frozen",
        "service 10-look",
        "resume 10-look clone",
    ];
    assert_eq!(ran(&mut clone, "resume 10-look clone"), expected);
    beats(&mut clone);
    assert_eq!(clone.run("[ -e /run/sysgenid/frozen ]").0, 1);
    no_complaints(&mut clone);
}

/// Waits until the program has counted on.
fn beats(vm: &mut Vm) {
    let count = "wc -l < /tmp/beats";
    let before = vm.shell(count);
    let mut patience = Patience::new(LIMIT);
    while vm.shell(count) == before {
        assert!(!patience.is_over(), "it stands still");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_clone_whose_agent_is_killed_frozen_stays_so_until_it_is_thawed_and_the_next_agent_adapts() {
    let mut vm = boot(Guest::Debian);
    with_groups(&mut vm);
    hook(&mut vm, "quiesce.d", "10-hook", "");
    hook(&mut vm, "resume.d", "10-hook", "");
    let once = "[ -e /tmp/killed ] || { touch /tmp/killed; kill -9 $PPID; exec sleep 1000; }";
    hook(&mut vm, "adapt.d/identity", "10-hook", once);
    agent_in_slice(&mut vm, "--freeze required");
    let (snapshot, _) = taken(&mut vm);
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    let gone = "while [ -e /proc/$(cat /tmp/pid)/exe ]; do sleep 0.1; done";
    clone.shell(gone);
    // Nobody else thaws.
    clone.shell(FROZEN);
    let said = clone.shell("sysgenctl thaw --json");
    assert_eq!(said, "{\"groups\":1}\n");
    assert_eq!(clone.run(FROZEN).0, 1);
    beats(&mut clone);
    let waited = clone.client.wait_for_generation(Duration::ZERO).unwrap();
    assert!(waited.missing.contains(&Missing::Agent), "{waited:?}");
    agent_in_slice(&mut clone, "--freeze required");
    let waited = clone.wait_adapted_of(Some(1));
    assert!(waited.adapted, "{:?}", waited.missing);
    let expected = [
        "quiesce 10-hook",
        "identity 10-hook",
        "identity 10-hook",
        "resume 10-hook clone",
    ];
    assert_eq!(ran(&mut clone, "resume 10-hook clone"), expected);
    no_complaints(&mut clone);
}
