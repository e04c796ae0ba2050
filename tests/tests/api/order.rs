//! Requests that come too early, too late or twice.

use serde_json::json;
use vmgenie_tests::http::{done, ok, refused, refused_with};
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use crate::endpoints::good_body;

const NO_MACHINE: &str =
    "Start one (PUT /actions InstanceStart) or load a snapshot (PUT /snapshot/load)";

#[test]
fn before_there_is_a_machine_a_client_is_told_to_start_one() {
    let mut vm = Vm::empty();
    let client = &mut vm.client;
    for request in ["PATCH /vm", "PUT /snapshot/create", "PUT /generation"] {
        refused_with(client, request, good_body(request), NO_MACHINE);
    }
    refused_with(client, "PATCH /vm", r#"{"state": "Resumed"}"#, NO_MACHINE);
    refused_with(client, "GET /generation", "", NO_MACHINE);
    refused_with(client, "PUT /generation", "", NO_MACHINE);
    let start = good_body("PUT /actions");
    refused_with(
        client,
        "PUT /actions",
        start,
        "set the kernel first (PUT /boot-source)",
    );
    assert_eq!(ok(client, "GET /", "")["state"], "Not started");
}

#[test]
fn a_machine_that_was_started_cannot_be_configured_started_or_replaced() {
    let mut vm = tiny::boot("");
    let before = ok(&mut vm.client, "GET /vm/config", "");
    let id = ok(&mut vm.client, "GET /generation", "");
    for state in ["Paused", "Resumed"] {
        let client = &mut vm.client;
        done(client, "PATCH /vm", format!(r#"{{"state": "{state}"}}"#));
        for request in [
            "PUT /machine-config",
            "PATCH /machine-config",
            "PUT /boot-source",
        ] {
            refused_with(client, request, good_body(request), "before the start only");
        }
        refused_with(
            client,
            "PUT /actions",
            good_body("PUT /actions"),
            "not supported after starting the microVM",
        );
        let load = good_body("PUT /snapshot/load");
        refused_with(client, "PUT /snapshot/load", load, "start another vmgenie");
    }
    assert_eq!(ok(&mut vm.client, "GET /vm/config", ""), before);
    assert_eq!(ok(&mut vm.client, "GET /generation", ""), id);
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
}

#[test]
fn a_running_machine_must_be_paused_before_its_snapshot() {
    let mut vm = tiny::boot("");
    let snapshot = Snapshot::new();
    let body = json!({"snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory()});
    let told = "pause it before a snapshot (PATCH /vm {\"state\": \"Paused\"})";
    refused_with(
        &mut vm.client,
        "PUT /snapshot/create",
        body.to_string(),
        told,
    );
    assert_eq!(std::fs::read_dir(snapshot.dir()).unwrap().count(), 0);
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
}

#[test]
fn a_configured_vmm_refuses_a_snapshot_and_still_boots() {
    let snapshot = tiny::boot("").snapshot();
    let mut vm = Vm::empty();
    let client = &mut vm.client;
    done(
        client,
        "PUT /machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
    );
    let load = json!({"snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory()});
    refused_with(
        client,
        "PUT /snapshot/load",
        load.to_string(),
        "nothing was configured",
    );
    let source = json!({"kernel_image_path": Guest::Tiny.kernel(), "boot_args": ""});
    done(client, "PUT /boot-source", source.to_string());
    done(client, "PUT /actions", good_body("PUT /actions"));
    vm.console.wait_for("ready\n", tiny::LIMIT);
}

#[test]
fn a_restored_machine_cannot_be_restored_or_started_again() {
    let snapshot = tiny::boot("").snapshot();
    let mut vm = Vm::restore(&snapshot);
    let client = &mut vm.client;
    let load = json!({"snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory()});
    refused_with(
        client,
        "PUT /snapshot/load",
        load.to_string(),
        "start another vmgenie",
    );
    refused_with(
        client,
        "PUT /actions",
        good_body("PUT /actions"),
        "not supported after starting the microVM",
    );
    assert_eq!(ok(client, "GET /", "")["state"], "Running");
}

#[test]
fn a_kernel_that_cannot_boot_leaves_a_vmm_that_boots_another() {
    let mut vm = Vm::empty();
    let rubbish = vm.dir().join("rubbish");
    let client = &mut vm.client;
    std::fs::write(&rubbish, [b"\x7fELF".as_slice(), &[0xff; 9000]].concat()).unwrap();
    done(
        client,
        "PUT /machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
    );
    let source = |kernel| json!({"kernel_image_path": kernel, "boot_args": ""}).to_string();
    done(client, "PUT /boot-source", source(rubbish.clone()));
    let message = refused(client, "PUT /actions", good_body("PUT /actions"));
    assert!(message.contains("rubbish"), "{message}");
    done(client, "PUT /boot-source", source(Guest::Tiny.kernel()));
    done(client, "PUT /actions", good_body("PUT /actions"));
    vm.console.wait_for("ready\n", tiny::LIMIT);
}
