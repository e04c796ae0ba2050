//! Transfers over snapshots.

use std::time::Duration;

use serde_json::json;
use vm_agent::patience::stretched;
use vmgenie_tests::net::{HOST, LOAD_PORT, Namespace, eth0, set_up_guest, start_load};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Snapshot, Vm, http};

use super::{file, until_it_succeeds};

fn load(vm: &mut Vm, snapshot: &Snapshot) {
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
    });
    http::done(&mut vm.client, "PUT /snapshot/load", body.to_string());
}

/// The guest downloads a file. In the middle of it, its machine is saved and goes on, again and again; then it ends, and a machine that is
/// restored from the last snapshot takes its place. The host's TCP notices nothing but a pause.
#[test]
fn a_transfer_goes_on_over_snapshots_and_in_the_restored_machine() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    let body = file(12 << 20);
    // Slow enough that it lasts longer than the snapshots.
    namespace.serve(8000, body.clone(), stretched(Duration::from_millis(50)));
    vm.shell(&format!(
        "(wget -q -O /tmp/page http://{HOST}:8000/; echo $? > /tmp/ended) > /tmp/log 2>&1 &"
    ));
    until_it_succeeds(&mut vm, "[ -s /tmp/page ]");
    for _ in 0..4 {
        let snapshot = vm.snapshot();
        drop(snapshot);
        vm.client.resume().unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(
        vm.shell("cat /tmp/ended 2>/dev/null || echo not yet"),
        "not yet\n"
    );
    let snapshot = vm.snapshot();
    vm.kill();

    let mut restored = namespace.empty_vm();
    load(&mut restored, &snapshot);
    let status = until_it_succeeds(&mut restored, "cat /tmp/ended");
    assert_eq!(status, "0\n", "{}", restored.shell("cat /tmp/log"));
    let page = restored.shell("wc -c < /tmp/page");
    restored.shell("mkdir -p /tmp/www && mv /tmp/page /tmp/www/page && httpd -p 80 -h /tmp/www");
    assert!(namespace.get(80, "/page") == body, "{page}");
    no_complaints(&mut restored);
}

/// Both directions at full speed, and a snapshot in the midst of it: what the device had taken from the queues beforehand is
/// neither lost nor done twice.
#[test]
fn snapshots_under_load_lose_nothing() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    start_load(&mut vm);
    let streams = [(); 2].map(|()| namespace.connect(LOAD_PORT));
    let [up, down] = streams;
    let transfers = [
        std::thread::spawn(move || guest_load::upload(up, 48 << 20)),
        std::thread::spawn(move || guest_load::download(down, 48 << 20)),
    ];
    let mut last = None;
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(150));
        last = Some(vm.snapshot());
        vm.client.resume().unwrap();
    }
    for transfer in transfers {
        transfer.join().unwrap().unwrap();
    }
    no_complaints(&mut vm);
    vm.kill();
    // Its connections are gone; its network is not.
    let mut restored = namespace.empty_vm();
    load(&mut restored, &last.unwrap());
    guest_load::download(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
    guest_load::upload(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
    no_complaints(&mut restored);
}
