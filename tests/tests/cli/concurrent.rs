//! Commands that meet each other, or are killed in the middle, and clones that are refused before there is one.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use vmgenie_api::client::Client;
use vmgenie_tests::net::{Namespace, make_tap};
use vmgenie_tests::process::{Stray, is_alive, signal, wait_until, with_argument};
use vmgenie_tests::vm::{Boot, Vm};
use vmgenie_tests::{Guest, Snapshot, tiny};

use crate::{fail, json, stderr, vmgenie};

const LIMIT: Duration = Duration::from_secs(30);

/// Takes care that no VMM with a socket in `dir` outlives the test.
struct Sweep<'a>(&'a Path);

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        for pid in with_argument(text(self.0)) {
            drop(Stray(pid));
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program so many times at once.
fn at_once<A: AsRef<OsStr>>(arguments: &[Vec<A>]) -> Vec<Output> {
    let start = |arguments: &Vec<A>| {
        let mut command = vmgenie(arguments);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<_> = arguments.iter().map(start).collect();
    let end = |child: std::process::Child| child.wait_with_output().unwrap();
    children.into_iter().map(end).collect()
}

fn pids(shown: &Value) -> Vec<u32> {
    let clones = shown["clones"].as_array().unwrap().iter();
    clones
        .map(|clone| u32::try_from(clone["pid"].as_u64().unwrap()).unwrap())
        .collect()
}

#[test]
fn of_two_that_clone_into_one_directory_one_wins_and_the_other_touches_nothing() {
    let snapshot = tiny::boot("").snapshot();
    for round in 0..8 {
        let place = Snapshot::new();
        let dir = place.dir().join("clones");
        let _sweep = Sweep(&dir);
        let number = if round % 2 == 0 { "1" } else { "3" };
        let arguments = [
            "clone",
            text(snapshot.dir()),
            "-n",
            number,
            "--json",
            "--dir",
            text(&dir),
        ];
        let done = at_once(&[arguments.to_vec(), arguments.to_vec()]);
        let (won, lost): (Vec<_>, Vec<_>) = done.iter().partition(|output| output.status.success());
        assert_eq!((won.len(), lost.len()), (1, 1), "{done:?}");
        let told = stderr(lost[0]);
        assert!(told.contains("in use"), "{told}");
        let shown: Value = serde_json::from_slice(&won[0].stdout).unwrap();
        for clone in shown["clones"].as_array().unwrap() {
            let mut client = Client::new(clone["socket"].as_str().unwrap()).unwrap();
            let id = client.generation().unwrap().id;
            assert_eq!(id, clone["generation_id"].as_str().unwrap());
            assert!(Path::new(clone["log"].as_str().unwrap()).exists());
        }
        assert!(pids(&shown).into_iter().all(is_alive));
        let files = 2 * pids(&shown).len();
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            files,
            "sockets and logs"
        );
        assert_eq!(with_argument(text(&dir)).len(), pids(&shown).len());
    }
}

#[test]
fn what_clones_that_were_killed_have_said_is_kept() {
    let snapshot = tiny::boot("touch=1").snapshot();
    let place = Snapshot::new();
    let dir = place.dir().join("clones");
    let _sweep = Sweep(&dir);
    let arguments = [
        "clone",
        text(snapshot.dir()),
        "-n",
        "2",
        "--dir",
        text(&dir),
    ];
    let first = pids(&json(arguments));
    let log = dir.join("clone-1.log");
    // What it has said last.
    fs::write(&log, "last words\n").unwrap();
    signal(first[0], libc::SIGKILL);
    wait_until("it has ended", LIMIT, || !is_alive(first[0]));
    // Clone 2 runs: nothing is touched.
    fail(arguments, 1, "clone-2.sock is in use");
    assert_eq!(fs::read_to_string(&log).unwrap(), "last words\n");
    assert!(dir.join("clone-1.sock").exists(), "the dead one's socket");
    signal(first[1], libc::SIGKILL);
    wait_until("it has ended", LIMIT, || !is_alive(first[1]));
    let second = pids(&json(arguments));
    let kept = fs::read_to_string(&log).unwrap();
    assert!(kept.starts_with("last words\n"), "{kept:?}");
    for pid in second {
        signal(pid, libc::SIGKILL);
        wait_until("it has ended", LIMIT, || !is_alive(pid));
    }
    // Clones that fail leave of it what was there.
    fs::write(&log, "last words\n").unwrap();
    let output = without_kvm(&arguments);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "last words\n");
}

#[test]
fn the_log_of_a_clone_does_not_grow_without_bound() {
    const LARGE: u64 = 8 << 20;
    // Each byte takes the guest a millisecond in the emulated host.
    const PATIENCE: Duration = Duration::from_secs(150);
    let snapshot = tiny::boot("echo").snapshot();
    let place = Snapshot::new();
    let _sweep = Sweep(place.dir());
    let shown = json([
        "clone",
        text(snapshot.dir()),
        "-n",
        "1",
        "--dir",
        text(place.dir()),
    ]);
    let (log, aside) = (
        place.dir().join("clone-1.log"),
        place.dir().join("clone-1.log.1"),
    );
    assert_eq!(vmgenie_tests::http::mode_of(&log), 0o600);
    // What the guest would take long for.
    let file = fs::OpenOptions::new().append(true).open(&log).unwrap();
    file.set_len(LARGE).unwrap();
    let mut console = vmgenie(["console", shown["clones"][0]["socket"].as_str().unwrap()]);
    let console = console.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = console.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for _ in 0..5 {
        std::io::Write::write_all(&mut input, &[b'x'; 1024]).unwrap();
    }
    wait_until("it is put aside", PATIENCE, || aside.exists());
    std::io::Write::write_all(&mut input, &[b'y'; 64]).unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("it goes on in a new one", PATIENCE, || {
        said().ends_with('y')
    });
    assert!(said().len() < 20 << 10, "{}", said().len());
    assert!(fs::metadata(&aside).unwrap().len() >= LARGE);
    assert_eq!(vmgenie_tests::http::mode_of(&log), 0o600);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Runs the program where `/dev/kvm` is something else.
fn without_kvm(arguments: &[&str]) -> Output {
    let mut command = vmgenie(arguments);
    let hide = || {
        // SAFETY: system calls with texts that end with a zero byte; they are async-signal-safe.
        let hidden = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(
                    c"/dev/null".as_ptr(),
                    c"/dev/kvm".as_ptr(),
                    std::ptr::null(),
                    libc::MS_BIND,
                    std::ptr::null(),
                ) == 0
        };
        match hidden {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(hide) };
    command.output().unwrap()
}

#[test]
fn clones_on_a_host_without_kvm_end_with_the_status_that_says_so() {
    let snapshot = tiny::boot("").snapshot();
    let place = Snapshot::new();
    let dir = place.dir().join("clones");
    let output = without_kvm(&[
        "clone",
        text(snapshot.dir()),
        "-n",
        "2",
        "--dir",
        text(&dir),
    ]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(!dir.exists());
}

#[test]
fn clones_that_could_not_be_told_apart_or_share_a_drive_are_refused_before_there_is_one() {
    let place = Snapshot::new();
    let at = |name: &str| place.dir().join(name);
    fs::write(at("disk.img"), vec![7; 1 << 20]).unwrap();
    let drive = format!("--drive={}", at("disk.img").display());
    let snapshot = tiny::boot_with(Boot::new(Guest::Tiny).option(&drive)).snapshot();
    let dir = at("clones");
    let _sweep = Sweep(&dir);
    let overlay = |template: &str| format!("disk0={}/{template},overlay", text(place.dir()));
    let clone = |more: &[&str]| {
        let mut arguments = vec!["clone", text(snapshot.dir()), "--dir", text(&dir)];
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = overlay("o-{n}");
    let keep = ["-n", "2", "--generation", "keep", "--drive", &own];
    fail(clone(&keep), 1, "--generation keep");
    fail(clone(&["-n", "2"]), 1, "--drive 'disk0=PATH-{n},overlay'");
    let same = overlay("o");
    fail(clone(&["-n", "2", "--drive", &same]), 1, "clones 1 and 2");
    let unknown = overlay("o-{m}");
    for number in ["1", "3"] {
        fail(clone(&["-n", number, "--drive", &unknown]), 1, "{n}");
    }
    let named = ["-n", "1", "--only-named"];
    let told = fail(clone(&named), 1, "was not named");
    assert!(!told.contains("opens"), "{told}");
    assert!(!dir.exists());
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 1, "the image");
    let mut command = vmgenie(clone(&["-n", "3", "--drive", &own]));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
}

#[test]
fn clones_that_a_network_cannot_tell_apart_are_warned_of() {
    let namespace = Namespace::new();
    for tap in ["tap0", "tap1", "tap2"] {
        namespace.run(|| make_tap(tap).unwrap());
    }
    let boot = Boot::new(Guest::Tiny).option("--net=tap0,mac=06:00:00:00:00:09");
    let snapshot = namespace.run(|| tiny::boot_with(boot).snapshot());
    let place = Snapshot::new();
    let _sweep = Sweep(place.dir());
    let clone = |dir: &str, net: &[&str]| {
        let dir = place.dir().join(dir);
        let mut arguments = vec!["clone", text(snapshot.dir()), "-n", "2", "--json", "--dir"];
        arguments.push(text(&dir));
        arguments.extend(net);
        let output = namespace.run(|| vmgenie(&arguments).output().unwrap());
        if let Ok(shown) = serde_json::from_slice::<Value>(&output.stdout) {
            for pid in pids(&shown) {
                signal(pid, libc::SIGKILL);
                wait_until("it has ended", LIMIT, || !is_alive(pid));
            }
        }
        output
    };
    let shown = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let output = clone("refused", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--net 'net0=TAP{n}'"),
        "{output:?}"
    );
    let output = clone("same", &["--net", "net0=tap{n}"]);
    assert!(
        stderr(&output).contains("warning: the interface net0"),
        "{output:?}"
    );
    let expected = serde_json::json!([
        { "kind": "same-mac", "iface_id": "net0", "guest_mac": "06:00:00:00:00:09" }
    ]);
    assert_eq!(shown(&output)["warnings"], expected);
    let output = clone("own", &["--net", "net0=tap{n},mac=06:00:00:00:00:1{n}"]);
    assert!(!stderr(&output).contains("warning"), "{output:?}");
    assert_eq!(shown(&output)["warnings"], serde_json::json!([]));
}

#[test]
fn three_snapshots_of_one_machine_at_once_all_succeed() {
    let vm = tiny::boot("touch=1");
    let place = Snapshot::new();
    let socket = text(vm.client.socket()).to_owned();
    for round in 0..5 {
        // Into one directory as well.
        let dirs: Vec<_> = (0..3)
            .map(|number| place.dir().join(format!("{round}-{}", number / 2)))
            .collect();
        let arguments = |dir: &std::path::PathBuf| {
            let dir = text(dir).to_owned();
            ["snapshot", "--api-sock", &socket, &dir]
                .map(str::to_owned)
                .to_vec()
        };
        let commands: Vec<_> = dirs.iter().map(arguments).collect();
        for output in at_once(&commands) {
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(json(["info", &socket])["state"], "Running");
    }
}

#[test]
fn a_snapshot_whose_client_is_killed_leaves_the_machine_running() {
    let vm = tiny::boot("touch=1");
    let place = Snapshot::new();
    let socket = text(vm.client.socket()).to_owned();
    for (kind, count) in [(libc::SIGKILL, 30), (libc::SIGINT, 15)] {
        for delay in 0..count {
            let dir = place.dir().join(format!("{kind}-{delay}"));
            let mut command = vmgenie(["snapshot", "--api-sock", &socket, text(&dir)]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            thread::sleep(Duration::from_micros(700 * delay));
            signal(child.id(), kind);
            child.wait().unwrap();
            // It waits its turn behind what the VMM may be doing.
            assert_eq!(
                json(["info", &socket])["state"],
                "Running",
                "{kind} {delay}"
            );
        }
    }
}

#[test]
fn a_paused_machine_stays_paused_and_one_that_runs_is_refused_unless_it_may_be_paused() {
    let mut vm: Vm = tiny::boot("");
    let place = Snapshot::new();
    let mut request = place.request();
    let told = vm.client.create_snapshot(&request).unwrap_err().to_string();
    assert!(told.contains("pause_vm"), "{told}");
    request.pause_vm = true;
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Running");
    // Also when it fails.
    let mut nowhere = request.clone();
    nowhere.mem_file_path = place.dir().join("nowhere/memory");
    vm.client.create_snapshot(&nowhere).unwrap_err();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Running");
    vm.client.pause().unwrap();
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Paused");
    request.resume_vm = true;
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(vm.client.info().unwrap().state.as_str(), "Running");
}
