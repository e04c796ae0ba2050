//! A VMM that dies.

use guest_load::disk::{BLOCK, fill};
use serde_json::json;
use vmgenie_tests::Guest;
use vmgenie_tests::disk::{self, Image, with};

use crate::{start_load, wait_for_load};

#[test]
fn a_vmm_that_is_killed_loses_nothing_that_was_flushed() {
    for (engine, least) in [("Async", 300), ("Sync", 50)] {
        let image = Image::new(24);
        let drive = with(image.drive("data"), &json!({ "io_engine": engine }));
        let mut vm = disk::booted(Guest::Small, 1, &drive);
        start_load(&mut vm, "log", "log /dev/vda");
        let flushed = wait_for_load(&mut vm, "log", "record", least);
        vm.kill();
        let bytes = image.bytes();
        for number in 0..=flushed {
            let mut expected = [0; BLOCK];
            fill(&mut expected, number, 1);
            let at = number as usize * BLOCK;
            assert!(
                bytes[at..at + BLOCK] == expected,
                "record {number} of {flushed}"
            );
        }
        println!("{engine}: {flushed} records");
    }
}
