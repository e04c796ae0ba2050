//! Guests that tests share.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::json;
use vmgenie_tests::booted::Booted;
use vmgenie_tests::tiny::{self, echo, generation};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

/// Nobody has asked for this one before: not even the same test, run again.
fn description() -> String {
    let dir = tempfile::tempdir().expect("a name");
    format!("a guest for {}", dir.path().display())
}

fn restored(booted: &Booted) -> Vm {
    let mut vm = Vm::empty();
    booted.restore_into(&mut vm, &json!({}));
    vm
}

#[test]
fn a_guest_that_several_tests_ask_for_is_booted_once_and_is_in_its_first_generation_for_all() {
    let (name, boots) = (description(), AtomicU32::new(0));
    let ask = || {
        let booted = Booted::of(&name, || {
            boots.fetch_add(1, Ordering::Relaxed);
            tiny::boot("echo")
        });
        let mut vm = restored(&booted);
        echo(&mut vm, "hears");
        generation(&mut vm)
    };
    let told = thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(ask));
        threads.map(|thread| thread.join().expect("a guest"))
    });
    assert_eq!(boots.into_inner(), 1);
    for told in &told {
        assert_eq!((told.counter, told.changes), (0, 0));
        assert_eq!(told.raw, told.raw);
    }
}

#[test]
fn a_guest_whose_boot_failed_is_booted_by_the_next_test_that_asks() {
    let name = description();
    let lost = || -> Vm {
        let _vm = tiny::boot("");
        panic!("the emulated processor has lost it");
    };
    assert!(catch_unwind(AssertUnwindSafe(|| Booted::of(&name, lost))).is_err());
    let booted = Booted::of(&name, || tiny::boot("echo"));
    echo(&mut restored(&booted), "hears");
}

#[test]
#[should_panic(expected = "not part of a snapshot")]
fn a_guest_with_options_that_no_snapshot_has_is_not_shared() {
    Boot::new(Guest::Tiny).option("--on-reboot=exit").booted();
}
