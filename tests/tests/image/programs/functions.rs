//! Functions with hooks for AWS Lambda's SnapStart, under the stock runtime clients.

use std::collections::BTreeSet;

use vmgenie_api::wire::{CooperativeCreate, Missing, SnapshotFallback};
use vmgenie_tests::Vm;
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::snapshot::Snapshot;

use super::{API, Machine, start, until};
use crate::cooperative::{restored, restored_unadapted, taken};

/// What each runtime client wants of its environment.
const VARIABLES: [&str; 8] = [
    "AWS_LAMBDA_INITIALIZATION_TYPE=snap-start",
    "AWS_LAMBDA_FUNCTION_NAME=function",
    "AWS_LAMBDA_FUNCTION_VERSION=1",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128",
    "AWS_LAMBDA_LOG_GROUP_NAME=group",
    "AWS_LAMBDA_LOG_STREAM_NAME=stream",
    "HOOKS_LOG=/run/hooks",
    "PYTHONPATH=/srv/runtimes",
];
const PYTHON: &str = "/usr/bin/python3 -m awslambdaric function.handler";
const RUST: &str = "/srv/runtimes/guest-lambda";
const BEFORE: &str = "before second, before first, ";
const AFTER: &str = "after first, after second, ";
/// How many numbers a function draws.
const COUNT: usize = 1000;

/// Starts a function anew; `hooks` says what goes wrong in it.
fn serve(vm: &mut Vm, program: &str, hooks: &str) {
    vm.run("systemctl stop function.service; rm -f /run/hooks");
    let api = format!("AWS_LAMBDA_RUNTIME_API={API}");
    let hooks = format!("HOOKS={hooks}");
    let own = [api.as_str(), hooks.as_str()];
    let variables: Vec<&str> = own.into_iter().chain(VARIABLES).collect();
    start(vm, "function", &variables, program);
}

fn hooks(vm: &mut Vm) -> String {
    vm.shell("cat /run/hooks").replace('\n', ", ")
}

/// Draws by an event, as a client of the function would.
fn draws(vm: &mut Vm) -> BTreeSet<String> {
    let event = format!(
        "import urllib.request as r, json; \
         print(*json.load(r.urlopen(\"http://{API}/2015-03-31/functions/function/invocations\", b\"{{\\\"draws\\\":{COUNT}}}\"))[\"draws\"], sep=\"\\n\")"
    );
    let said = vm.shell(&format!("chroot /opt/rt /usr/bin/python3 -c '{event}'"));
    let draws: BTreeSet<_> = said.lines().map(str::to_owned).collect();
    assert_eq!(draws.len(), COUNT, "{said}");
    draws
}

fn log(vm: &mut Vm) -> String {
    vm.shell("journalctl -u sysgenctl-agent.service -o cat --no-pager")
}

/// A function's hooks around two snapshots of a machine that stays a template, and draws of its clones.
fn hooks_are_called(machine: &mut Machine, program: &str, mut number: u8) {
    serve(&mut machine.vm, program, "");
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        // Waits for the function to wait.
        let snapshot = taken(&mut machine.vm);
        assert_eq!(
            hooks(&mut machine.vm),
            BEFORE,
            "{program}: the original goes on waiting"
        );
        let (_namespace, mut clone, _) = restored(&snapshot, machine.disks(), number);
        assert_eq!(hooks(&mut clone), format!("{BEFORE}{AFTER}"), "{program}");
        let drawn = draws(&mut clone);
        let equal = drawn.iter().filter(|draw| seen.contains(*draw)).count();
        println!("{program}: {equal} of {COUNT} draws equal");
        assert_eq!(equal, 0);
        seen.extend(drawn);
        no_complaints(&mut clone);
        number += 1;
    }
}

#[test]
fn stock_clients_have_their_hooks_called_in_order_and_their_failures_are_heard() {
    let mut machine = Machine::new();
    hooks_are_called(&mut machine, PYTHON, 2);
    hooks_are_called(&mut machine, RUST, 4);

    // Before: the snapshot is refused, and the machine goes on.
    serve(&mut machine.vm, RUST, "fail-before");
    until(&mut machine.vm, "! systemctl is-active -q function.service");
    let refused = asked(&mut machine.vm).unwrap_err();
    assert!(refused.contains("hook"), "{refused}");
    assert!(
        log(&mut machine.vm).contains("the pool does not drain"),
        "{}",
        log(&mut machine.vm)
    );

    // After: the clone is not ready, and says why.
    for (hooks, said) in [
        ("fail-after", "the pool does not fill"),
        ("hang-after", "not within"),
    ] {
        serve(&mut machine.vm, RUST, hooks);
        let snapshot = asked(&mut machine.vm).unwrap();
        let (_namespace, mut clone, _) = restored_unadapted(&snapshot, machine.disks(), 6);
        let pattern =
            format!("journalctl -u sysgenctl-agent.service -o cat --no-pager | grep '{said}'");
        let line = until(&mut clone, &pattern);
        println!("{hooks}: {line}");
        let ready = clone.client.ready().unwrap();
        assert!(
            !ready.ready && ready.missing.contains(&Missing::Ready),
            "{ready:?}"
        );
        std::fs::remove_file(machine.disks().join("clone-6.overlay")).unwrap();
    }
}

/// Asks for a snapshot in which the guest takes part, or why there is none.
fn asked(vm: &mut Vm) -> Result<Snapshot, String> {
    let snapshot = Snapshot::new();
    let mut request = snapshot.request();
    request.copy_drives = true;
    request.cooperative = Some(CooperativeCreate {
        quiesce_ms: vmgenie_api::wire::MAX_QUIESCE_MS,
        fallback: SnapshotFallback::Refuse,
    });
    match vm.client.create_snapshot(&request) {
        Ok(_) => Ok(snapshot),
        Err(error) => Err(error.to_string()),
    }
}
