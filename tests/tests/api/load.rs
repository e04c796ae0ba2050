//! Loads that fail, and what is left of the VMM: everything.

use std::fs;
use std::path::Path;

use serde_json::json;
use vmgenie_tests::http::{done, ok, refused};
use vmgenie_tests::process::{open_files, threads};
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

fn body(state: &Path, memory: &Path) -> String {
    json!({"snapshot_path": state, "mem_file_path": memory, "resume_vm": true}).to_string()
}

/// Loads that must fail, each with a part of its message.
fn fail_in_every_way(vm: &mut Vm, good: &Snapshot, other: &Snapshot) {
    let missing = good.dir().join("missing");
    let damaged = good.dir().join("damaged");
    let mut bytes = fs::read(good.state()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let cases = [
        (missing.clone(), good.memory(), "missing"),
        (good.state(), missing, "does not exist"),
        (damaged.clone(), good.memory(), "it is damaged"),
        (good.state(), other.memory(), "belongs to snapshot"),
        (other.state(), good.memory(), "belongs to snapshot"),
        (good.memory(), good.state(), "refused"),
        (good.dir().to_owned(), good.memory(), "not a regular file"),
        (good.state(), good.dir().to_owned(), "not a regular file"),
        ("/dev/zero".into(), good.memory(), "not a regular file"),
        (good.state(), "/dev/kvm".into(), "not a regular file"),
    ];
    for (state, memory, part) in cases {
        let message = refused(&mut vm.client, "PUT /snapshot/load", body(&state, &memory));
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Not started");
        assert_eq!(
            ok(&mut vm.client, "GET /machine-config", "")["mem_size_mib"],
            128
        );
    }
    fs::remove_file(damaged).unwrap();
}

#[test]
fn after_failed_loads_a_good_one_works() {
    let (good, other) = (tiny::boot("touch=1").snapshot(), tiny::boot("").snapshot());
    let mut vm = Vm::empty();
    // A first round, after which what the start of the process had open for a moment is closed.
    fail_in_every_way(&mut vm, &good, &other);
    let before = (open_files(vm.pid()), threads(vm.pid()));
    fail_in_every_way(&mut vm, &good, &other);
    assert_eq!(
        (open_files(vm.pid()), threads(vm.pid())),
        before,
        "open files and threads"
    );
    done(
        &mut vm.client,
        "PUT /snapshot/load",
        body(&good.state(), &good.memory()),
    );
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
    assert_eq!(tiny::Memory::of(&vm.snapshot()).touched_mib(), 1);
}

#[test]
fn after_failed_loads_a_boot_works() {
    let (good, other) = (tiny::boot("touch=1").snapshot(), tiny::boot("").snapshot());
    let mut vm = Vm::empty();
    fail_in_every_way(&mut vm, &good, &other);
    let client = &mut vm.client;
    done(
        client,
        "PUT /machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
    );
    let source = json!({"kernel_image_path": Guest::Tiny.kernel(), "boot_args": "touch=2"});
    done(client, "PUT /boot-source", source.to_string());
    done(
        client,
        "PUT /actions",
        r#"{"action_type": "InstanceStart"}"#,
    );
    vm.console.wait_for("ready\n", tiny::LIMIT);
    assert_eq!(tiny::Memory::of(&vm.snapshot()).touched_mib(), 2);
}
