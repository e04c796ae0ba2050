//! Snapshots and clones.

use std::io::{BufRead, BufReader, Read};
use std::thread;
use std::time::Duration;

use guest_load::{download, round_trips, upload};
use vm_agent::patience::Patience;
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::vsock::{
    CID, LOAD_PORT, boot, cid, connect, listen, restore, serve, socket, start_load,
};
use vmgenie_tests::{Guest, Vm};

const LIMIT: Duration = Duration::from_secs(60);

fn until_it_succeeds(vm: &mut Vm, command: &str) -> String {
    let mut patience = Patience::new(LIMIT);
    loop {
        let (status, output) = vm.run(command);
        if status == 0 {
            return output;
        }
        assert!(!patience.is_over(), "{command}: {status} {output}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Connections end in the clones, and there only; listeners stay; each clone has an address and a socket of its own.
fn clones(guest: Guest) {
    let mut vm = boot(guest);
    let home = socket(&vm);
    start_load(&mut vm);
    let listener = listen(&home, 80);
    vm.shell("guest-load vsock-hold 80 > /tmp/held 2>&1 &");
    let (held, _) = listener.accept().unwrap();
    let mut held = BufReader::new(held);
    let mut line = String::new();
    held.read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    let kept = connect(&home, LOAD_PORT);
    let snapshot = vm.snapshot();

    // The original's connections notice nothing.
    vm.client.resume().unwrap();
    round_trips(kept, 10).unwrap();
    assert_eq!(vm.shell("cat /tmp/held"), "");

    for other_cid in [Some(CID + 1), Some(CID + 2), None] {
        let mut clone = restore(&snapshot, other_cid);
        let own = socket(&clone);
        download(connect(&own, LOAD_PORT), 1 << 20).unwrap();
        upload(connect(&own, LOAD_PORT), 1 << 20).unwrap();
        let end = until_it_succeeds(&mut clone, "grep . /tmp/held");
        // The second is what the kernel says to a read that begins after the reset: the snapshot may have come before it.
        assert!(
            ["connection reset\n", "not connected\n"].contains(&end.as_str()),
            "{end}"
        );
        assert_eq!(cid(&mut clone), other_cid.unwrap_or(CID));
        serve(&own, 80);
        clone.shell("guest-load vsock-download 80 100000 10");
        no_complaints(&mut clone);
    }

    assert_eq!(vm.shell("cat /tmp/held"), "", "the original's goes on");
    drop(held);
    drop(listener);
    let end = until_it_succeeds(&mut vm, "grep . /tmp/held");
    assert_eq!(end, "read 0\n");
    no_complaints(&mut vm);
}

#[test]
fn clones_of_the_small_kernel_have_sockets_of_their_own() {
    clones(Guest::Small);
}

#[test]
fn clones_of_the_stock_kernel_have_sockets_of_their_own() {
    clones(Guest::Debian);
}

#[test]
fn connections_go_on_over_snapshots_of_the_original_under_load() {
    let mut vm = boot(Guest::Small);
    let socket = socket(&vm);
    start_load(&mut vm);
    let up = connect(&socket, LOAD_PORT);
    let down = connect(&socket, LOAD_PORT);
    let loads = [
        thread::spawn(move || upload(up, 16 << 20)),
        thread::spawn(move || download(down, 16 << 20)),
    ];
    let mut clones = 0;
    while loads.iter().any(|load| !load.is_finished()) && clones < 5 {
        let snapshot = vm.snapshot();
        vm.client.resume().unwrap();
        // Its driver had packets in all queues.
        let clone = restore(&snapshot, Some(CID + 1));
        download(
            connect(&vmgenie_tests::vsock::socket(&clone), LOAD_PORT),
            100_000,
        )
        .unwrap();
        clones += 1;
    }
    assert!(clones > 0);
    for load in loads {
        load.join().unwrap().unwrap();
    }
    no_complaints(&mut vm);
}

#[test]
fn a_chain_of_restores_is_told_each_time() {
    let mut vm = boot(Guest::Small);
    start_load(&mut vm);
    for n in 1..=3 {
        let mut stream = connect(&socket(&vm), LOAD_PORT);
        let snapshot = vm.snapshot();
        vm = restore(&snapshot, Some(CID + n));
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
        download(connect(&socket(&vm), LOAD_PORT), 100_000).unwrap();
        assert_eq!(cid(&mut vm), CID + n);
    }
    no_complaints(&mut vm);
}

#[test]
fn a_second_machine_cannot_take_the_socket_of_a_living_one() {
    let mut vm = boot(Guest::Small);
    let snapshot = vm.snapshot();
    let mut clone = Vm::empty();
    let body = serde_json::json!({
        "snapshot_path": snapshot.state(),
        "mem_backend": { "backend_type": "File", "backend_path": snapshot.memory() },
        "resume_vm": true,
    });
    let request = "PUT /snapshot/load";
    vmgenie_tests::http::refused_with(&mut clone.client, request, body.to_string(), "in use");
    // When it has gone, the socket is free.
    let path = socket(&vm);
    vm.kill();
    assert!(path.exists(), "nobody was there to remove it");
    vmgenie_tests::http::done(&mut clone.client, request, body.to_string());
    drop(clone);
    drop(vm);
}
