//! `vmgenie restore` of a directory alone.

use std::process::Stdio;
use std::time::Duration;

use vmgenie_api::client::Client;
use vmgenie_tests::process::wait_until;
use vmgenie_tests::pty::OnTerminal;
use vmgenie_tests::{Snapshot, tiny};

use crate::{fail, vmgenie};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_snapshot_alone_becomes_a_machine_with_this_terminal_as_its_console() {
    let mut original = tiny::boot("echo");
    tiny::echo(&mut original, "before");
    let snapshot = original.snapshot();
    let place = Snapshot::new();
    let socket = place.dir().join("served.sock");
    let dir = snapshot.dir().to_str().unwrap();
    let mut command = vmgenie(["restore", dir, "--serve", socket.to_str().unwrap()]);
    command.args(["--id", "again", "--data", "web-1"]);
    let mut terminal = OnTerminal::start(&mut command);
    let mut client = Client::new(&socket).unwrap();
    wait_until("it answers", LIMIT, || client.info().is_ok());
    // Keys that come before would be shown by the terminal itself.
    wait_until("the terminal is raw", LIMIT, || {
        terminal.settings().is_raw()
    });
    terminal.send(b"after");
    terminal.wait_for("after", LIMIT);
    assert_eq!(client.info().unwrap().id, "again");
    assert_eq!(client.instance_data().unwrap(), "web-1");
    let generation = client.generation().unwrap();
    assert_ne!(generation.id, tiny::generation(&mut original).id);
    // And it can be snapshotted again.
    let second = Snapshot::new();
    client.pause().unwrap();
    second.create(&mut client);
    assert_eq!(tiny::Memory::of(&second).kept(), "beforeafter");
    terminal.send(b"\x01x");
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_restored_machine_that_keeps_its_generation_or_stays_paused_is_asked_for() {
    let mut original = tiny::boot("echo");
    let id = tiny::generation(&mut original).id;
    let snapshot = original.snapshot();
    let place = Snapshot::new();
    let socket = place.dir().join("served.sock");
    let dir = snapshot.dir().to_str().unwrap();
    let arguments = ["restore", dir, "--serve", socket.to_str().unwrap()];
    let mut command = vmgenie(arguments);
    command.args(["--generation", "keep", "--no-resume"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut client = Client::new(&socket).unwrap();
    wait_until("it answers", LIMIT, || client.info().is_ok());
    let seen = (
        client.generation().map(|g| g.id),
        client.info().map(|info| info.state.as_str()),
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((seen.0.unwrap(), seen.1.unwrap()), (id, "Paused"));
    fail(["restore", "/nowhere"], 1, "/nowhere");
}
