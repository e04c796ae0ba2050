//! Snapshots that somebody else may have written.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, tiny};

use crate::{fail, json, run, stderr, stdout};

/// A snapshot of a machine with a drive, and the drive's image.
fn with_drive() -> (Snapshot, tempfile::NamedTempFile) {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = format!("--disk={}", image.path().display());
    let mut vm = tiny::boot_with(Boot::new(Guest::Tiny).option(&disk));
    let snapshot = vm.snapshot();
    vm.kill();
    (snapshot, image)
}

fn refused(snapshot: &Snapshot, why: &str) {
    let dir = snapshot.dir().to_str().unwrap();
    let place = Snapshot::new();
    let clones = place.dir().join("clones");
    let clone = ["clone", dir, "-n", "1", "--dir", clones.to_str().unwrap()];
    for arguments in [&["restore", dir][..], &clone] {
        let told = fail(arguments, 1, why);
        assert!(told.contains("may be somebody else's"), "{told}");
        assert!(told.contains("--trust-paths"), "{told}");
    }
    assert!(!clones.exists());
}

#[test]
fn a_snapshot_that_somebody_else_may_have_written_opens_nothing_by_itself() {
    let (snapshot, image) = with_drive();
    let mode = |path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(snapshot.dir().to_owned(), 0o777);
    refused(&snapshot, "others may write to the directory");
    mode(snapshot.dir().to_owned(), 0o700);
    mode(snapshot.memory(), 0o666);
    refused(&snapshot, "others may write to the memory file");
    mode(snapshot.memory(), 0o600);
    chown(snapshot.state(), Some(65534), None).unwrap();
    refused(&snapshot, "belongs to the user 65534");
    // Named in the request, or trusted by it, it is opened.
    let dir = snapshot.dir().to_str().unwrap();
    let named = format!("disk0={}", image.path().display());
    for allowed in [&["--trust-paths"][..], &["--drive", &named]] {
        let place = Snapshot::new();
        let clones = place.dir().to_str().unwrap();
        let clone = ["clone", dir, "-n", "1", "--dir", clones];
        let shown = json(clone.iter().chain(allowed));
        let socket = shown["clones"][0]["socket"].as_str().unwrap();
        json(["stop", socket]);
    }
}

#[test]
fn only_named_and_trust_paths_exclude_each_other() {
    let output = run(["restore", "dir", "--only-named", "--trust-paths"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("cannot be used with"),
        "{output:?}"
    );
    assert_eq!(stdout(&output), "");
}
