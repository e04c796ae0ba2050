//! Machines by name, and machines that no registry knows.

use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use crate::vmgenie;

/// Starts a tiny guest that is listed in `runtime_dir`, if there can be a registry.
fn start(id: &str, runtime_dir: &str) -> Vm {
    let kernel = Guest::Tiny.kernel();
    let arguments = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--memory=32M",
        "--id",
        id,
    ];
    let arguments = arguments.map(str::to_owned);
    let mut vm = Vm::spawn(&arguments, &[("XDG_RUNTIME_DIR", runtime_dir)]);
    vm.console.wait_for("ready\n", tiny::LIMIT);
    vm
}

/// Runs a command of the user whose machines are listed in `runtime_dir`; what it has said, and whether it succeeded.
fn say(runtime_dir: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = vmgenie(arguments);
    let output = command
        .env("XDG_RUNTIME_DIR", runtime_dir)
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(told).unwrap())
}

#[test]
fn every_client_command_takes_the_name_of_a_machine() {
    let (place, snapshot) = (Snapshot::new(), Snapshot::new());
    let runtime_dir = place.dir().to_str().unwrap();
    let mut vm = start("web-1", runtime_dir);
    let pid = vm.pid().to_string();
    let dir = snapshot.dir().to_str().unwrap();
    for arguments in [
        &["pause", "web-1"][..],
        &["resume", &pid],
        &["info", "web-1"],
        &["generation", "web-1", "--new"],
        &["snapshot", "web-1", dir],
        &["snapshot", &pid, dir, "--json"],
    ] {
        let (done, told) = say(runtime_dir, arguments);
        assert!(done, "{arguments:?}: {told}");
    }
    let (_, told) = say(runtime_dir, &["pause", "web-2"]);
    assert!(told.contains("there is no machine web-2"), "{told}");
    let (done, told) = say(runtime_dir, &["stop", "web-1"]);
    assert!(done, "{told}");
    assert_eq!(vm.wait_status(tiny::LIMIT).code(), Some(0));
}

#[test]
fn a_machine_that_no_registry_knows_is_stopped_by_its_socket() {
    let place = Snapshot::new();
    // What stands in the place of the registry is none.
    std::fs::write(place.dir().join("vmgenie"), "").unwrap();
    let nowhere = place.dir().to_str().unwrap();
    let mut vm = start("lost", nowhere);
    let socket = vm.socket();
    let socket = socket.to_str().unwrap().to_owned();
    let (done, told) = say(nowhere, &["stop", "lost"]);
    assert!(!done && told.contains("there is no machine lost"), "{told}");
    let (done, told) = say(nowhere, &["stop", &socket]);
    assert!(done && told.starts_with("Ended: lost"), "{told}");
    assert_eq!(vm.wait_status(tiny::LIMIT).code(), Some(0));
    let (done, told) = say(nowhere, &["stop", &socket]);
    assert!(!done && told.contains("there is no machine"), "{told}");
    let file = place.dir().join("file");
    std::fs::write(&file, "").unwrap();
    let (done, told) = say(nowhere, &["stop", file.to_str().unwrap()]);
    assert!(!done && told.contains("could not connect"), "{told}");
}
