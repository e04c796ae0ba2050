//! The file behind a drive: locked, exchanged, grown.

use serde_json::json;
use vmgenie_tests::block_device::BlockDevice;
use vmgenie_tests::disk::{self, Image, with};
use vmgenie_tests::guest::sha256;
use vmgenie_tests::http::{done, refused_with};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Vm};

use crate::{start_load, wait_for_load};

#[test]
fn an_image_that_one_guest_writes_is_no_other_guest_s() {
    let image = Image::new(4);
    let mut first = Vm::empty();
    disk::configure(&mut first, Guest::Tiny, 1, &[image.drive("data")]);
    first.client.start().unwrap();
    for read_only in [false, true] {
        let mut second = Vm::empty();
        let drive = with(image.drive("data"), &json!({ "is_read_only": read_only }));
        disk::configure(&mut second, Guest::Tiny, 1, &[drive]);
        let start = json!({ "action_type": "InstanceStart" }).to_string();
        refused_with(
            &mut second.client,
            "PUT /actions",
            start,
            "is in use by another microVM",
        );
    }
}

#[test]
fn an_image_that_is_only_read_is_shared() {
    let image = Image::new(4);
    std::fs::write(image.path(), vec![b'r'; 4 << 20]).unwrap();
    let drive = with(image.drive("data"), &json!({ "is_read_only": true }));
    let mut vms = [(); 2].map(|()| disk::booted(Guest::Small, 1, &drive));
    for vm in &mut vms {
        assert_eq!(vm.shell("head -c 3 /dev/vda"), "rrr");
    }
}

#[test]
fn a_drive_gets_another_file_or_size_while_the_guest_runs() {
    let (image, other) = (Image::new(24), Image::new(20));
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    start_load(&mut vm, "churn", "churn /dev/vda 2 /tmp/stop");
    let so_far = wait_for_load(&mut vm, "churn", "done", 0);
    // The same file, which has grown, under load.
    image.set_len(26 << 20);
    let patch = |vm: &mut Vm, fields: serde_json::Value| {
        let body = with(json!({ "drive_id": "data" }), &fields);
        done(&mut vm.client, "PATCH /drives/data", body.to_string());
    };
    patch(&mut vm, json!({}));
    wait_for_load(&mut vm, "churn", "done", so_far);
    assert_eq!(
        vm.shell("cat /sys/block/vda/size").trim(),
        (26 * 2048).to_string()
    );
    vm.shell("touch /tmp/stop");
    wait_for_load(&mut vm, "churn", "all right after", 0);
    // Another one.
    std::fs::write(other.path(), vec![b'o'; 20 << 20]).unwrap();
    patch(&mut vm, json!({ "path_on_host": other.path() }));
    assert_eq!(
        vm.shell("cat /sys/block/vda/size").trim(),
        (20 * 2048).to_string()
    );
    assert_eq!(vm.shell("head -c 3 /dev/vda"), "ooo");
    // One that is not there changes nothing.
    let missing = json!({ "drive_id": "data", "path_on_host": other.beside("missing") });
    refused_with(
        &mut vm.client,
        "PATCH /drives/data",
        missing.to_string(),
        "missing",
    );
    vm.shell("echo new | dd of=/dev/vda conv=fsync");
    assert!(other.bytes().starts_with(b"new\n"));
    no_complaints(&mut vm);
}

/// How many rings a process has.
fn rings(vm: &Vm) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
    files
        .flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .filter(|target| target.to_string_lossy() == "anon_inode:[io_uring]")
        .count()
}

/// Without it, `Async` would silently be served by threads everywhere.
#[test]
fn each_async_drive_has_a_ring_and_others_have_none() {
    let images = [(); 3].map(|()| Image::new(4));
    let engines = ["Async", "Sync", "Async"];
    let drives: Vec<_> = (0..)
        .zip(engines.iter().zip(&images))
        .map(|(n, (engine, image))| {
            with(
                image.drive(&format!("d{n}")),
                &json!({ "io_engine": engine }),
            )
        })
        .collect();
    let mut vm = disk::boot(Guest::Small, 1, &drives);
    assert_eq!(rings(&vm), 2);
    let patch = json!({ "drive_id": "d0", "path_on_host": images[0].path() });
    done(&mut vm.client, "PATCH /drives/d0", patch.to_string());
    assert_eq!(rings(&vm), 2);
}

#[test]
fn a_block_device_of_the_host_is_a_drive() {
    for engine in ["Async", "Sync"] {
        let device = BlockDevice::filled_with(b'h');
        let drive = json!({
            "drive_id": "data",
            "path_on_host": device.path(),
            "is_root_device": false,
            "cache_type": "Writeback",
            "io_engine": engine,
        });
        // A start opens the device itself; a shared guest is a restore, which gets it in a file's place.
        let mut vm = match engine {
            "Sync" => disk::boot(Guest::Small, 1, std::slice::from_ref(&drive)),
            _ => disk::booted(Guest::Small, 1, &drive),
        };
        let sectors = vm.shell("cat /sys/block/vda/size");
        assert_eq!(sectors.trim(), device.sectors().to_string());
        assert_eq!(vm.shell("head -c 3 /dev/vda"), "hhh");
        start_load(&mut vm, "churn", "churn /dev/vda 2 /tmp/stop");
        let so_far = wait_for_load(&mut vm, "churn", "done", 0);
        // Another machine goes on with it.
        let snapshot = vm.snapshot();
        vm.kill();
        let mut vm = Vm::restore(&snapshot);
        wait_for_load(&mut vm, "churn", "done", so_far);
        vm.shell("touch /tmp/stop");
        wait_for_load(&mut vm, "churn", "all right after", 0);
        vm.shell("dd if=/dev/urandom of=/tmp/random bs=1M count=2");
        vm.shell("dd if=/tmp/random of=/dev/vda bs=1M seek=5 conv=fsync");
        vm.shell("blkdiscard -o 8388608 -l 4194304 /dev/vda");
        let sum = vm.shell("sha256sum < /tmp/random");
        no_complaints(&mut vm);
        vm.kill();
        let bytes = device.bytes();
        assert_eq!(
            sum.split(' ').next(),
            Some(&*sha256(&bytes[5 << 20..7 << 20]))
        );
        assert!(bytes[8 << 20..12 << 20].iter().all(|byte| *byte == 0));
    }
}
