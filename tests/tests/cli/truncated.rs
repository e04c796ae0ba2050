//! A machine whose memory file is cut while it runs, and one that is sent a fatal signal.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use vmgenie_api::client::Client;
use vmgenie_tests::process::{signal, wait_until};
use vmgenie_tests::{Snapshot, tiny};

use crate::vmgenie;

const LIMIT: Duration = Duration::from_secs(60);

/// Restores `snapshot` with its API at `socket`, and waits for that.
fn restored(snapshot: &Snapshot, socket: &str) -> (Child, Client) {
    let dir = snapshot.dir().to_str().unwrap();
    let mut command = vmgenie(["restore", dir, "--serve", socket]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let mut client = Client::new(socket).unwrap();
    wait_until("it answers", LIMIT, || client.info().is_ok());
    (child, client)
}

#[test]
fn a_machine_whose_memory_file_is_cut_ends_with_1_and_names_it() {
    let snapshot = tiny::boot("echo").snapshot();
    let socket = snapshot.dir().join("api.sock");
    let (child, mut client) = restored(&snapshot, socket.to_str().unwrap());
    let memory = File::options().write(true).open(snapshot.memory()).unwrap();
    memory.set_len(4096).unwrap();
    // The guest or the VMM, whichever touches a page first.
    let _ = client.new_generation();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    let named = format!("{:?}, was truncated to 4096 bytes", snapshot.memory());
    assert!(told.contains(&named), "{told}");
}

#[test]
fn a_guest_that_crashes_because_its_memory_file_was_cut_is_not_blamed() {
    let mut original = tiny::boot("echo");
    let snapshot = original.snapshot();
    let dir = snapshot.dir().to_str().unwrap();
    let mut command = vmgenie(["restore", dir]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut echoed = [0];
    std::io::Write::write_all(&mut input, b"a").unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut echoed).unwrap();
    let memory = File::options().write(true).open(snapshot.memory()).unwrap();
    memory.set_len(4096).unwrap();
    // It keeps the next byte in a page that it has not touched yet.
    let _ = std::io::Write::write_all(&mut input, b"b");
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("was truncated to 4096 bytes"), "{told}");
}

#[test]
fn a_fatal_signal_from_outside_ends_the_machine_at_once_and_is_told() {
    let snapshot = tiny::boot("").snapshot();
    let socket = snapshot.dir().join("api.sock");
    for number in [libc::SIGSEGV, libc::SIGBUS, libc::SIGQUIT] {
        let (child, _client) = restored(&snapshot, socket.to_str().unwrap());
        signal(child.id(), number);
        let output = child.wait_with_output().unwrap();
        let ended = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(ended, Some(number));
        let told = String::from_utf8(output.stderr).unwrap();
        let from = format!("which the process {} has sent", std::process::id());
        assert!(told.contains(&from), "{told}");
    }
}
