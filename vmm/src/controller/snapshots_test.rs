//! Copies of drives, with creates that fail on the way.

use std::fs;
use std::path::Path;
use std::process::Command;

use vmgenie_snapshot::{StateWriter, open_snapshot};

use super::*;

/// Creates a snapshot of no memory and with a copy of one drive in the directory that the environment names.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_creates() {
    let dir = std::env::var_os("TEST_DIR").expect("run by another test");
    let request = CreateSnapshot {
        state: Path::new(&dir).join("s.state"),
        memory: Path::new(&dir).join("s.mem"),
        resume: false,
        pause: false,
        copy_drives: true,
        cooperative: None,
    };
    let mut staging = Staging::new(&request.state, &request.memory).unwrap();
    let copies = DriveCopies::of_nothing(&request.state, staging.id()).unwrap();
    staging.write_memory(&[]).unwrap();
    let state = StateWriter::new(staging.id(), 0).finish().unwrap();
    publish(staging, &state, copies, &request).unwrap();
}

/// Creates one elsewhere; returns whether that succeeded, and the names of the copies that are there then.
fn create(dir: &Path, faults: &str) -> (bool, Vec<String>) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["controller::snapshots::tests::child_creates", "--exact"])
        .args(["--ignored", "--test-threads=1"])
        .env("VMGENIE_FAULT", faults)
        .env("TEST_DIR", dir)
        .output()
        .unwrap();
    let names = fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let copies = names.filter(|name| name.ends_with(".drive")).collect();
    (output.status.success(), copies)
}

/// The ID of the snapshot that a restore finds.
fn current(dir: &Path) -> String {
    let loaded = open_snapshot(&dir.join("s.state"), &dir.join("s.mem")).unwrap();
    loaded.id.to_string()
}

#[test]
fn a_snapshot_has_its_copies_exactly_if_a_restore_finds_it() {
    for (point, committed) in [
        ("synced", false),
        ("staged-names-synced", false),
        ("state-renamed", true),
        ("memory-renamed", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (created, old) = create(dir, "");
        assert!(created && old.len() == 1 && old[0].contains(&current(dir)));
        let (created, left) = create(dir, &format!("{point}:error"));
        assert!(!created, "{point}");
        let id = current(dir);
        assert!(left.iter().any(|name| name.contains(&id)), "{point}");
        // The older one is there again if the host crashes now: its copies stay.
        assert!(left.contains(&old[0]), "{point}");
        assert_eq!(left.len(), 1 + usize::from(committed), "{point}");
        // The next one tidies up.
        let (created, last) = create(dir, "");
        assert!(created && last.len() == 1 && last[0].contains(&current(dir)));
    }
}
