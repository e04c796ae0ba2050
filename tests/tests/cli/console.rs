//! `vmgenie console`: attaching to a machine that runs elsewhere.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use vmgenie_tests::process::{signal, wait_until};
use vmgenie_tests::pty::OnTerminal;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use crate::{fail, vmgenie};

const LIMIT: Duration = Duration::from_secs(60);

fn attach(vm: &Vm) -> OnTerminal {
    let mut terminal = OnTerminal::start(&mut vmgenie(["console", vm.socket().to_str().unwrap()]));
    terminal.wait_for("Attached", LIMIT);
    wait_until("the terminal is raw", LIMIT, || {
        terminal.settings().is_raw()
    });
    terminal
}

#[test]
fn a_terminal_attaches_types_and_detaches_and_the_machine_goes_on() {
    let mut vm = tiny::boot("echo");
    let fresh = OnTerminal::start(&mut vmgenie(["--version"])).settings();
    let mut terminal = attach(&vm);
    // What it said before anybody attached; and Ctrl-C and Ctrl-A are the guest's.
    terminal.wait_for("ready", LIMIT);
    terminal.send(b"a\x03\x01\x01b\x01x");
    terminal.wait_for("a\u{3}\u{1}b\u{1}x", LIMIT);
    // It is said where it was said before, too.
    vm.console.wait_for("a\u{3}\u{1}b\u{1}x", LIMIT);
    terminal.send(b"\x01d");
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    assert_eq!(terminal.settings(), fresh, "{}", terminal.screen_text());
    assert!(terminal.screen_text().contains("Detached."));
    tiny::echo(&mut vm, "still there");
}

#[test]
fn two_terminals_see_the_same_and_both_may_type() {
    let mut vm = tiny::boot("echo");
    let (mut first, mut second) = (attach(&vm), attach(&vm));
    first.send(b"one");
    second.wait_for("one", LIMIT);
    second.send(b"two");
    first.wait_for("two", LIMIT);
    tiny::echo(&mut vm, "three");
    first.wait_for("three", LIMIT);
    second.wait_for("three", LIMIT);
}

#[test]
fn a_signal_restores_the_terminal() {
    let vm = tiny::boot("echo");
    let fresh = OnTerminal::start(&mut vmgenie(["--version"])).settings();
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut terminal = attach(&vm);
        signal(terminal.pid(), number);
        assert_eq!(terminal.wait(LIMIT).code(), Some(0), "signal {number}");
        assert_eq!(terminal.settings(), fresh);
    }
}

#[test]
fn the_end_of_the_machine_ends_the_console() {
    let vm = tiny::boot("echo");
    let mut terminal = attach(&vm);
    terminal.send(b"bye!");
    terminal.wait_for("The machine has ended.", LIMIT);
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    assert!(terminal.screen_text().contains("bye!"), "its last words");
}

/// Attached without a terminal.
fn piped(machine: &str) -> Child {
    let mut command = vmgenie(["console", machine]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_pipe_types_and_reads_on_until_the_machine_ends() {
    let vm = tiny::boot("echo");
    let mut child = piped(vm.socket().to_str().unwrap());
    let mut input = child.stdin.take().unwrap();
    // Far more than the guest takes at once; Ctrl-A is not looked for.
    let text = "0123456789\u{1}d".repeat(500);
    input.write_all(text.as_bytes()).unwrap();
    input.write_all(b"!").unwrap();
    drop(input);
    let mut seen = String::new();
    let mut output = child.stdout.take().unwrap();
    output.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, format!("ready\n{text}!"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_paused_guest_takes_what_was_typed_when_it_goes_on() {
    let mut vm = tiny::boot("echo");
    vm.client.pause().unwrap();
    let mut terminal = attach(&vm);
    let text = "x".repeat(300);
    terminal.send(text.as_bytes());
    // The API serves others meanwhile, and so does the machine.
    let snapshot = Snapshot::new();
    snapshot.create(&mut vm.client);
    vm.client.resume().unwrap();
    terminal.wait_for(&text, LIMIT);
}

#[test]
fn a_machine_is_found_by_its_name_and_one_that_is_not_there_is_told() {
    let place = Snapshot::new();
    let runtime = place.dir().to_str().unwrap().to_owned();
    let environment = [("XDG_RUNTIME_DIR", runtime.as_str())];
    let kernel = Guest::Tiny.kernel();
    let arguments = [
        "run".to_owned(),
        format!("--kernel={}", kernel.display()),
        "--cmdline=echo".to_owned(),
        "--memory=32M".to_owned(),
        "--id=box-1".to_owned(),
    ];
    let mut vm = Vm::spawn(&arguments, &environment);
    vm.console.wait_for("ready\n", LIMIT);
    let mut command = vmgenie(["console", "box-1"]);
    let mut terminal = OnTerminal::start(command.envs(environment));
    terminal.wait_for("Attached to box-1", LIMIT);
    terminal.wait_for("ready", LIMIT);
    terminal.send(b"\x01d");
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    fail(["console", "nobody"], 1, "there is no machine nobody");
    fail(["console", "/nowhere/api.sock"], 1, "/nowhere/api.sock");
}

#[test]
fn a_linux_shell_is_used_over_an_attached_console() {
    let vm = Boot::new(Guest::Small).ready();
    let mut terminal = attach(&vm);
    terminal.wait_for("@@ready", LIMIT);
    terminal.send(b"echo $((6 * 7)) is the answer\n");
    terminal.wait_for("42 is the answer", LIMIT);
    terminal.send(b"poweroff -f\n");
    terminal.wait_for("The machine has ended.", LIMIT);
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
}
