//! The user's terminal: raw while the guest has it, as it was afterwards.

use std::time::Duration;

use vmgenie_tests::Guest;
use vmgenie_tests::process::{signal, wait_until};
use vmgenie_tests::pty::OnTerminal;

use crate::vmgenie;

const LIMIT: Duration = Duration::from_secs(60);

/// A guest in the foreground of a terminal; with the settings that the terminal had.
fn start(words: &str) -> OnTerminal {
    let kernel = Guest::Tiny.kernel();
    let kernel = kernel.to_str().unwrap();
    let arguments = [
        "run",
        "--kernel",
        kernel,
        "--cmdline",
        words,
        "--memory",
        "32M",
    ];
    let mut command = vmgenie(arguments);
    OnTerminal::start(&mut command)
}

/// Starts an echoing guest, has `end` end it, and returns the exit status. The terminal must have been raw before and be as it
/// was first afterwards.
fn restored_after(end: impl FnOnce(&mut OnTerminal)) -> Option<i32> {
    let fresh = OnTerminal::start(&mut vmgenie(["--version"])).settings();
    assert!(!fresh.is_raw());
    let mut terminal = start("echo");
    terminal.wait_for("ready", LIMIT);
    wait_until("the terminal is raw", LIMIT, || {
        terminal.settings().is_raw()
    });
    end(&mut terminal);
    let status = terminal.wait(LIMIT);
    assert_eq!(terminal.settings(), fresh, "{}", terminal.screen_text());
    status.code()
}

#[test]
fn ctrl_a_x_ends_the_machine_and_restores_the_terminal() {
    let status = restored_after(|terminal| {
        // Ctrl-C is the guest's.
        terminal.send(b"\x03abc");
        terminal.wait_for("\u{3}abc", LIMIT);
        terminal.send(b"\x01x");
    });
    assert_eq!(status, Some(0));
}

#[test]
fn ctrl_a_twice_sends_one_to_the_guest() {
    let status = restored_after(|terminal| {
        terminal.send(b"<\x01\x01>");
        terminal.wait_for("<\u{1}>", LIMIT);
        terminal.send(b"\x01");
        terminal.send(b"x");
    });
    assert_eq!(status, Some(0));
}

#[test]
fn signals_end_the_machine_and_restore_the_terminal() {
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let status = restored_after(|terminal| signal(terminal.pid(), number));
        assert_eq!(status, Some(0), "signal {number}");
    }
}

#[test]
fn a_triple_fault_restores_the_terminal_and_tells_why() {
    let status = restored_after(|terminal| {
        terminal.send(b"!");
        terminal.wait_for("triple fault", LIMIT);
    });
    assert_eq!(status, Some(3));
}

#[test]
fn fatal_signals_restore_the_terminal() {
    for number in [libc::SIGABRT, libc::SIGSEGV, libc::SIGQUIT] {
        let status = restored_after(|terminal| signal(terminal.pid(), number));
        assert_eq!(status, None, "signal {number} ends it, not an exit");
    }
}

#[test]
fn a_guest_that_crashes_at_once_leaves_the_terminal_as_it_was() {
    let fresh = OnTerminal::start(&mut vmgenie(["--version"])).settings();
    let mut terminal = start("crash");
    assert_eq!(terminal.wait(LIMIT).code(), Some(3));
    assert_eq!(terminal.settings(), fresh);
}

#[test]
fn a_kernel_that_is_missing_leaves_the_terminal_as_it_was() {
    let fresh = OnTerminal::start(&mut vmgenie(["--version"])).settings();
    let mut terminal = OnTerminal::start(&mut vmgenie(["run", "--kernel", "/nowhere"]));
    assert_eq!(terminal.wait(LIMIT).code(), Some(1));
    assert_eq!(terminal.settings(), fresh);
}
