//! The commands that speak to one VMM.

use std::fs;
use std::os::unix::net::UnixListener;

use vmgenie_tests::tiny::{self, Memory, generation};
use vmgenie_tests::{Snapshot, Vm};

use crate::{fail, json, run, stderr, stdout, succeed};

#[test]
fn a_machine_is_paused_resumed_and_described() {
    let mut vm = tiny::boot("touch=1");
    let socket = vm.socket();
    let socket = socket.to_str().unwrap();
    assert_eq!(succeed(["pause", socket]), "Paused.\n");
    assert_eq!(json(["info", "--api-sock", socket])["state"], "Paused");
    assert_eq!(json(["resume", socket])["state"], "Running");

    let info = json(["info", socket]);
    let told = generation(&mut vm);
    assert_eq!(info["id"], "anonymous-instance");
    assert_eq!(info["config"]["machine-config"]["mem_size_mib"], 32);
    assert_eq!(info["generation"]["raw"], told.raw);
    let text = succeed(["info", socket]);
    for part in ["Running", "32 MiB", "touch=1", &told.id] {
        assert!(text.contains(part), "{text} lacks {part:?}");
    }
}

#[test]
fn an_empty_vmm_is_described_without_a_generation() {
    let vm = Vm::empty();
    let socket = vm.socket();
    let info = json(["info", socket.to_str().unwrap()]);
    assert_eq!(info["state"], "Not started");
    assert!(info.get("generation").is_none());
    fail(
        ["pause", socket.to_str().unwrap()],
        1,
        "Cannot pause the microVM: there is none yet",
    );
    fail(
        ["generation", socket.to_str().unwrap()],
        1,
        "load a snapshot",
    );
}

#[test]
fn the_generation_is_shown_and_a_new_one_begun() {
    let mut vm = tiny::boot("");
    let socket = vm.socket();
    let socket = socket.to_str().unwrap();
    let first = json(["generation", socket]);
    assert_eq!(first["raw"], generation(&mut vm).raw);
    assert_eq!(first["changes"], 0);
    let second = json(["generation", "--new", socket]);
    assert_ne!(second["raw"], first["raw"]);
    assert_eq!(second["changes"], 1);
    let text = succeed(["generation", socket]);
    assert!(text.contains(second["id"].as_str().unwrap()), "{text}");
}

#[test]
fn waiting_for_a_guest_without_a_driver_ends_with_a_status_of_its_own() {
    let vm = tiny::boot("");
    let socket = vm.socket();
    let socket = socket.to_str().unwrap();
    let output = run(["generation", socket, "--wait=20ms", "--json"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(stderr(&output).contains("there is no driver"), "{output:?}");
    let told: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(told["adapted"], false);
    assert_eq!(told["missing"], serde_json::json!(["driver"]));
    assert_eq!((&told["counter"], &told["changes"]), (&0.into(), &0.into()));
    fail(["generation", socket, "--wait=11m"], 2, "10m at most");
}

#[test]
fn a_machine_is_snapshotted_and_restored_by_command() {
    let mut vm = tiny::boot("touch=1");
    let socket = vm.socket();
    let place = Snapshot::new();
    let dir = place.dir().join("made/for/it");
    let dir = dir.to_str().unwrap();
    let made = json(["snapshot", "--api-sock", socket.to_str().unwrap(), dir]);
    assert_eq!(made["state"], "Running", "a running machine goes on");
    assert!(made["memory_bytes"].as_u64().unwrap() >= 1 << 20, "{made}");
    let text = succeed(["snapshot", "--api-sock", socket.to_str().unwrap(), dir]);
    assert!(text.contains("stood still"), "{text}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2);

    let mut clone = Vm::empty();
    let to = clone.socket();
    let restored = json(["restore", "--api-sock", to.to_str().unwrap(), dir]);
    assert_eq!(restored["state"], "Running");
    assert_ne!(restored["generation"]["raw"], generation(&mut vm).raw);
    assert_eq!(Memory::of(&clone.snapshot()).touched_mib(), 1);

    let kept = Vm::empty();
    let to = kept.socket();
    let options = ["--generation", "keep", "--no-resume"];
    let restored = json(
        [
            &["restore", "--api-sock", to.to_str().unwrap(), dir][..],
            &options,
        ]
        .concat(),
    );
    assert_eq!(restored["state"], "Paused");
    assert_eq!(restored["generation"]["raw"], generation(&mut vm).raw);
}

#[test]
fn a_snapshot_of_a_paused_machine_leaves_it_paused() {
    let mut vm = tiny::boot("");
    vm.client.pause().unwrap();
    let place = Snapshot::new();
    let socket = vm.socket();
    let made = json([
        "snapshot".as_ref(),
        place.dir().as_os_str(),
        "--api-sock".as_ref(),
        socket.as_os_str(),
    ]);
    assert_eq!(made["state"], "Paused");
    assert_eq!(json(["info", socket.to_str().unwrap()])["state"], "Paused");
}

#[test]
fn a_snapshot_that_fails_leaves_the_machine_running_and_no_directory() {
    let vm = Vm::empty();
    let place = Snapshot::new();
    let dir = place.dir().join("new");
    let socket = vm.socket();
    let socket = socket.to_str().unwrap();
    fail(
        ["snapshot", dir.to_str().unwrap(), "--api-sock", socket],
        1,
        "Start one",
    );
    assert!(!dir.exists());

    let machine = tiny::boot("");
    let socket = machine.socket();
    let socket = socket.to_str().unwrap();
    // A directory is where the memory file should go.
    fs::create_dir_all(dir.join("memory")).unwrap();
    fail(
        ["snapshot", dir.to_str().unwrap(), "--api-sock", socket],
        1,
        "memory",
    );
    assert_eq!(json(["info", socket])["state"], "Running");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn a_socket_that_is_missing_dead_or_not_a_socket_is_told_apart() {
    let place = Snapshot::new();
    let path = |name: &str| place.dir().join(name).to_str().unwrap().to_owned();
    drop(UnixListener::bind(path("dead")).unwrap());
    fs::write(path("file"), "x").unwrap();
    for command in ["pause", "resume", "info", "generation"] {
        fail(
            [command, &path("missing")],
            1,
            "was the VMM started with --api-sock?",
        );
        fail(
            [command, &path("dead")],
            1,
            "the VMM that made it is not running any more",
        );
        fail([command, &path("file")], 1, &path("file"));
    }
    for (command, dir) in [("snapshot", path("new")), ("restore", path("new"))] {
        fail(
            [command, &dir, "--api-sock", &path("missing")],
            1,
            "there is no socket",
        );
        assert!(!place.dir().join("new").exists());
    }
}

#[test]
fn a_restore_that_fails_says_which_file() {
    let vm = Vm::empty();
    let place = Snapshot::new();
    let socket = vm.socket();
    let dir = place.dir().to_str().unwrap();
    let told = fail(
        ["restore", dir, "--api-sock", socket.to_str().unwrap()],
        1,
        "state",
    );
    assert!(told.contains("No such file"), "{told}");
}
