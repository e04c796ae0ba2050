//! Clones behind a gate: nobody reaches them, and they reach nobody, before they know who they are.

use std::io::{BufRead, BufReader, ErrorKind};
use std::time::Duration;

use guest_load::download;
use guest_load::vsock::connect_to_guest;
use serde_json::json;
use vm_agent::patience::Patience;
use vmgenie_api::wire::Missing;
use vmgenie_tests::shell::{load_modules, no_complaints, start_hanging_agent};
use vmgenie_tests::vsock::{LOAD_PORT, boot, connect, listen, socket, start_load};
use vmgenie_tests::{Guest, Vm, http};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_clone_behind_a_gate_is_not_reached_and_reaches_nobody_before_it_has_adapted() {
    let mut vm = boot(Guest::Small);
    load_modules(&mut vm, "");
    start_load(&mut vm);
    start_hanging_agent(&mut vm);
    assert!(vm.wait_adapted_of(Some(1)).adapted);
    let snapshot = vm.snapshot();
    let mut clone = Vm::empty();
    let own = socket(&clone);
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
        "vsock_override": { "uds_path": own },
        "gate": { "timeout_ms": 600_000 },
    });
    http::done(&mut clone.client, "PUT /snapshot/load", body.to_string());
    let listener = listen(&own, 80);
    listener.set_nonblocking(true).unwrap();
    clone.wait_missing(&[Missing::Watchers, Missing::Agent]);
    for _ in 0..3 {
        let refused = connect_to_guest(&own, LOAD_PORT);
        assert!(refused.is_err(), "{refused:?}");
        let (status, _) = clone.run("guest-load vsock-hold 80 > /tmp/held 2>&1");
        assert_ne!(status, 0);
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    }
    clone.shell("touch /tmp/go");
    clone.until_ready(|ready| ready.ready);
    download(connect(&own, LOAD_PORT), 1 << 20).unwrap();
    clone.shell("guest-load vsock-hold 80 > /tmp/held 2>&1 &");
    let mut patience = Patience::new(LIMIT);
    let held = loop {
        match listener.accept() {
            Ok((held, _)) => break held,
            Err(error) => assert!(!patience.is_over(), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    held.set_nonblocking(false).unwrap();
    let mut line = String::new();
    BufReader::new(held).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    no_complaints(&mut clone);
}
