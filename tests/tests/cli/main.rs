//! The command line as a user types it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod clones;
mod commands;
mod concurrent;
mod console;
mod directories;
mod endings;
mod firecracker;
mod fork;
mod gate;
mod help;
mod jail;
mod killed;
mod last_words;
mod machines;
mod names;
mod restores;
mod templates;
mod terminal;
mod tree;
mod truncated;
mod trust;

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program with these arguments, nothing on its standard input.
pub(crate) fn vmgenie<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(vmgenie_tests::guest::vmgenie());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("VMGENIE_LOG");
    command
}

/// Runs it to its end.
pub(crate) fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    vmgenie(arguments).output().expect("vmgenie starts")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// Runs it; it must succeed and write nothing to standard error. Returns its output.
pub(crate) fn succeed<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(&output), "");
    stdout(&output)
}

/// Runs it with `--json`; it must succeed. Returns the document.
pub(crate) fn json<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Value {
    let mut command = vmgenie(arguments);
    let output = command.arg("--json").output().expect("vmgenie starts");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Runs it; it must fail with `status` and say `part`, on standard error alone.
pub(crate) fn fail<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
    status: i32,
    part: &str,
) -> String {
    let output = run(arguments);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(told.contains(part), "{told:?} lacks {part:?}");
    assert_eq!(stdout(&output), "");
    told
}
