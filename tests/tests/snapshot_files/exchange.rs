//! Memory files that are not the ones that belong to the state file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;
use vmgenie_tests::http::{call, ok, refused};
use vmgenie_tests::{Snapshot, Vm, tiny};

fn load(state: &Path, memory: &Path) -> String {
    json!({"snapshot_path": state, "mem_file_path": memory}).to_string()
}

/// A copy of the memory file that `change` has been at.
fn changed(snapshot: &Snapshot, change: impl FnOnce(&File)) -> std::path::PathBuf {
    let path = snapshot.dir().join("changed");
    fs::copy(snapshot.memory(), &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    change(&file);
    path
}

#[test]
fn a_memory_file_that_is_missing_cut_extended_or_damaged_is_refused() {
    let snapshot = tiny::boot("touch=1").snapshot();
    let length = fs::metadata(snapshot.memory()).unwrap().len();
    let mut vm = Vm::empty();
    let mut refuse = |memory: &Path, part: &str| {
        let body = load(&snapshot.state(), memory);
        let message = refused(&mut vm.client, "PUT /snapshot/load", body);
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert!(
            message.contains(memory.to_str().unwrap()),
            "it names the file: {message}"
        );
    };
    refuse(&snapshot.dir().join("nothing"), "it does not exist");
    for shorter in [0, 1, 4096, length / 2, length - 4096, length - 1] {
        let path = changed(&snapshot, |file| file.set_len(shorter).unwrap());
        refuse(&path, "it was truncated");
    }
    for longer in [length + 1, length + 4096, 2 * length] {
        let path = changed(&snapshot, |file| file.set_len(longer).unwrap());
        refuse(&path, "something was appended to it");
    }
    // The trailer is the last page: magic, version, ID, length, checksum, reserved.
    for at in [0, 16, 32, 40, 48, 4095] {
        let path = changed(&snapshot, |file| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, length - 4096 + at).unwrap();
            file.write_all_at(&[byte[0] ^ 0xff], length - 4096 + at)
                .unwrap();
        });
        refuse(&path, "refused");
    }
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Not started");
    let body = load(&snapshot.state(), &snapshot.memory());
    assert_eq!(call(&mut vm.client, "PUT /snapshot/load", body).0, 204);
}

#[test]
fn the_memory_of_another_snapshot_is_refused_even_of_the_same_machine() {
    let mut original = tiny::boot("touch=1");
    let (first, second) = (original.snapshot(), original.snapshot());
    let stranger = tiny::boot("").snapshot();
    let mut vm = Vm::empty();
    for (state, memory) in [
        (&first, &second),
        (&second, &first),
        (&first, &stranger),
        (&stranger, &first),
    ] {
        let body = load(&state.state(), &memory.memory());
        let message = refused(&mut vm.client, "PUT /snapshot/load", body);
        assert!(message.contains("it belongs to snapshot"), "{message}");
    }
}

#[test]
fn two_snapshots_whose_memory_files_were_swapped_are_both_refused() {
    let mut original = tiny::boot("touch=1");
    let (first, second) = (original.snapshot(), original.snapshot());
    let aside = first.dir().join("aside");
    fs::rename(first.memory(), &aside).unwrap();
    fs::copy(second.memory(), first.memory()).unwrap();
    fs::copy(&aside, second.memory()).unwrap();
    let mut vm = Vm::empty();
    for snapshot in [&first, &second] {
        let body = load(&snapshot.state(), &snapshot.memory());
        let message = refused(&mut vm.client, "PUT /snapshot/load", body);
        assert!(message.contains("it belongs to snapshot"), "{message}");
    }
    // The right pair, under whatever names, is a snapshot.
    let body = load(&first.state(), &aside);
    assert_eq!(call(&mut vm.client, "PUT /snapshot/load", body).0, 204);
}

#[test]
fn memory_that_was_never_touched_takes_no_room_on_disk() {
    use std::os::unix::fs::MetadataExt;
    let boot = vmgenie_tests::vm::Boot::new(vmgenie_tests::Guest::Tiny).cmdline("touch=2");
    let snapshot = tiny::boot_with(boot.memory("1G")).snapshot();
    let file = fs::metadata(snapshot.memory()).unwrap();
    assert_eq!(file.len(), (1 << 30) + 4096);
    let on_disk = file.blocks() * 512;
    println!("{on_disk} bytes on disk");
    assert!(
        (2 << 20..4 << 20).contains(&on_disk),
        "{on_disk} bytes for 2 MiB of touched memory"
    );
}

/// Who has looked at a snapshot means that one, also when another is in its place since.
#[test]
fn another_snapshot_than_the_one_that_is_meant_is_refused() {
    let snapshot = tiny::boot("touch=1").snapshot();
    let mut vm = Vm::empty();
    let meant = |id: &str| {
        json!({
            "snapshot_path": snapshot.state(),
            "mem_file_path": snapshot.memory(),
            "snapshot_id": id,
        })
        .to_string()
    };
    let message = refused(&mut vm.client, "PUT /snapshot/load", meant(&"1".repeat(32)));
    assert!(message.contains("has put another one there"), "{message}");
    let (_, found) = message.split_once("is of the snapshot ").unwrap();
    assert_eq!(
        call(&mut vm.client, "PUT /snapshot/load", meant(&found[..32])).0,
        204
    );
}
