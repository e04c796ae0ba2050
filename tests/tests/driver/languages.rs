//! Programs that take part by `sysgenctl participate`.

use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_api::wire::{CooperativeCreate, MAX_QUIESCE_MS};
use vmgenie_tests::snapshot::Snapshot;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot_with, no_complaints};

const AGENT: &str = "mkdir -p /etc/sysgenid; sysgenctl agent > /tmp/agent 2>&1 &";
/// Answers as a program would, and notes what it has heard.
const PROGRAM: [&str; 9] = [
    "mkfifo /tmp/say",
    "exec 3<> /tmp/say",
    "sysgenctl participate < /tmp/say 3>&- | while read -r line",
    "do number=$(echo \"$line\" | tr -dc 0-9)",
    "case $line in *pending*) echo \"parked $number\" >&3",
    ";; *clone* | *'\"generation\",'*) echo \"adapted $number\" >&3",
    ";; esac",
    "echo \"$line\" >> /tmp/heard",
    "done",
];

/// Waits until a file has that in it, and returns its text.
fn until(vm: &mut Vm, file: &str, said: &str) -> String {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = vm.shell(&format!("cat {file} 2> /dev/null; true"));
        if text.contains(said) {
            return text;
        }
        let log = vm.shell("cat /tmp/agent 2> /dev/null; true");
        assert!(!patience.is_over(), "no {said:?} in {text:?}: {log}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A snapshot for which all programs that take part have parked.
fn parked(vm: &mut Vm) -> Snapshot {
    vm.shell(AGENT);
    until(vm, "/tmp/agent", "the host was told");
    let snapshot = Snapshot::new();
    let mut request = snapshot.request();
    request.cooperative = Some(CooperativeCreate {
        quiesce_ms: MAX_QUIESCE_MS,
        ..CooperativeCreate::default()
    });
    let made = vm.client.create_snapshot(&request).expect("a snapshot");
    let made = made.cooperation.expect("it was asked for");
    assert!(made.waited_for.parked, "{made:?}");
    snapshot
}

#[test]
fn a_program_without_ioctl_is_parked_by_its_helper() {
    let mut vm = boot_with(Boot::new(Guest::Small), "");
    let program = PROGRAM.join("; ").replace("; ;;", " ;;");
    vm.shell(&format!("({program}) > /tmp/errors 2>&1 &"));
    until(&mut vm, "/tmp/heard", "ready");
    let snapshot = parked(&mut vm);
    let heard = until(&mut vm, "/tmp/heard", "forked");
    assert_eq!(
        heard.lines().map(str::trim_end).collect::<Vec<_>>(),
        [
            r#"{"event":"ready","generation":0,"parks":true}"#,
            r#"{"event":"pending","request":1}"#,
            r#"{"event":"forked","generation":0,"role":"original"}"#,
        ]
    );
    let mut clone = Vm::restore(&snapshot);
    // This waits for all who are tracked, and so for its acknowledgement.
    assert!(clone.wait_adapted_of(Some(1)).adapted);
    let heard = until(&mut clone, "/tmp/heard", "clone");
    let last = heard.lines().last().map(str::trim_end);
    assert_eq!(
        last,
        Some(r#"{"event":"forked","generation":2,"role":"clone"}"#)
    );
    // One that nobody has asked for.
    clone.shell("sysgenctl trigger");
    until(
        &mut clone,
        "/tmp/heard",
        r#"{"event":"generation","generation":3}"#,
    );
    clone.shell("sysgenctl wait");
    assert_eq!(clone.shell("cat /tmp/errors"), "");
    no_complaints(&mut clone);
}
