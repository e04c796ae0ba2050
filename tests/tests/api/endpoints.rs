//! Each endpoint's good case, and the bodies that it refuses.

use serde_json::json;
use vmgenie_api::limits::BODY_LIMIT;
use vmgenie_tests::http::{call, done, mode_of, ok, refused, refused_with};
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

/// Every route that takes a body.
pub(crate) const WITH_BODY: [&str; 8] = [
    "PUT /machine-config",
    "PATCH /machine-config",
    "PUT /boot-source",
    "PUT /actions",
    "PATCH /vm",
    "PUT /snapshot/create",
    "PUT /snapshot/load",
    "PUT /generation",
];
/// Every route that takes none.
pub(crate) const WITHOUT_BODY: [&str; 5] = [
    "GET /",
    "GET /version",
    "GET /vm/config",
    "GET /machine-config",
    "GET /generation",
];

/// A body that is right for a route, as far as its shape goes.
pub(crate) fn good_body(request: &str) -> &'static str {
    match request {
        "PUT /machine-config" => r#"{"vcpu_count": 2, "mem_size_mib": 64}"#,
        "PATCH /machine-config" => r#"{"mem_size_mib": 96}"#,
        "PUT /boot-source" => r#"{"kernel_image_path": "/nowhere/vmlinux", "boot_args": "quiet"}"#,
        "PUT /actions" => r#"{"action_type": "InstanceStart"}"#,
        "PATCH /vm" => r#"{"state": "Paused"}"#,
        "PUT /snapshot/create" => {
            r#"{"snapshot_type": "Full", "snapshot_path": "/nowhere/state", "mem_file_path": "/nowhere/memory"}"#
        }
        "PUT /snapshot/load" => {
            r#"{"snapshot_path": "/nowhere/state", "mem_backend": {"backend_type": "File", "backend_path": "/nowhere/memory"}, "resume_vm": true, "generation": "keep"}"#
        }
        "PUT /generation" => "{}",
        _ => "",
    }
}

#[test]
fn a_machine_is_configured_booted_paused_and_resumed_through_the_api() {
    let mut vm = Vm::empty();
    assert_eq!(mode_of(&vm.socket()), 0o600, "the socket is the user's own");
    let client = &mut vm.client;
    assert_eq!(ok(client, "GET /", "")["state"], "Not started");
    assert_eq!(ok(client, "GET /", "")["app_name"], "vmgenie");
    let version = ok(client, "GET /version", "");
    assert!(version["firecracker_version"].is_string() && version["vmgenie_version"].is_string());
    assert_eq!(ok(client, "GET /machine-config", "")["mem_size_mib"], 128);

    done(
        client,
        "PUT /machine-config",
        r#"{"vcpu_count": 2, "mem_size_mib": 64}"#,
    );
    done(client, "PATCH /machine-config", r#"{"vcpu_count": 1}"#);
    done(
        client,
        "PATCH /machine-config",
        r#"{"mem_size_mib": 32, "smt": false}"#,
    );
    let kernel = Guest::Tiny.kernel();
    let source = json!({"kernel_image_path": &kernel, "boot_args": "touch=1"});
    done(client, "PUT /boot-source", source.to_string());
    let config = ok(client, "GET /vm/config", "");
    assert_eq!(config["machine-config"]["vcpu_count"], 1);
    assert_eq!(config["machine-config"]["mem_size_mib"], 32);
    assert_eq!(config["boot-source"]["boot_args"], "touch=1");
    assert_eq!(config["boot-source"]["kernel_image_path"], json!(kernel));

    done(
        client,
        "PUT /actions",
        r#"{"action_type": "InstanceStart"}"#,
    );
    vm.console.wait_for("ready\n", tiny::LIMIT);
    let client = &mut vm.client;
    for (state, shown) in [
        ("Paused", "Paused"),
        ("Paused", "Paused"),
        ("Resumed", "Running"),
        ("Resumed", "Running"),
    ] {
        done(client, "PATCH /vm", format!(r#"{{"state": "{state}"}}"#));
        assert_eq!(ok(client, "GET /", "")["state"], shown);
    }
    let generation = ok(client, "GET /generation", "");
    assert_eq!(generation["changes"], 0);
    assert_eq!(generation["raw"].as_str().unwrap().len(), 32);
}

#[test]
fn a_snapshot_is_written_and_loaded_in_both_of_firecrackers_forms() {
    let mut original = tiny::boot("touch=1");
    let snapshot = Snapshot::new();
    done(&mut original.client, "PATCH /vm", r#"{"state": "Paused"}"#);
    let body = json!({"snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory()});
    done(
        &mut original.client,
        "PUT /snapshot/create",
        body.to_string(),
    );
    assert_eq!(ok(&mut original.client, "GET /", "")["state"], "Paused");

    let backend = json!({"backend_type": "File", "backend_path": snapshot.memory()});
    for memory in [
        ("mem_backend", backend),
        ("mem_file_path", json!(snapshot.memory())),
    ] {
        let mut clone = Vm::empty();
        let body = json!({"snapshot_path": snapshot.state(), memory.0: memory.1});
        done(&mut clone.client, "PUT /snapshot/load", body.to_string());
        assert_eq!(ok(&mut clone.client, "GET /", "")["state"], "Paused");
        let config = ok(&mut clone.client, "GET /vm/config", "");
        assert_eq!(config["machine-config"]["mem_size_mib"], 32);
        done(&mut clone.client, "PATCH /vm", r#"{"state": "Resumed"}"#);
    }
}

#[test]
fn a_create_with_resume_vm_leaves_the_machine_running() {
    let mut vm = tiny::boot("");
    let snapshot = Snapshot::new();
    vm.client.pause().unwrap();
    let mut request = snapshot.request();
    request.resume_vm = true;
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
}

#[test]
fn a_body_that_is_not_what_an_endpoint_takes_is_refused() {
    let mut vm = Vm::empty();
    let client = &mut vm.client;
    for request in WITH_BODY {
        refused_with(client, request, "{", "json body");
        refused_with(client, request, "\u{0}", "json body");
        refused_with(client, request, vec![0xff; 64], "json body");
        refused(client, request, "17");
        refused_with(
            client,
            request,
            r#"{"surprise": 1}"#,
            "unknown field `surprise`",
        );
        refused(client, request, format!("{} trailing", good_body(request)));
        refused_with(
            client,
            request,
            vec![b' '; BODY_LIMIT + 1],
            "limit of 51200 bytes",
        );
        if request != "PUT /generation" {
            refused(client, request, "");
            refused(client, request, "[]");
        }
        // Deep nesting must not exhaust the stack.
        refused(client, request, "[".repeat(50_000));
        refused(client, request, r#"{"a":"#.repeat(8_000));
    }
    for request in WITHOUT_BODY {
        refused_with(client, request, "{}", "cannot have a body");
    }
    assert_eq!(ok(client, "GET /", "")["state"], "Not started");
}

#[test]
fn fields_of_the_wrong_type_or_out_of_range_are_refused_with_what_they_may_be() {
    let mut vm = Vm::empty();
    let client = &mut vm.client;
    let cases = [
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 0, "mem_size_mib": 64}"#,
            "1 to 32",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 33, "mem_size_mib": 64}"#,
            "1 to 32",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 31}"#,
            "32 to",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 18446744073709551615}"#,
            "32 to",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": -1, "mem_size_mib": 64}"#,
            "json body",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": "2", "mem_size_mib": 64}"#,
            "json body",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 1.5, "mem_size_mib": 64}"#,
            "json body",
        ),
        (
            "PUT /machine-config",
            r#"{"mem_size_mib": 64}"#,
            "missing field `vcpu_count`",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 2, "vcpu_count": 2, "mem_size_mib": 64}"#,
            "duplicate field",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 3, "mem_size_mib": 64, "smt": true}"#,
            "even number",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 65, "huge_pages": "2M"}"#,
            "huge pages",
        ),
        ("PATCH /machine-config", "{}", "changes nothing"),
        ("PATCH /machine-config", r#"{"vcpu_count": 99}"#, "1 to 32"),
        (
            "PATCH /machine-config",
            r#"{"track_dirty_pages": true}"#,
            "track_dirty_pages is not supported",
        ),
        (
            "PUT /boot-source",
            r#"{"kernel_image_path": ""}"#,
            "empty path",
        ),
        (
            "PUT /boot-source",
            r#"{"kernel_image_path": 5}"#,
            "json body",
        ),
        (
            "PUT /boot-source",
            r#"{"kernel_image_path": "/nowhere/vmlinux"}"#,
            "/nowhere/vmlinux",
        ),
        (
            "PUT /boot-source",
            r#"{"kernel_image_path": "/tmp"}"#,
            "/tmp",
        ),
        (
            "PUT /boot-source",
            r#"{"kernel_image_path": "a\u0000b"}"#,
            "kernel",
        ),
        (
            "PUT /boot-source",
            r#"{"kernel_image_path": "/x", "boot_args": "a\nb"}"#,
            "command line",
        ),
        (
            "PUT /actions",
            r#"{"action_type": "Explode"}"#,
            "unknown variant `Explode`",
        ),
        (
            "PUT /actions",
            r#"{"action_type": "SendCtrlAltDel"}"#,
            "there is none yet",
        ),
        (
            "PUT /actions",
            r#"{"action_type": "FlushMetrics"}"#,
            "only when there is a microVM",
        ),
        (
            "PATCH /vm",
            r#"{"state": "Running"}"#,
            "unknown variant `Running`",
        ),
        (
            "PUT /snapshot/create",
            r#"{"snapshot_type": "Diff", "snapshot_path": "a", "mem_file_path": "b"}"#,
            "Full",
        ),
        (
            "PUT /snapshot/create",
            r#"{"snapshot_path": "a", "mem_file_path": "a"}"#,
            "same file",
        ),
        (
            "PUT /snapshot/create",
            r#"{"snapshot_path": "a"}"#,
            "missing field `mem_file_path`",
        ),
        (
            "PUT /snapshot/load",
            r#"{"snapshot_path": "/s"}"#,
            "exactly one of mem_backend and mem_file_path",
        ),
        (
            "PUT /snapshot/load",
            r#"{"snapshot_path": "/s", "mem_file_path": "/m", "mem_backend": {"backend_type": "File", "backend_path": "/m"}}"#,
            "exactly one of mem_backend and mem_file_path",
        ),
        (
            "PUT /snapshot/load",
            r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "Uffd", "backend_path": "/m"}}"#,
            "Uffd is not supported",
        ),
        (
            "PUT /snapshot/load",
            r#"{"snapshot_path": "/s", "mem_file_path": "/m", "generation": "old"}"#,
            "unknown variant",
        ),
        (
            "PUT /snapshot/load",
            r#"{"snapshot_path": "/s", "mem_file_path": "/m", "enable_diff_snapshots": true}"#,
            "not supported",
        ),
        (
            "PUT /generation",
            r#"{"id": "00000000-0000-0000-0000-000000000000"}"#,
            "unknown field",
        ),
    ];
    for (request, body, part) in cases {
        refused_with(client, request, body, part);
    }
    let untouched = ok(client, "GET /machine-config", "");
    assert_eq!(
        (&untouched["vcpu_count"], &untouched["mem_size_mib"]),
        (&json!(1), &json!(128))
    );
}

#[test]
fn routes_and_methods_that_do_not_exist_are_refused_by_name() {
    let mut vm = Vm::empty();
    let client = &mut vm.client;
    for request in [
        "GET /nowhere",
        "PUT /",
        "POST /actions",
        "DELETE /vm",
        "GET /vm",
        "PUT /vm",
        "GET /snapshot/create",
        "PATCH /generation",
        "PUT /machine-config/",
        "GET //",
        "GET /version/../version",
        "PUT /drive/rootfs",
        "BREW /coffee",
    ] {
        refused_with(client, request, "", "Invalid request method and/or path");
    }
    let long = format!("GET /{}", "x".repeat(8_000));
    assert!(
        refused(client, &long, "").len() < 400,
        "a long path is not repeated"
    );
    // No body may be in the answer to HEAD.
    let (status, json) = call(client, "HEAD /nowhere", "");
    assert_eq!((status, json.is_null()), (400, true));
}
