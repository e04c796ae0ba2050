//! A VMM that is killed while its guest takes part in a snapshot, at each step of that: what is left, and the next start of the same
//! machine.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use vmgenie_tests::console::Console;
use vmgenie_tests::process::{end_within, wait_until};
use vmgenie_tests::tiny::LIMIT;
use vmgenie_tests::{Guest, Snapshot, Vm};

use crate::{stderr, stdout, vmgenie};

/// A place where one machine is started, killed, and started again: by the same name, with the same socket, for the same snapshot.
struct Place {
    dir: Snapshot,
    snapshot: Snapshot,
}

/// A machine there.
struct Machine {
    child: Child,
    console: Console,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Place {
    fn new() -> Self {
        Self {
            dir: Snapshot::new(),
            snapshot: Snapshot::new(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.dir().join("api.sock")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = vmgenie(arguments);
        command.env("XDG_RUNTIME_DIR", self.dir.dir());
        command
    }

    /// Starts the machine, in a VMM that kills itself at the point `fault`, if that is one.
    fn start(&self, words: &str, fault: &str) -> Machine {
        let mut command = self.command(&["run", "--memory=32M", "--id=web"]);
        command.arg("--kernel").arg(Guest::Tiny.kernel());
        command.arg("--api-sock").arg(self.socket());
        command.arg(format!("--cmdline={words}"));
        if !fault.is_empty() {
            command.env("VMGENIE_FAULT", format!("{fault}:abort"));
        }
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let console = Console::of(&mut child);
        let mut machine = Machine { child, console };
        machine.console.wait_for("ready\n", LIMIT);
        wait_until("the machine is listed", LIMIT, || self.listed() == 1);
        machine
    }

    /// How many machines there are, by the list of them.
    fn listed(&self) -> usize {
        let output = self.command(&["ps", "--json"]).output().unwrap();
        let listed: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        listed.as_array().unwrap().len()
    }

    /// What takes the snapshot.
    fn taking(&self) -> Command {
        let dir = self.snapshot.dir().to_str().unwrap();
        self.command(&["snapshot", "web", dir, "--cooperative"])
    }

    fn is_whole(&self) -> bool {
        let (state, memory) = (self.snapshot.state(), self.snapshot.memory());
        vmgenie_snapshot::open_snapshot(&state, &memory).is_ok()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.snapshot.dir()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The machine is started once more and snapshotted as if nothing had been, and a clone of it knows what it is.
    fn goes_on(&self, after: &str) {
        assert_eq!(self.listed(), 0, "{after}");
        let mut machine = self.start("fork=0", "");
        let output = self.taking().output().unwrap();
        assert!(output.status.success(), "{after}: {output:?}");
        machine.console.wait_for("o", LIMIT);
        assert_eq!(self.files(), ["memory", "state"], "{after}");
        let mut clone = Vm::restore(&self.snapshot);
        assert_eq!(clone.console.wait_for("c", LIMIT), "", "{after}");
    }
}

/// It was asked, or has heard, and is killed from outside.
#[test]
fn a_vmm_that_is_killed_before_its_guest_stands_still_leaves_nothing_of_a_snapshot() {
    for (words, said) in [("fork=0 deaf", "d"), ("fork=0 slow", "s")] {
        let place = Place::new();
        let mut machine = place.start(words, "");
        let piped = place.taking().stderr(Stdio::piped()).spawn();
        let taking = piped.unwrap();
        machine.console.wait_for(said, LIMIT);
        machine.child.kill().unwrap();
        machine.child.wait().unwrap();
        // Nobody waits for a machine that is gone.
        let output = taking.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}: {output:?}");
        assert!(!stderr(&output).is_empty());
        assert_eq!(place.files(), [""; 0], "{words}");
        place.goes_on(words);
    }
}

/// It kills itself at `point`, and leaves a whole snapshot or none.
fn killed_at(point: &str, whole: bool) {
    let place = Place::new();
    let mut machine = place.start("fork=0", point);
    let output = place.taking().output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{point}: {output:?}");
    let ended = end_within(&mut machine.child, LIMIT).unwrap();
    assert_eq!(ended.signal(), Some(libc::SIGKILL), "{point}");
    assert_eq!(place.is_whole(), whole, "{point}");
    if !whole {
        let dir = place.snapshot.dir().to_str().unwrap();
        let restored = place.command(&["restore", dir]).output().unwrap();
        assert!(!restored.status.success(), "{point}: {restored:?}");
    }
    place.goes_on(point);
}

#[test]
fn a_vmm_that_is_killed_while_its_guest_stands_still_leaves_no_snapshot() {
    for point in ["staging-created", "memory-written", "state-written"] {
        killed_at(point, false);
    }
}

#[test]
fn a_vmm_that_is_killed_when_its_guest_has_been_told_leaves_a_whole_snapshot_or_none() {
    for point in ["memory-synced", "locked", "state-staged"] {
        killed_at(point, false);
    }
    for point in ["state-renamed", "memory-renamed"] {
        killed_at(point, true);
    }
}
