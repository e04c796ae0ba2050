//! `vmgenie fork`.

mod files;
mod holding;
mod late;
mod place;

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmgenie_tests::process::{is_alive, signal, wait_until, with_argument};
use vmgenie_tests::pty::OnTerminal;
use vmgenie_tests::shell::{generation, load_modules};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, tiny};

use crate::{run, stderr, stdout, vmgenie};
use holding::Holding;
use place::{Forked, Place, end, spawn};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_guest_without_a_driver_is_refused_with_the_reason() {
    let vm = tiny::boot("");
    let place = Place::new();
    let output = place.fork(vm.client.socket(), "-n 2").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    for part in [
        "it has no sysgenid driver",
        "`--fallback plain` forks a guest",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(stdout(&output), "");
    assert_eq!(place.left(), Vec::<PathBuf>::new());
    assert_eq!(place.processes(), Vec::<u32>::new());
}

#[test]
fn a_guest_without_a_driver_is_forked_plainly_and_all_goes_with_the_last_clone() {
    let mut vm = tiny::boot("touch=1");
    let before = tiny::generation(&mut vm).id;
    let place = Place::new();
    let output = place
        .fork(vm.client.socket(), "-n 3 --fallback plain --json")
        .output()
        .unwrap();
    assert!(stderr(&output).contains("nobody tells its programs"));
    let forked = Forked::of(&output, 0);
    assert_eq!(forked.0["original"]["how"], "plain");
    assert_eq!(forked.0["snapshot_dir"], Value::Null);
    let ids: HashSet<_> = forked
        .clones()
        .iter()
        .map(|clone| clone["generation_id"].to_string())
        .collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(tiny::generation(&mut vm).id, before);
    for (number, clone) in (1..).zip(forked.clones()) {
        assert_eq!(clone["name"], format!("anonymous-instance-{number}"));
        assert_eq!(clone["missing"], json!(["driver"]));
    }
    // Nothing of the snapshot has a name; sockets and logs have.
    assert_eq!(fs::read_dir(place.temporary()).unwrap().count(), 0);
    let dir = PathBuf::from(forked.0["dir"].as_str().unwrap());
    for (ended, pid) in (0..).zip(forked.pids()) {
        assert!(dir.exists(), "{ended} of 3 have ended");
        end(pid, libc::SIGTERM);
    }
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn of_clones_that_are_killed_no_memory_is_left_and_the_rest_goes_at_the_next_fork() {
    let vm = tiny::boot("touch=1");
    let place = Place::new();
    let fork = || place.forked(vm.client.socket(), "-n 2 --fallback plain");
    let killed = fork();
    let alive = fork();
    for pid in killed.pids() {
        end(pid, libc::SIGKILL);
    }
    assert_eq!(fs::read_dir(place.temporary()).unwrap().count(), 0);
    let dir = |forked: &Forked| PathBuf::from(forked.0["dir"].as_str().unwrap());
    assert!(dir(&killed).exists());
    let nothing = place.fork(&place.at("no.sock"), "-n 1").output().unwrap();
    assert_eq!(nothing.status.code(), Some(1));
    assert_eq!(place.left(), [dir(&alive)]);
}

#[test]
fn a_snapshot_that_is_named_stays_and_can_be_cloned() {
    let vm = tiny::boot("");
    let place = Place::new();
    let (snapshot, dir) = (place.at("snapshot"), place.at("clones"));
    let more = format!(
        "{} -n 1 --fallback plain --dir {}",
        snapshot.display(),
        dir.display()
    );
    let forked = place.forked(vm.client.socket(), &more);
    assert_eq!(forked.0["snapshot_dir"], snapshot.to_str().unwrap());
    end(forked.pids()[0], libc::SIGTERM);
    assert!(
        dir.join("clone-1.log").exists(),
        "the user's directory stays"
    );
    let clone = run([
        "clone",
        snapshot.to_str().unwrap(),
        "-n1",
        "--dir",
        dir.to_str().unwrap(),
    ]);
    assert_eq!(clone.status.code(), Some(0), "{clone:?}");
}

#[test]
fn a_fork_that_is_ended_while_the_snapshot_is_taken_leaves_nothing() {
    for with in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let mut vm = tiny::boot("touch=1");
        let before = tiny::generation(&mut vm).id;
        let place = Place::new();
        let holding = Holding::before(&vm, place.at("proxy.sock"));
        let mut child = spawn(&mut place.fork(&holding.socket, "-n 2 --fallback plain"));
        holding.wait();
        assert_eq!(place.left().len(), 2, "{:?}", place.left());
        signal(child.id(), with);
        let status = child.wait().unwrap();
        assert_ne!(status.code(), Some(0));
        wait_until("the clones' VMMs end", LIMIT, || {
            place.processes().is_empty()
        });
        assert_eq!(place.left(), Vec::<PathBuf>::new(), "signal {with}");
        // The VMM hears of it only now.
        holding.let_go();
        assert_eq!(tiny::generation(&mut vm).id, before);
        assert_eq!(place.left(), Vec::<PathBuf>::new(), "signal {with}");
    }
}

#[test]
fn what_takes_long_is_told_on_a_terminal_and_nowhere_else() {
    let vm = tiny::boot("");
    let place = Place::new();
    let holding = Holding::before(&vm, place.at("proxy.sock"));
    let mut command = place.fork(&holding.socket, "-n 1 --fallback plain");
    let mut terminal = OnTerminal::start(&mut command);
    terminal.wait_for("to stand still: 1 s", LIMIT);
    holding.let_go();
    assert_eq!(terminal.wait(LIMIT).code(), Some(0));
    let screen = terminal.screen_text();
    assert!(screen.contains("anonymous-instance-1"), "{screen}");
    let quiet = Place::new();
    let holding = Holding::before(&vm, quiet.at("proxy.sock"));
    let child = spawn(&mut quiet.fork(&holding.socket, "-n 1 --fallback plain"));
    holding.wait();
    thread::sleep(Duration::from_millis(1200));
    holding.let_go();
    let told = stderr(&child.wait_with_output().unwrap());
    assert!(told.starts_with("warning: there is no"), "{told:?}");
}

#[test]
fn clones_that_are_not_ready_in_time_go_on_and_what_they_lack_is_named() {
    let mut vm = Boot::new(Guest::Small).booted();
    load_modules(&mut vm, "");
    let place = Place::new();
    let more = "-n 2 --wait 15s --gate=agents=1 --json";
    let output = place.fork(vm.client.socket(), more).output().unwrap();
    let forked = Forked::of(&output, 5);
    let told = stderr(&output);
    for part in [
        "within 15s",
        "anonymous-instance-1: only 0 of its agents have finished",
        "anonymous-instance-2: only 0",
    ] {
        assert!(told.contains(part), "{told}");
    }
    for clone in forked.clones() {
        assert_eq!(clone["ready"], false);
        assert!(clone["reseeded_us"].is_u64(), "{clone}");
        assert!(clone["ready_us"].is_null(), "{clone}");
    }
    assert!(forked.pids().into_iter().all(is_alive));
}

#[test]
fn a_fork_that_is_interrupted_while_it_waits_leaves_nothing() {
    let mut vm = Boot::new(Guest::Small).booted();
    load_modules(&mut vm, "");
    let place = Place::new();
    let more = "-n 2 --wait 5m --gate=agents=1";
    let mut child = spawn(&mut place.fork(vm.client.socket(), more));
    let no_snapshot = || fs::read_dir(place.temporary()).unwrap().count() == 0;
    // It is made, and goes when the clones run.
    wait_until("the snapshot", LIMIT, || !no_snapshot());
    wait_until("the clones", LIMIT, no_snapshot);
    signal(child.id(), libc::SIGINT);
    let mut told = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(told.contains("interrupted"), "{told}");
    assert_eq!(place.left(), Vec::<PathBuf>::new());
    assert_eq!(place.processes(), Vec::<u32>::new());
    assert_eq!(vm.shell("echo goes on"), "goes on\n");
}

/// The driver's fork point, the gate, drives and a vsock device, on both kernels.
#[test]
fn a_guest_with_the_driver_takes_part_and_its_clones_are_ready() {
    for guest in [Guest::Small, Guest::Debian] {
        let place = Place::new();
        let disk = place.at("disk");
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let boot = Boot::new(guest)
            .option(&format!("--drive={}", disk.display()))
            .option(&format!("--vsock={}", place.at("vsock").display()))
            .option("--id=web");
        let mut vm = boot.ready();
        load_modules(&mut vm, "");
        let drive = "/dev/vda";
        vm.shell(&format!("test -e {drive} || insmod /modules/virtio_blk.ko; echo BEFORE > /tmp/b && dd if=/tmp/b of={drive} conv=notrunc,fsync"));
        let before = generation(&mut vm);
        let output = place.fork(vm.client.socket(), "-n 2").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = stdout(&output);
        for part in [
            "at the fork point of the guest's kernel",
            "quiet after:",
            "goes with the clones",
            "web-1 ",
            "web-2 ",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains(" - "), "a time is missing: {text}");
        assert_eq!(generation(&mut vm), before, "the original is the same");
        vm.shell(&format!(
            "echo LATER! > /tmp/b && dd if=/tmp/b of={drive} conv=notrunc,fsync"
        ));
        look_at_clone(&place, drive);
    }
}

/// A clone has the drive as it was, on an overlay without a name.
fn look_at_clone(place: &Place, drive: &str) {
    let [dir] = &place.left()[..] else {
        panic!("{:?}", place.left());
    };
    let socket = dir.join("clone-2.sock");
    let mut console = vmgenie(["console".as_ref(), socket.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = console.stdin.take().unwrap();
    writeln!(input, "head -c 6 {drive}; echo").unwrap();
    let log = dir.join("clone-2.log");
    let has = |word: &str| {
        let text = fs::read(&log).unwrap();
        String::from_utf8_lossy(&text).contains(word)
    };
    wait_until("the clone reads its drive", LIMIT, || {
        has("BEFORE") || has("LATER!")
    });
    assert!(has("BEFORE") && !has("LATER!"));
    // It would read on until the machine ends.
    console.kill().unwrap();
    console.wait().unwrap();
    let pid = with_argument(socket.to_str().unwrap())[0];
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let names: Vec<_> = files
        .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
        .map(|name| name.display().to_string())
        .collect();
    let unnamed = |name: &String| name.contains("overlay") && name.ends_with("(deleted)");
    assert!(names.iter().any(unnamed), "{names:?}");
}
