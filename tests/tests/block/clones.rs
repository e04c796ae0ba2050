//! Clones, each with a disk of its own.

use std::fs;

use serde_json::json;
use vmgenie_tests::disk::{self, Image};
use vmgenie_tests::http::{done, refused_with};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Vm};

#[test]
fn each_clone_writes_to_a_copy_of_its_own() {
    let image = Image::new(24);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    vm.shell("mkdir -p /mnt && mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt && echo common > /mnt/file && sync");
    let snapshot = vm.snapshot();
    let load = |name: &str| {
        let copy =
            json!([{ "drive_id": "data", "path_on_host": image.beside(name), "copy": true }]);
        disk::load_request(&snapshot, &copy)
    };
    vm.kill();
    let before = image.bytes();
    let mut clones = ["a", "b"].map(|name| {
        let mut clone = Vm::empty();
        done(&mut clone.client, "PUT /snapshot/load", load(name));
        (name, clone)
    });
    for (name, clone) in &mut clones {
        clone.shell(&format!("echo clone-{name} > /mnt/mine && sync"));
    }
    for (name, clone) in &mut clones {
        assert_eq!(
            clone.shell("cat /mnt/file /mnt/mine"),
            format!("common\nclone-{name}\n")
        );
        clone.shell("umount /mnt");
        no_complaints(clone);
        let text = String::from_utf8_lossy(&fs::read(image.beside(name)).unwrap()).into_owned();
        assert!(text.contains(&format!("clone-{name}")));
    }
    assert!(image.bytes() == before, "the image has changed");
    // A copy replaces nothing.
    let mut late = Vm::empty();
    refused_with(
        &mut late.client,
        "PUT /snapshot/load",
        load("a"),
        "File exists",
    );
}
