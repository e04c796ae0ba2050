//! What is on a disk of the host when a snapshot has been answered for, and when the disk has failed meanwhile.

use serde_json::{Value, json};
use vmgenie_tests::disk::{self, Image};
use vmgenie_tests::failing_disk::{FailingDisk, FailingFileSystem};
use vmgenie_tests::http::{call, done, refused_with};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Snapshot, Vm};

const LEN: usize = 256 << 10;

fn boot(disk: &FailingDisk, cache: &str, engine: &str) -> Vm {
    let drive = json!({
        "drive_id": "data",
        "path_on_host": disk.path(),
        "is_root_device": false,
        "cache_type": cache,
        "io_engine": engine,
    });
    disk::booted(Guest::Small, 1, &drive)
}

/// Has the guest fill the beginning of its disk with a line, without a flush.
fn write(vm: &mut Vm, line: &str) {
    vm.shell(&format!("yes {line} | head -c {LEN} > /tmp/lines"));
    vm.shell("dd if=/tmp/lines of=/dev/vda bs=64k oflag=direct");
}

fn lines(line: &str) -> Vec<u8> {
    format!("{line}\n").bytes().cycle().take(LEN).collect()
}

fn create(snapshot: &Snapshot) -> String {
    json!({ "snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory() }).to_string()
}

/// Asks for a snapshot of a machine that stands still and must not get one.
fn refused_snapshot(vm: &mut Vm, reason: &str) {
    let snapshot = Snapshot::new();
    vm.client.pause().unwrap();
    refused_with(
        &mut vm.client,
        "PUT /snapshot/create",
        create(&snapshot),
        reason,
    );
    assert!(!snapshot.state().exists());
    vm.client.resume().unwrap();
}

#[test]
fn what_a_guest_has_written_is_on_the_disk_when_it_has_been_snapshotted() {
    for (cache, engine) in [
        ("Unsafe", "Sync"),
        ("Unsafe", "Async"),
        ("Writeback", "Sync"),
    ] {
        let disk = FailingDisk::filled_with(b'h');
        let mut vm = boot(&disk, cache, engine);
        write(&mut vm, engine);
        let _snapshot = vm.snapshot();
        // From here on nothing reaches the disk.
        disk.fail();
        assert!(
            disk.durable_bytes().starts_with(&lines(engine)),
            "{cache} {engine}"
        );
        vm.kill();
        disk.mend();
    }
}

#[test]
fn a_create_that_could_not_write_is_not_made_good_by_the_next_one() {
    for cache in ["Unsafe", "Writeback"] {
        let disk = FailingDisk::filled_with(b'h');
        let mut vm = boot(&disk, cache, "Sync");
        write(&mut vm, "lost");
        disk.fail();
        refused_snapshot(&mut vm, "Input/output error");
        disk.mend();
        // The host says now that all is well.
        for _ in 0..2 {
            refused_snapshot(&mut vm, "an earlier sync of the file has failed");
        }
        assert!(!disk.durable_bytes().starts_with(b"lost"));
        // Somebody has seen to it.
        done(
            &mut vm.client,
            "PATCH /drives/data",
            json!({ "drive_id": "data" }).to_string(),
        );
        write(&mut vm, "again");
        let _snapshot = vm.snapshot();
        disk.fail();
        assert!(disk.durable_bytes().starts_with(&lines("again")));
        vm.kill();
        disk.mend();
    }
}

#[test]
fn a_flush_of_the_guest_s_that_has_failed_fails_the_flushes_and_creates_after_it() {
    for engine in ["Sync", "Async"] {
        let disk = FailingDisk::filled_with(b'h');
        let mut vm = boot(&disk, "Writeback", engine);
        write(&mut vm, "lost");
        let flush = "dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=1000 conv=fsync";
        disk.fail();
        let (status, told) = vm.run(flush);
        assert_ne!(status, 0, "{told}");
        disk.mend();
        let (status, told) = vm.run(flush);
        assert_ne!(status, 0, "{told}");
        refused_snapshot(&mut vm, "an earlier sync of the file has failed");
        vm.kill();
    }
}

/// The copies and overlays that a load makes are not older than the snapshots that refer to them.
#[test]
fn what_a_load_has_made_is_there_after_a_crash_of_the_host_that_follows_a_snapshot() {
    let image = Image::new(4);
    std::fs::write(image.path(), lines("base")).unwrap();
    let mut vm = disk::boot(Guest::Small, 1, &[image.drive("data")]);
    let snapshot = vm.snapshot();
    vm.kill();
    let system = FailingFileSystem::new();
    let mut made = Vec::new();
    for how in ["copy", "overlay"] {
        let path = system.path().join(how);
        let mut clone = Vm::empty();
        let mut one: Value = json!({ "drive_id": "data", "path_on_host": path });
        one[how] = json!(true);
        let request = disk::load_request(&snapshot, &json!([one]));
        done(&mut clone.client, "PUT /snapshot/load", request);
        if how == "overlay" {
            clone.shell("echo mine | dd of=/dev/vda");
        }
        no_complaints(&mut clone);
        clone.client.pause().unwrap();
        let files = Snapshot::new();
        assert_eq!(
            call(&mut clone.client, "PUT /snapshot/create", create(&files)).0,
            204
        );
        clone.kill();
        made.push((path.clone(), std::fs::read(path).unwrap()));
    }
    system.crash();
    for (path, bytes) in made {
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(
            there == bytes,
            "{}: {} bytes of {}",
            path.display(),
            there.len(),
            bytes.len()
        );
    }
}
