//! The gate of a load, and GET `/ready`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use vmgenie_devices::sgen::DriverReport;
use vmgenie_machine::readiness::Readiness;
use vmgenie_machine::request::{Gate, OnTimeout};

use super::*;
use crate::api::testing::{answer_by, controller_handle_of};

fn load(gate: Value) -> Value {
    let backend = json!({ "backend_type": "File", "backend_path": "/m" });
    json!({ "snapshot_path": "/s", "mem_backend": backend, "gate": gate })
}

#[test]
fn a_load_has_a_gate_if_it_says_so() {
    let api = willing();
    let all = Gate {
        link: true,
        vsock: true,
        agents: None,
        timeout: Duration::from_secs(30),
        on_timeout: OnTimeout::Keep,
    };
    let cases = [
        (Value::Null, None),
        (json!({}), Some(all)),
        (
            json!({ "vsock": false, "agents": 2, "timeout_ms": 1, "on_timeout": "kill" }),
            Some(Gate {
                vsock: false,
                agents: Some(2),
                timeout: Duration::from_millis(1),
                on_timeout: OnTimeout::Kill,
                ..all
            }),
        ),
        (
            json!({ "link": false, "timeout_ms": 600_000, "on_timeout": "open" }),
            Some(Gate {
                link: false,
                timeout: Duration::from_secs(600),
                on_timeout: OnTimeout::Open,
                ..all
            }),
        ),
    ];
    for (body, gate) in cases {
        api.done("PUT", "/snapshot/load", load(body));
        let commands = api.commands();
        let [Command::LoadSnapshot(request)] = &commands[..] else {
            panic!("{commands:?}");
        };
        assert_eq!(request.gate, gate);
    }
}

#[test]
fn a_gate_that_makes_no_sense_is_refused() {
    let api = willing();
    let mut kept = load(json!({}));
    kept["generation"] = json!("keep");
    for (body, expected) in [
        (load(json!({ "timeout_ms": 0 })), "may be 1 to 600000"),
        (load(json!({ "timeout_ms": 600_001 })), "may be 1 to 600000"),
        (load(json!({ "timeout_ms": -1 })), "invalid value"),
        (load(json!({ "agents": -1 })), "invalid value"),
        (
            load(json!({ "on_timeout": "wait" })),
            "expected one of `keep`",
        ),
        (load(json!({ "network": true })), "unknown field"),
        (load(json!(true)), "invalid type"),
        (kept, "\"generation\": \"new\""),
    ] {
        let message = api.fault("PUT", "/snapshot/load", body.to_string());
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(api.commands(), []);
}

/// The API in front of a machine with this gate, which runs.
fn of_machine(gate: Option<Gate>) -> (Fixture, Arc<Readiness>, watch::Sender<DriverReport>) {
    let reports = watch::Sender::new(DriverReport::default());
    let readiness = Arc::new(Readiness::default());
    readiness.begin(true, gate);
    readiness.resumed();
    let (handle, commands) = controller_handle_of(reports.subscribe());
    let seen = answer_by(commands, |_| panic!("the controller is asked for nothing"));
    let handle = handle.with_readiness(Arc::clone(&readiness));
    (Fixture::of(handle, seen), readiness, reports)
}

fn ready(api: &Fixture) -> (u16, Value) {
    let (status, headers, answer) = api.send("GET", "/ready", "");
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["ready"] == json!(true), status == 200, "{answer}");
    (status, answer)
}

#[test]
fn a_machine_is_ready_when_its_guest_has_adapted() {
    let (api, readiness, reports) = of_machine(None);
    let nobody = json!({ "ready": false, "stage": "none", "missing": ["driver"] });
    assert_eq!(ready(&api), (503, nobody));
    let chained = DriverReport {
        version: 1,
        reached: true,
        reseeded: true,
        chain: Some(true),
        required: 1,
        agents: 1,
        ..DriverReport::default()
    };
    let identity = DriverReport {
        identity: true,
        ..chained
    };
    let adapted = DriverReport {
        ready: 1,
        required: 0,
        ..identity
    };
    for (report, status, stage, missing) in [
        (
            chained,
            503,
            "none",
            json!(["watchers", "identity", "agent"]),
        ),
        (identity, 503, "identity", json!(["watchers", "ready"])),
        (adapted, 200, "service", json!([])),
    ] {
        readiness.told(&report);
        reports.send_replace(report);
        let (told, answer) = ready(&api);
        assert_eq!((told, &answer["stage"]), (status, &json!(stage)));
        assert_eq!(answer["missing"], missing);
        assert!(answer.get("gate").is_none());
        assert!(answer["reseeded_us"].is_u64());
        assert_eq!(answer["service_us"].is_u64(), status == 200);
    }
}

#[test]
fn a_machine_behind_a_gate_is_ready_when_that_is_open() {
    let gate = Gate {
        link: true,
        vsock: true,
        agents: Some(1),
        timeout: Duration::from_secs(600),
        on_timeout: OnTimeout::Keep,
    };
    let (api, readiness, reports) = of_machine(Some(gate));
    let alone = DriverReport {
        version: 1,
        reached: true,
        reseeded: true,
        ..DriverReport::default()
    };
    readiness.told(&alone);
    reports.send_replace(alone);
    let (status, answer) = ready(&api);
    assert_eq!(
        (status, &answer["missing"]),
        (503, &json!(["identity", "agent"]))
    );
    let closed = json!({ "open": "none", "timed_out": false, "forced": false });
    assert_eq!(answer["gate"], closed);
    let adapted = DriverReport {
        ready: 1,
        agents: 1,
        ..alone
    };
    assert!(readiness.told(&adapted));
    reports.send_replace(adapted);
    let (status, answer) = ready(&api);
    assert_eq!(
        (status, &answer["stage"]),
        (503, &json!("none")),
        "nobody has opened it"
    );
    while readiness.todo().is_some() {}
    let (status, answer) = ready(&api);
    assert_eq!((status, &answer["gate"]["open"]), (200, &json!("service")));
    assert!(answer["service_us"].is_u64());
}

#[test]
fn whether_a_machine_is_ready_has_no_body() {
    let message = willing().fault("GET", "/ready", "{}");
    assert_eq!(message, "GET request cannot have a body.");
}
