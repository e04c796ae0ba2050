//! `vmgenie clone`.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use serde_json::Value;
use vmgenie_api::client::Client;
use vmgenie_tests::process::{Stray, is_alive, signal, wait_until, with_argument};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, tiny};

use crate::{fail, json, succeed, vmgenie};

const LIMIT: Duration = Duration::from_secs(30);

/// Takes care that no VMM with a socket in `dir` outlives the test.
struct Sweep<'a>(&'a Path);

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        for pid in with_argument(self.0.to_str().unwrap()) {
            drop(Stray(pid));
        }
    }
}

fn clone(snapshot: &Snapshot, dir: &Path, number: &str) -> Value {
    let (from, to) = (snapshot.dir().to_str().unwrap(), dir.to_str().unwrap());
    json(["clone", from, "-n", number, "--dir", to])
}

#[test]
fn three_clones_run_with_three_generation_ids_and_end_when_they_are_told() {
    let snapshot = tiny::boot("touch=1").snapshot();
    let place = Snapshot::new();
    let dir = place.dir().join("clones");
    let _sweep = Sweep(&dir);
    let shown = clone(&snapshot, &dir, "3");
    let clones = shown["clones"].as_array().unwrap();
    assert_eq!(clones.len(), 3);
    let mut ids = HashSet::new();
    let mut pids = Vec::new();
    for clone in clones {
        let pid = u32::try_from(clone["pid"].as_u64().unwrap()).unwrap();
        assert!(is_alive(pid), "{clone}");
        let socket = clone["socket"].as_str().unwrap();
        let mut client = Client::new(socket).unwrap();
        assert_eq!(
            client.generation().unwrap().id,
            clone["generation_id"].as_str().unwrap()
        );
        assert!(ids.insert(clone["generation_id"].to_string()), "{shown}");
        assert!(clone["running_ms"].as_f64().unwrap() >= clone["load_ms"].as_f64().unwrap());
        assert_eq!(json(["info", socket])["state"], "Running");
        pids.push((pid, socket.to_owned()));
    }
    for (pid, socket) in pids {
        signal(pid, libc::SIGTERM);
        wait_until("a clone ends by SIGTERM", LIMIT, || !is_alive(pid));
        assert!(!Path::new(&socket).exists(), "its socket is gone");
    }
}

#[test]
fn clones_are_shown_as_a_table() {
    let snapshot = tiny::boot("").snapshot();
    let place = Snapshot::new();
    let _sweep = Sweep(place.dir());
    let (from, to) = (
        snapshot.dir().to_str().unwrap(),
        place.dir().to_str().unwrap(),
    );
    let text = succeed(["clone", from, "-n", "3", "--dir", to]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    for head in ["PID", "SOCKET", "GENERATION ID", "MS TO RUNNING"] {
        assert!(lines[0].contains(head), "{text}");
    }
    for (number, line) in (1..).zip(&lines[1..]) {
        let mut words = line.split_whitespace();
        let pid = words.next().unwrap().parse().unwrap();
        let _kill = Stray(pid);
        assert!(is_alive(pid));
        let socket = place.dir().join(format!("clone-{number}.sock"));
        assert_eq!(words.next(), socket.to_str());
        assert_eq!(words.next().unwrap().len(), 36, "a GUID: {line}");
    }
}

#[test]
fn a_clone_that_keeps_the_generation_has_it() {
    let mut original = tiny::boot("");
    let snapshot = original.snapshot();
    let place = Snapshot::new();
    let _sweep = Sweep(place.dir());
    let (from, to) = (
        snapshot.dir().to_str().unwrap(),
        place.dir().to_str().unwrap(),
    );
    let arguments = [
        "clone",
        from,
        "-n",
        "1",
        "--dir",
        to,
        "--generation",
        "keep",
    ];
    let shown = json(arguments);
    let clone = &shown["clones"][0];
    assert_eq!(clone["generation_id"], tiny::generation(&mut original).id);
}

#[test]
fn clones_of_a_damaged_snapshot_leave_no_process_socket_log_or_directory() {
    let snapshot = tiny::boot("").snapshot();
    let mut bytes = fs::read(snapshot.state()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(snapshot.state(), bytes).unwrap();
    let place = Snapshot::new();
    let dir = place.dir().join("clones");
    let _sweep = Sweep(&dir);
    let arguments = [
        "clone",
        snapshot.dir().to_str().unwrap(),
        "-n",
        "4",
        "--dir",
        dir.to_str().unwrap(),
    ];
    let told = fail(arguments, 1, "it is damaged");
    // Once, and not in the words of a clone's VMM.
    assert!(
        told.contains("cannot be restored") && !told.contains("clone-1"),
        "{told}"
    );
    assert!(
        !dir.exists(),
        "{:?}",
        fs::read_dir(&dir).unwrap().collect::<Vec<_>>()
    );
    assert_eq!(with_argument(dir.to_str().unwrap()), Vec::<u32>::new());
    // A directory that was there before stays, empty.
    fs::create_dir(&dir).unwrap();
    fail(arguments, 1, "it is damaged");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn one_clone_that_fails_takes_the_others_with_it_and_nobody_else() {
    let snapshot = tiny::boot("").snapshot();
    let place = Snapshot::new();
    let _sweep = Sweep(place.dir());
    // Somebody listens where clone 2 should.
    let taken = place.dir().join("clone-2.sock");
    let _other = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let from = snapshot.dir().to_str().unwrap();
    let arguments = [
        "clone",
        from,
        "-n",
        "3",
        "--dir",
        place.dir().to_str().unwrap(),
    ];
    fail(arguments, 1, "clone-2.sock is in use");
    assert_eq!(
        with_argument(place.dir().to_str().unwrap()),
        Vec::<u32>::new()
    );
    let left: Vec<_> = fs::read_dir(place.dir())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(left, [taken]);
}

#[test]
fn a_directory_for_the_clones_is_made_when_none_is_given() {
    let snapshot = tiny::boot("").snapshot();
    let place = Snapshot::new();
    let _sweep = Sweep(place.dir());
    let mut command = vmgenie([
        "clone",
        snapshot.dir().to_str().unwrap(),
        "-n",
        "1",
        "--json",
    ]);
    let output = command
        .env("XDG_RUNTIME_DIR", place.dir())
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let dir = Path::new(shown["dir"].as_str().unwrap());
    assert_eq!(dir.parent(), Some(place.dir()));
    assert_eq!(vmgenie_tests::http::mode_of(dir), 0o700);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "a socket and a log");
}

#[test]
fn clones_that_fail_leave_no_copies_of_drives() {
    let place = Snapshot::new();
    let at = |name: &str| place.dir().join(name);
    fs::write(at("disk.img"), vec![7; 1 << 20]).unwrap();
    let drive = format!("--drive={}", at("disk.img").display());
    let snapshot = tiny::boot_with(Boot::new(Guest::Tiny).option(&drive)).snapshot();
    // Where the copy of the second one would be is something already.
    fs::write(at("copy-2"), "precious").unwrap();
    let dir = at("clones");
    let _sweep = Sweep(&dir);
    let copy = format!("disk0={},copy", at("copy-{n}").display());
    let (from, to) = (snapshot.dir().to_str().unwrap(), dir.to_str().unwrap());
    let arguments = ["clone", from, "-n", "3", "--dir", to, "--drive", &copy];
    fail(arguments, 1, "copy-2");
    assert!(!at("copy-1").exists() && !at("copy-3").exists() && !dir.exists());
    assert_eq!(fs::read(at("copy-2")).unwrap(), b"precious");
    fs::remove_file(at("copy-2")).unwrap();
    json(arguments);
    for n in 1..=3 {
        let copied = fs::read(at(&format!("copy-{n}"))).unwrap();
        assert!(copied == vec![7; 1 << 20]);
    }
}

/// A machine as `clone` starts it, the other end of its lifeline, and a file that goes with it.
fn on_a_lifeline(place: &Snapshot) -> (Child, ChildStdin, PathBuf) {
    let (socket, doomed) = (place.dir().join("api.sock"), place.dir().join("copy"));
    fs::write(&doomed, "").unwrap();
    let mut command = vmgenie(["api", "--api-sock", socket.to_str().unwrap(), "--lifeline"]);
    command.arg("--doomed").arg(&doomed);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let lifeline = child.stdin.take().unwrap();
    let mut client = Client::new(&socket).unwrap();
    wait_until("it answers", LIMIT, || client.info().is_ok());
    (child, lifeline, doomed)
}

#[test]
fn a_clone_whose_starter_is_killed_ends_and_takes_its_files_along() {
    let place = Snapshot::new();
    let (mut child, lifeline, doomed) = on_a_lifeline(&place);
    drop(lifeline);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!doomed.exists());
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0);
}

#[test]
fn a_clone_that_was_released_lives_on() {
    let place = Snapshot::new();
    let (mut child, mut lifeline, doomed) = on_a_lifeline(&place);
    lifeline.write_all(b"\n").unwrap();
    drop(lifeline);
    let mut client = Client::new(place.dir().join("api.sock")).unwrap();
    // Twice: the first answer may have been on its way before the word was looked at.
    for _ in 0..2 {
        client.info().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let early = child.try_wait().unwrap();
    signal(child.id(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(early.is_none() && doomed.exists());
}
