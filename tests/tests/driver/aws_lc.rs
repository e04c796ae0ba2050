//! AWS-LC as it is: a program that was initialised before the snapshot, without privilege.

use std::collections::HashSet;

use vmgenie_tests::{Guest, Vm};

use crate::{boot, no_complaints, start, told};

/// The bytes in a line such as `again active 1 generation 2 bytes 00ff...`.
fn bytes<'a>(text: &'a str, word: &str) -> &'a str {
    let line = text
        .lines()
        .find(|line| line.starts_with(word))
        .expect("a line");
    line.rsplit(' ').next().expect("bytes")
}

fn differs_in_each_clone(guest: Guest) {
    let mut vm = boot(guest);
    let text = start(&mut vm, "sysgenid-aws-lc draw --after /tmp/restored");
    assert!(text.starts_with("ready active 1 generation 0 "), "{text}");
    let before = bytes(&text, "ready").to_owned();
    let snapshot = vm.snapshot();
    let mut drawn = HashSet::from([before]);
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        clone.shell("touch /tmp/restored");
        let text = told(&mut clone, "again");
        assert!(text.contains("\nagain active 1 generation 2 "), "{text}");
        assert!(
            drawn.insert(bytes(&text, "again").to_owned()),
            "drawn before: {text}"
        );
        no_complaints(&mut clone);
    }
    // The original is no clone, and the library knows that as well.
    vm.client.resume().unwrap();
    vm.shell("touch /tmp/restored");
    let text = told(&mut vm, "again");
    assert!(text.contains("\nagain active 1 generation 0 "), "{text}");
    assert!(drawn.insert(bytes(&text, "again").to_owned()), "{text}");
}

#[test]
fn aws_lc_draws_other_bytes_in_each_clone_of_the_small_kernel() {
    differs_in_each_clone(Guest::Small);
}

#[test]
fn aws_lc_draws_other_bytes_in_each_clone_of_the_stock_kernel() {
    differs_in_each_clone(Guest::Debian);
}

/// How fast it is with the device, and with one that it may not open, when it reseeds for each draw. The figures are in the test's output; what is asserted is why they differ.
#[test]
fn aws_lc_watches_the_device_without_privilege() {
    let mut vm = boot(Guest::Small);
    for (mode, active) in [("0666", 1), ("0600", 0)] {
        vm.shell(&format!("chmod {mode} /dev/sysgenid"));
        let text = vm.shell("sysgenid-aws-lc speed");
        println!("mode {mode}: {}", text.replace('\n', "; "));
        assert!(
            text.starts_with(&format!("ready active {active} ")),
            "{text}"
        );
    }
}
