//! What the program says of itself.

use std::io::Read;
use std::process::Stdio;

use crate::{fail, run, succeed, vmgenie};

const COMMANDS: [&str; 14] = [
    "run",
    "api",
    "pause",
    "resume",
    "info",
    "generation",
    "snapshot",
    "restore",
    "clone",
    "fork",
    "ps",
    "console",
    "stop",
    "completions",
];

#[test]
fn the_help_of_every_command_has_an_example_of_it() {
    let top = succeed(["--help"]);
    assert!(
        top.contains("Exit status:") && top.contains("Examples:"),
        "{top}"
    );
    for command in COMMANDS {
        assert!(top.contains(command), "{command} is not in the list: {top}");
        for arguments in [vec![command, "--help"], vec!["help", command]] {
            let help = succeed(arguments);
            assert!(help.contains("Usage: vmgenie"), "{help}");
            assert!(help.contains("Example"), "no example of {command}: {help}");
            assert!(help.contains(&format!("  vmgenie {command} ")), "{help}");
        }
    }
}

#[test]
fn com_04_the_first_line_of_the_version_is_firecrackers() {
    let both = succeed(["--version"]);
    let (firecracker, vmgenie) = both.split_once('\n').unwrap();
    let numbers: Vec<_> = firecracker
        .strip_prefix("Firecracker v")
        .unwrap()
        .split('.')
        .collect();
    assert!(
        numbers.len() == 3 && numbers.iter().all(|it| it.parse::<u8>().is_ok()),
        "{both}"
    );
    assert!(vmgenie.starts_with("vmgenie 0."), "{both}");
    assert_eq!(succeed(["-V"]), vmgenie);
}

#[test]
fn completions_are_made_for_three_shells_and_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(["completions", shell]);
        for command in COMMANDS {
            assert!(
                script.contains(command),
                "{command} is not in the completions for {shell}"
            );
        }
    }
    fail(
        ["completions", "tcsh"],
        2,
        "possible values: bash, zsh, fish",
    );
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_right() {
    let cases: [(&[&str], &str); 13] = [
        (&["explode"], "unrecognized subcommand"),
        (&["run"], "--kernel <FILE>"),
        (&["api"], "--api-sock <PATH>"),
        (&["pause"], "MACHINE"),
        (
            &["info", "a.sock", "--api-sock", "b.sock"],
            "cannot be used with",
        ),
        (&["run", "--kernel", "k", "--memory", "12"], "32"),
        (&["run", "--kernel", "k", "--memory", "lots"], "--memory"),
        (&["run", "--kernel", "k", "--cpus", "0"], "--cpus"),
        (&["run", "--kernel", "k", "--cpus", "33"], "32"),
        (&["clone", "dir", "-n", "0"], "0 is not in 1..=1000"),
        (&["clone", "dir"], "-n"),
        (
            &["restore", "dir", "--api-sock", "s", "--generation", "other"],
            "new, keep",
        ),
        (
            &["run", "--kernel", "k", "--on-reboot", "dance"],
            "restart, exit",
        ),
    ];
    for (arguments, part) in cases {
        fail(arguments, 2, part);
    }
    assert_eq!(run::<&str>([]).status.code(), Some(2), "no command at all");
}

#[test]
fn output_into_a_closed_pipe_is_no_crash() {
    for arguments in [&["--help"][..], &["completions", "bash"]] {
        let mut command = vmgenie(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let mut told = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut told)
            .unwrap();
        let status = child.wait().unwrap();
        assert!(
            status.code().is_some() && !told.contains("panicked"),
            "{status}: {told}"
        );
    }
}
