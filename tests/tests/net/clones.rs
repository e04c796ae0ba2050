//! Clones, each on a network of its own.

use std::time::Duration;

use serde_json::json;
use vmgenie_tests::net::{HOST, LOAD_PORT, Namespace, eth0, set_up_guest, start_load};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, http};

use super::{LIMIT, until_it_succeeds};

const MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 1];

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn clones_have_taps_and_addresses_of_their_own() {
    let home = Namespace::new();
    home.add_tap("tap0");
    let mut interface = eth0("tap0");
    interface["guest_mac"] = text(MAC).into();
    let mut vm = home.boot(Guest::Small, &[interface]);
    set_up_guest(&mut vm);
    start_load(&mut vm);
    // A connection whose other end no clone will find. Its sender repeats itself, and is told.
    let listener = home.listen(9000);
    vm.shell(&format!(
        "(cat /dev/zero | nc {HOST} 9000; echo over > /tmp/ended) > /dev/null 2>&1 &"
    ));
    let (peer, _) = listener.accept().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let snapshot = vm.snapshot();

    // Two networks that know nothing of each other, with the same addresses.
    let mut clones = Vec::new();
    for n in 1..=2_u8 {
        let tap = format!("tap{n}");
        let mac = [MAC[0], 0, 0, 0, 0, n + 1];
        let namespace = Namespace::new();
        namespace.add_tap(&tap);
        let mut arp = namespace.hear_arp(&tap);
        let mut clone = namespace.empty_vm();
        let body = json!({
            "snapshot_path": snapshot.state(),
            "mem_file_path": snapshot.memory(),
            "resume_vm": true,
            "network_overrides": [{ "iface_id": "eth0", "host_dev_name": tap, "guest_mac": text(mac) }],
        });
        http::done(&mut clone.client, "PUT /snapshot/load", body.to_string());
        assert_eq!(
            arp.announcement(LIMIT),
            MAC,
            "the driver has its old address still"
        );
        guest_load::download(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
        clones.push((namespace, clone, mac));
    }
    // The original is on its own network still, and its connection as well.
    vm.client.resume().unwrap();
    guest_load::download(home.connect(LOAD_PORT), 1 << 20).unwrap();
    assert_ne!(vm.run("[ -e /tmp/ended ]").0, 0);
    drop(peer);

    for (namespace, clone, mac) in &mut clones {
        let ended = until_it_succeeds(clone, "cat /tmp/ended");
        assert_eq!(ended, "over\n", "the connection was reset");
        // A driver that binds once more reads the new address.
        let device = clone.shell("basename $(readlink /sys/class/net/eth0/device)");
        let device = device.trim();
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        clone.shell(&format!(
            "echo {device} > {driver}/unbind; echo {device} > {driver}/bind"
        ));
        let address = clone.shell("cat /sys/class/net/eth0/address");
        assert_eq!(address.trim(), text(*mac));
        set_up_guest(clone);
        // The host believes in the old address for up to a minute, unless it hears from the new one.
        clone.shell(&format!("ping -c 1 -W 10 {HOST}"));
        guest_load::upload(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
        no_complaints(clone);
    }
}

/// What a request may have wrong.
#[test]
fn a_clone_without_its_tap_is_refused_and_may_be_loaded_on_another() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    namespace.add_tap("tap1");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    let snapshot = vm.snapshot();
    let mut clone = namespace.empty_vm();
    let mut body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
    });
    let request = "PUT /snapshot/load";
    http::refused_with(&mut clone.client, request, body.to_string(), "in use");
    body["network_overrides"] = json!([{ "iface_id": "eth7", "host_dev_name": "tap1" }]);
    http::refused_with(&mut clone.client, request, body.to_string(), "eth7");
    body["network_overrides"] = json!([{ "iface_id": "eth0", "host_dev_name": "tap1" }]);
    http::done(&mut clone.client, request, body.to_string());
    clone.shell("ip link set eth0 up");
    assert_eq!(clone.shell("cat /sys/class/net/eth0/carrier").trim(), "1");
}
