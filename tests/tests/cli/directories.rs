//! Directories that are somebody else's, links and locks in them, and files that were there before.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmgenie_tests::http::{done, mode_of, refused_with};
use vmgenie_tests::process::wait_until;
use vmgenie_tests::vm::Vm;
use vmgenie_tests::{Snapshot, tiny};

use crate::{fail, json, vmgenie};

/// Another user, who means harm.
const MALLORY: u32 = 65534;

const CANARY: &str = "what root keeps here";

/// A place that all may see, with a directory of Mallory's and a file of root's.
struct Shared {
    place: Snapshot,
}

impl Shared {
    fn new() -> Self {
        let place = Snapshot::new();
        fs::set_permissions(place.dir(), Permissions::from_mode(0o755)).unwrap();
        fs::write(place.dir().join("canary"), CANARY).unwrap();
        Self { place }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.dir().join(name)
    }

    /// A directory of Mallory's with links to the canary.
    fn trap(&self, links: &[&str]) -> PathBuf {
        let trap = self.at("trap");
        fs::create_dir(&trap).unwrap();
        for link in links {
            symlink(self.at("canary"), trap.join(link)).unwrap();
        }
        chown(&trap, Some(MALLORY), Some(MALLORY)).unwrap();
        trap
    }

    fn assert_canary_lives(&self) {
        assert_eq!(fs::read_to_string(self.at("canary")).unwrap(), CANARY);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn socket(vm: &Vm) -> String {
    text(vm.client.socket()).to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn clones_put_no_log_into_a_directory_of_somebody_elses() {
    let snapshot = tiny::boot("").snapshot();
    let shared = Shared::new();
    let trap = shared.trap(&["clone-1.log", "clone-1.sock"]);
    let arguments = [
        "clone",
        text(snapshot.dir()),
        "-n",
        "1",
        "--dir",
        text(&trap),
    ];
    fail(arguments, 1, "belongs to another user (65534)");
    // Nor where others may write, nor behind a link.
    chown(&trap, Some(0), Some(0)).unwrap();
    fs::set_permissions(&trap, Permissions::from_mode(0o777)).unwrap();
    fail(arguments, 1, "others may write");
    let link = shared.at("link");
    symlink(&trap, &link).unwrap();
    let arguments = [
        "clone",
        text(snapshot.dir()),
        "-n",
        "1",
        "--dir",
        text(&link),
    ];
    fail(arguments, 1, "is a symbolic link");
    // In a directory for everybody, what they have put there is not followed.
    fs::set_permissions(&trap, Permissions::from_mode(0o1777)).unwrap();
    fs::remove_file(trap.join("clone-1.sock")).unwrap();
    let arguments = [
        "clone",
        text(snapshot.dir()),
        "-n",
        "1",
        "--dir",
        text(&trap),
    ];
    fail(arguments, 1, "clone-1.log");
    shared.assert_canary_lives();
    assert_eq!(names(&trap), ["clone-1.log"]);
}

#[test]
fn clones_are_not_put_into_the_runtime_directory_of_somebody_elses() {
    let snapshot = tiny::boot("").snapshot();
    let shared = Shared::new();
    let trap = shared.trap(&[]);
    let place = Snapshot::new();
    let mut command = vmgenie(["clone", text(snapshot.dir()), "-n", "1", "--json"]);
    let command = command
        .env("XDG_RUNTIME_DIR", &trap)
        .env("TMPDIR", place.dir());
    let output = command.output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = u32::try_from(shown["clones"][0]["pid"].as_u64().unwrap()).unwrap();
    let _stray = vmgenie_tests::process::Stray(pid);
    assert_eq!(
        Path::new(shown["dir"].as_str().unwrap()).parent(),
        Some(place.dir())
    );
    assert_eq!(names(&trap), [] as [&str; 0]);
}

#[test]
fn a_directory_whose_name_is_too_long_for_sockets_is_told_so() {
    let snapshot = tiny::boot("").snapshot();
    let place = Snapshot::new();
    let dir = place.dir().join("long".repeat(30));
    let arguments = [
        "clone",
        text(snapshot.dir()),
        "-n",
        "1",
        "--dir",
        text(&dir),
    ];
    fail(arguments, 1, "107 bytes");
    assert!(!dir.exists());
}

#[test]
fn a_snapshot_is_not_written_where_somebody_else_could_change_it() {
    let vm = tiny::boot("");
    let socket = socket(&vm);
    let shared = Shared::new();
    let trap = shared.trap(&["state", "memory"]);
    let arguments = ["snapshot", "--api-sock", &socket, text(&trap)];
    fail(arguments, 1, "belongs to another user (65534)");
    fs::set_permissions(&trap, Permissions::from_mode(0o777)).unwrap();
    chown(&trap, Some(0), Some(0)).unwrap();
    fail(arguments, 1, "others may write");
    shared.assert_canary_lives();
    assert_eq!(json(["info", &socket])["state"], "Running");
    // Through the API it is the link that matters.
    let mut vm = vm;
    chown(&trap, Some(MALLORY), Some(MALLORY)).unwrap();
    vm.client.pause().unwrap();
    let mut request = shared.place.request();
    request.snapshot_path = shared.at("state");
    request.mem_file_path = trap.join("memory");
    let told = vm.client.create_snapshot(&request).unwrap_err().to_string();
    assert!(told.contains("symbolic link"), "{told}");
    shared.assert_canary_lives();
}

#[test]
fn a_snapshots_directory_and_files_are_its_owners_alone() {
    let vm = tiny::boot("");
    let place = Snapshot::new();
    let dir = place.dir().join("a/b");
    json(["snapshot", "--api-sock", &socket(&vm), text(&dir)]);
    assert_eq!(
        (mode_of(&dir), mode_of(dir.parent().unwrap())),
        (0o700, 0o700)
    );
    assert_eq!(names(&dir), ["memory", "state"]);
    for file in ["state", "memory"] {
        assert_eq!(mode_of(&dir.join(file)), 0o600, "{file}");
    }
}

/// Locks a directory, as whoever may read it can.
fn lock(dir: &Path) -> fs::File {
    let dir = fs::File::open(dir).unwrap();
    dir.lock().unwrap();
    dir
}

#[test]
fn who_may_read_a_snapshots_directory_cannot_hold_snapshots_up() {
    let vm = tiny::boot("");
    let shared = Shared::new();
    let dir = shared.at("open");
    fs::create_dir(&dir).unwrap();
    let _held = lock(&dir);
    let begun = Instant::now();
    for _ in 0..2 {
        json(["snapshot", "--api-sock", &socket(&vm), text(&dir)]);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(names(&dir), ["memory", "state"]);
}

#[test]
fn a_create_that_waits_for_another_tells_of_it_soon() {
    let vm = tiny::boot("");
    let place = Snapshot::new();
    // As a VMM that is stopped in the middle of its own.
    let lock = place.dir().join(".vmgenie-snapshots-0.lock");
    fs::write(&lock, "").unwrap();
    fs::set_permissions(&lock, Permissions::from_mode(0o600)).unwrap();
    let held = fs::File::open(&lock).unwrap();
    held.lock().unwrap();
    let begun = Instant::now();
    let arguments = ["snapshot", "--api-sock", &socket(&vm), text(place.dir())];
    let told = fail(arguments, 1, "could not lock the directory");
    assert!(
        told.contains(&format!("process {}", std::process::id())),
        "{told}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(json(["info", &socket(&vm)])["state"], "Running");
    drop(held);
    json(arguments);
    assert_eq!(names(place.dir()), ["memory", "state"]);
}

#[test]
fn drive_copies_lie_beside_the_state_file_and_not_beside_a_link_to_it() {
    let place = Snapshot::new();
    let at = |name: &str| place.dir().join(name);
    fs::write(at("disk.img"), vec![7; 1 << 20]).unwrap();
    let drive = format!("--drive={}", at("disk.img").display());
    let boot = vmgenie_tests::vm::Boot::new(vmgenie_tests::Guest::Tiny).option(&drive);
    let mut vm = tiny::boot_with(boot);
    for dir in ["real", "links"] {
        fs::create_dir(at(dir)).unwrap();
    }
    vm.client.pause().unwrap();
    let mut request = place.request();
    request.copy_drives = true;
    request.snapshot_path = at("real/state");
    request.mem_file_path = at("real/memory");
    vm.client.create_snapshot(&request).unwrap();
    symlink(at("real/state"), at("links/state")).unwrap();
    request.snapshot_path = at("links/state");
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(names(&at("links")), ["state"]);
    // Of the older one, which was replaced, nothing stays.
    assert_eq!(names(&at("real")).len(), 3, "{:?}", names(&at("real")));
    drop(vm);
    for state in ["real/state", "links/state"] {
        let load = vmgenie_api::wire::SnapshotLoad {
            resume_vm: true,
            // Whether it has changed is not the question here.
            changed_drives: Some(vmgenie_api::wire::ChangedDrives::Allow),
            ..vmgenie_api::wire::SnapshotLoad::of(at(state), at("real/memory"))
        };
        let mut vm = Vm::spawn(&["api".to_owned()], &[]);
        vm.client.load_snapshot(&load).unwrap();
        let config = vm.client.config().unwrap();
        let config = serde_json::to_value(config).unwrap();
        let path = config["drives"][0]["path_on_host"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(path.contains("real/state.disk0."), "{path}");
    }
}

#[test]
fn the_logs_and_metrics_of_a_machine_go_to_no_file_of_somebody_elses_choice() {
    let shared = Shared::new();
    let trap = shared.trap(&["log"]);
    let mut vm = Vm::spawn(&["api".to_owned()], &[]);
    for (path, field) in [("/logger", "log_path"), ("/metrics", "metrics_path")] {
        let body = serde_json::json!({ field: trap.join("log") }).to_string();
        refused_with(&mut vm.client, &format!("PUT {path}"), body, "another user");
    }
    shared.assert_canary_lives();
    // The usual link is.
    let body = r#"{"log_path": "/dev/stderr"}"#;
    done(&mut vm.client, "PUT /logger", body);
}

#[test]
fn a_dead_socket_is_replaced_at_once_whoever_has_locked_its_directory() {
    let shared = Shared::new();
    let socket = shared.at("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let _held = lock(shared.place.dir());
    let begun = Instant::now();
    let mut child = vmgenie(["api", "--api-sock", text(&socket)])
        .spawn()
        .unwrap();
    let mut client = vmgenie_api::client::Client::new(&socket).unwrap();
    wait_until("it answers", Duration::from_secs(30), || {
        client.info().is_ok()
    });
    // It would wait for a second.
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
