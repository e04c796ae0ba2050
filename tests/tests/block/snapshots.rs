//! Disks in snapshots: what the guest's memory believes of a disk is what the disk has.

use serde_json::json;
use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::disk::{self, Image, with};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Snapshot, Vm};

use crate::{start_load, wait_for_load};

/// Under load from four threads, the guest is snapshotted, its VMM is killed, and it goes on in another one, again and again.
fn goes_on_through(cycles: usize, engine: &str) {
    let image = Image::new(24);
    let drive = with(image.drive("data"), &json!({ "io_engine": engine }));
    let mut vm = disk::booted(Guest::Small, 2, &drive);
    start_load(&mut vm, "churn", "churn /dev/vda 4 /tmp/stop");
    let mut done = wait_for_load(&mut vm, "churn", "done", 0);
    for cycle in 0..cycles {
        let snapshot = vm.snapshot();
        vm.kill();
        vm = Vm::restore_as(&snapshot, GenerationChoice::Keep);
        done = wait_for_load(&mut vm, "churn", "done", done);
        println!("cycle {cycle}: {done}");
    }
    vm.shell("touch /tmp/stop");
    let total = wait_for_load(&mut vm, "churn", "all right after", 0);
    println!("{total} writes and checked reads");
    no_complaints(&mut vm);
}

#[test]
fn writes_are_right_after_20_snapshots_and_restores_under_load() {
    goes_on_through(20, "Async");
}

#[test]
fn writes_are_right_after_snapshots_and_restores_with_threads() {
    goes_on_through(4, "Sync");
}

#[test]
fn a_guest_goes_on_after_a_snapshot_that_it_does_not_notice() {
    let image = Image::new(24);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    start_load(&mut vm, "churn", "churn /dev/vda 3 /tmp/stop");
    let mut done = 0;
    for _ in 0..5 {
        done = wait_for_load(&mut vm, "churn", "done", done);
        drop(vm.snapshot());
        vm.client.resume().unwrap();
    }
    vm.shell("touch /tmp/stop");
    wait_for_load(&mut vm, "churn", "all right after", 0);
    no_complaints(&mut vm);
}

#[test]
fn a_restored_guest_learns_of_another_size() {
    let image = Image::new(24);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    let snapshot: Snapshot = vm.snapshot();
    vm.kill();
    image.set_len(32 << 20);
    let mut vm = Vm::restore(&snapshot);
    assert_eq!(
        vm.shell("cat /sys/block/vda/size").trim(),
        (32 * 2048).to_string()
    );
    no_complaints(&mut vm);
}
