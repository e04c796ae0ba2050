//! Contracts of the agent over snapshots of a machine: a runtime of AWS Lambda, and hooks for QEMU's guest agent.

use std::time::Duration;

use vmgenie_api::wire::SnapshotHow;
use vmgenie_tests::{Guest, Vm};

use crate::cooperative::{hook, ran, refused, start_agent, taken, until};
use crate::{boot, no_complaints};

/// As stock ones do it: hooks, the wait, hooks, and then one event after another.
const RUNTIME: &str = r#"
api=http://127.0.0.1:9001/2018-06-01/runtime
echo runtime before >> /tmp/ran
wget -q -O - $api/restore/next && echo runtime after >> /tmp/ran
while wget -q -S -O /tmp/event $api/invocation/next 2> /tmp/head; do
    id=$(sed -n "s/.*aws-request-id: //p" /tmp/head | tr -d "\r")
    wget -q -O - --post-data $id,$(cat /tmp/event) $api/invocation/$id/response
done
"#;

const FREEZE: &str = "/etc/sysgenid/freeze.d";

/// A client of the runtime: which event was served.
fn served(vm: &mut Vm, event: &str) -> String {
    let url = "http://127.0.0.1:9001/2015-03-31/functions/function/invocations";
    let answer = vm.shell(&format!("wget -q -O - --post-data {event} {url}"));
    let (id, said) = answer
        .trim_end()
        .split_once(',')
        .unwrap_or_else(|| panic!("{answer:?}"));
    assert_eq!((id.len(), said), (36, event));
    id.to_owned()
}

#[test]
fn a_runtime_waits_over_the_snapshot_and_serves_in_each_clone_and_what_is_frozen_is_thawed_first() {
    let mut vm = boot(Guest::Small);
    vm.shell("ifconfig lo 127.0.0.1 up");
    hook(&mut vm, "freeze.d", "30-db", "echo $1 >> /tmp/ran");
    hook(&mut vm, "adapt.d/identity", "10-first", "");
    hook(&mut vm, "adapt.d/service", "10-first", "");
    let options = format!("--lambda 127.0.0.1:9001 --fsfreeze-hooks {FREEZE}");
    start_agent(&mut vm, &options);
    let error = refused(&mut vm, Duration::from_secs(5));
    assert!(error.contains("did not end in time"), "{error}");
    until(&mut vm, "no runtime waits in restore/next");

    for line in RUNTIME.lines() {
        vm.shell(&format!("printf '%s\\n' '{line}' >> /tmp/runtime"));
    }
    vm.shell("sh /tmp/runtime > /tmp/said 2>&1 &");
    let (snapshot, made) = taken(&mut vm);
    assert_eq!(made.how, SnapshotHow::ForkPoint, "{made:?}");
    let mut quiesced = ["runtime before", "quiesce 30-db", "freeze"]
        .map(str::to_owned)
        .to_vec();
    let mut events = Vec::new();
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        let waited = clone.wait_adapted_of(Some(1));
        assert!(
            waited.adapted,
            "{:?}: {}",
            waited.missing,
            clone.shell("cat /tmp/agent")
        );
        let adapted = [
            "identity 30-db",
            "thaw",
            "identity 10-first",
            "service 10-first",
            "runtime after",
        ];
        let expected = [&quiesced[..], &adapted.map(str::to_owned)].concat();
        assert_eq!(ran(&mut clone, "runtime after"), expected);
        events.extend([served(&mut clone, "one"), served(&mut clone, "two")]);
        let error = refused(&mut clone, Duration::from_secs(20));
        assert!(error.contains("one of its quiesce hooks failed"), "{error}");
        until(&mut clone, "the runtime was restored already");
        no_complaints(&mut clone);
    }
    events.sort_unstable();
    events.dedup();
    assert_eq!(events.len(), 4, "no event has the name of another one");
    // The original is a template: its runtime waits, and it can be forked again.
    quiesced.extend(["resume 30-db original", "thaw"].map(str::to_owned));
    assert_eq!(ran(&mut vm, "thaw"), quiesced);
    let (snapshot, _) = taken(&mut vm);
    let mut clone = Vm::restore(&snapshot);
    assert!(clone.wait_adapted_of(Some(1)).adapted);
    served(&mut clone, "three");
    no_complaints(&mut vm);
}
