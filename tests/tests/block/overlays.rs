//! Clones on overlays, copies of drives in snapshots, and drives that have moved away from their snapshot.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use vmgenie_tests::disk::{self, Image, with};
use vmgenie_tests::http::{done, ok, refused_with};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Snapshot, Vm};

/// A guest with a file system on its drive, and a file in it.
fn with_file(image: &Image) -> Vm {
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    vm.shell("mkdir -p /mnt && mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt && echo common > /mnt/file && sync");
    vm
}

fn on_overlay(image: &Image, name: &str) -> Value {
    json!([{ "drive_id": "data", "path_on_host": image.beside(name), "overlay": true }])
}

/// The request that restores `snapshot`, with more fields.
fn load(snapshot: &Snapshot, overrides: &Value, fields: &Value) -> String {
    let request: Value = serde_json::from_str(&disk::load_request(snapshot, overrides)).unwrap();
    with(request, fields).to_string()
}

/// Restores the snapshot with other drives.
fn restored(snapshot: &Snapshot, overrides: &Value) -> Vm {
    let mut vm = Vm::empty();
    let request = load(snapshot, overrides, &json!({ "changed_drives": "refuse" }));
    done(&mut vm.client, "PUT /snapshot/load", request);
    vm
}

/// Takes a snapshot with copies of the drives.
fn snapshot_with_copies(vm: &mut Vm) -> Snapshot {
    let snapshot = Snapshot::new();
    vm.client.pause().unwrap();
    let request = json!({
        "snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory(), "copy_drives": true,
    });
    done(&mut vm.client, "PUT /snapshot/create", request.to_string());
    snapshot
}

#[test]
fn clones_share_a_base_and_each_costs_what_it_writes() {
    let image = Image::new(24);
    let mut vm = with_file(&image);
    let snapshot = vm.snapshot();
    vm.kill();
    let before = image.bytes();
    let mut clones = ["a", "b", "c"].map(|name| {
        let mut clone = restored(&snapshot, &on_overlay(&image, name));
        clone.shell(&format!("echo clone-{name} > /mnt/mine && sync"));
        (name, clone)
    });
    for (name, clone) in &mut clones {
        // What is read comes from the overlay and the base, not from the guest's cache.
        let text = clone.shell("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/file /mnt/mine");
        assert_eq!(text, format!("common\nclone-{name}\n"));
        no_complaints(clone);
        let size = fs::metadata(image.beside(name)).unwrap().blocks() * 512;
        println!("overlay of clone {name}: {size} bytes");
        assert!(size < 1 << 20, "{size}");
    }
    assert!(image.bytes() == before, "the base has changed");
    let config = ok(&mut clones[0].1.client, "GET /vm/config", "");
    let drive = &config["drives"][0];
    assert_eq!(drive["path_on_host"], json!(image.path()));
    assert_eq!(drive["overlay_path"], json!(image.beside("a")));
}

#[test]
fn a_clone_of_a_clone_has_a_copy_of_its_overlay() {
    let image = Image::new(24);
    let mut vm = with_file(&image);
    let snapshot = vm.snapshot();
    vm.kill();
    let mut clone = restored(&snapshot, &on_overlay(&image, "first"));
    clone.shell("echo first > /mnt/mine && sync");
    let second_snapshot = clone.snapshot();
    clone.kill();
    let mut second = restored(&second_snapshot, &on_overlay(&image, "second"));
    let both = "echo 3 > /proc/sys/vm/drop_caches; cat /mnt/file /mnt/mine";
    assert_eq!(second.shell(both), "common\nfirst\n");
    second.shell("echo second > /mnt/mine && sync");
    // The first goes on as well, with its own.
    let mut first = restored(&second_snapshot, &json!([]));
    assert_eq!(first.shell(both), "common\nfirst\n");
    assert_eq!(second.shell(both), "common\nsecond\n");
    second.shell("umount /mnt");
    no_complaints(&mut second);
    // Killed, not ended: what was flushed is there for the next one.
    second.kill();
    let drive = with(
        image.drive("data"),
        &json!({ "overlay_path": image.beside("second") }),
    );
    let mut again = disk::boot(Guest::Small, 1, &[drive]);
    let text =
        again.shell("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && cat /mnt/file /mnt/mine");
    assert_eq!(text, "common\nsecond\n");
    let copy = json!([{ "drive_id": "data", "path_on_host": image.beside("x"), "copy": true }]);
    let mut late = Vm::empty();
    let request = load(
        &second_snapshot,
        &copy,
        &json!({ "changed_drives": "allow" }),
    );
    refused_with(
        &mut late.client,
        "PUT /snapshot/load",
        request,
        "ask for an overlay",
    );
}

#[test]
fn a_snapshot_with_copies_of_its_drives_is_good_when_the_machine_has_gone_on() {
    let image = Image::new(24);
    let mut vm = with_file(&image);
    let plain = vm.snapshot();
    let whole = snapshot_with_copies(&mut vm);
    vm.client.resume().unwrap();
    vm.shell("rm /mnt/file && echo later > /mnt/later && sync");
    vm.kill();
    // Without copies there is nothing that the guest could go on with.
    let mut late = Vm::empty();
    for (fields, part) in [
        (
            json!({ "changed_drives": "refuse" }),
            "it has been written to",
        ),
        (json!({ "host_paths": "named-only" }), "was not named"),
    ] {
        let request = load(&plain, &json!([]), &fields);
        refused_with(&mut late.client, "PUT /snapshot/load", request, part);
    }
    for name in ["a", "b"] {
        let mut clone = Vm::empty();
        // All that it opens came with the snapshot, or is named here.
        let fields = json!({ "changed_drives": "refuse", "host_paths": "named-only" });
        let request = load(&whole, &on_overlay(&image, name), &fields);
        done(&mut clone.client, "PUT /snapshot/load", request);
        let text = clone.shell("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/file; ls -1 /mnt");
        assert_eq!(text, "common\nfile\nlost+found\n");
        clone.shell("umount /mnt");
        no_complaints(&mut clone);
    }
    // One that goes on in the copy itself uses it up.
    let mut own = restored(&whole, &json!([]));
    own.shell("echo own > /mnt/own && sync");
    own.kill();
    let request = load(&whole, &json!([]), &json!({}));
    refused_with(
        &mut late.client,
        "PUT /snapshot/load",
        request,
        "it has been written to",
    );
}

#[test]
fn the_command_line_tells_what_it_opens_and_refuses_what_was_not_named() {
    let image = Image::new(24);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    let snapshot = vm.snapshot();
    vm.kill();
    let restore = |more: &[&str]| {
        let mut command = Command::new(vmgenie_tests::guest::vmgenie());
        command.arg("restore").arg(snapshot.dir()).args(more);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (status, told) = restore(&["--only-named"]);
    assert_eq!(status, Some(1));
    assert!(
        told.contains("was not named") && !told.contains("opens"),
        "{told}"
    );
    let (status, told) = restore(&["--only-named", "--drive", "data=/nowhere/disk"]);
    assert_eq!(status, Some(1));
    assert!(
        told.starts_with("opens drive data: \"/nowhere/disk\"\n"),
        "{told}"
    );
    fs::write(image.path(), vec![1; 24 << 20]).unwrap();
    let (status, told) = restore(&[]);
    assert_eq!(status, Some(1));
    assert!(told.contains("it has been written to"), "{told}");
}
