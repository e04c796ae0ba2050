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
use vmgenie_tests::disk::{self, Image};
use vmgenie_tests::http::{done, ok};
use vmgenie_tests::net::{Namespace, eth0};
use vmgenie_tests::tiny::{self, echo, generation};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm, vsock};

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
    let [first, ..] = &told;
    for told in &told {
        assert_eq!((told.counter, told.changes), (0, 0));
        assert_eq!(told.raw, first.raw);
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

/// A tiny guest with one device of each kind that belongs to a test.
fn with_devices(namespace: &Namespace, image: &Image) -> Vm {
    let mut vm = namespace.empty_vm();
    disk::configure(&mut vm, Guest::Tiny, 1, &[image.drive("data")]);
    let net = eth0("tap0").to_string();
    done(&mut vm.client, "PUT /network-interfaces/eth0", net);
    let socket = json!({ "guest_cid": vsock::CID, "uds_path": vsock::socket(&vm) });
    done(&mut vm.client, "PUT /vsock", socket.to_string());
    vm.client.start().expect("the guest starts");
    vm.console.wait_for("ready\n", tiny::LIMIT);
    vm
}

#[test]
fn each_test_has_its_own_drive_tap_and_socket() {
    let places = [(); 2].map(|()| {
        let namespace = Namespace::new();
        namespace.add_tap("tap0");
        (namespace, Image::new(4))
    });
    let (name, (first, image)) = (description(), &places[0]);
    let booted = Booted::of(&name, || with_devices(first, image));
    let vms = places.each_ref().map(|(namespace, image)| {
        let mut vm = namespace.empty_vm();
        let own = json!({
            "drive_overrides": [{ "drive_id": "data", "path_on_host": image.path() }],
            "vsock_override": { "uds_path": vsock::socket(&vm) },
        });
        booted.restore_into(&mut vm, &own);
        vm
    });
    for ((_, image), mut vm) in places.iter().zip(vms) {
        assert!(vsock::socket(&vm).exists());
        let told = ok(&mut vm.client, "GET /vm/config", "");
        let drive = &told["drives"][0]["path_on_host"];
        assert_eq!(drive.as_str(), image.path().to_str());
        assert_eq!(generation(&mut vm).changes, 0);
    }
}

#[test]
#[should_panic(expected = "not part of a snapshot")]
fn a_guest_with_options_that_no_snapshot_has_is_not_shared() {
    Boot::new(Guest::Tiny).option("--on-reboot=exit").booted();
}
