//! What a guest is told of its interfaces, and what the host refuses.

use serde_json::json;
use vmgenie_tests::net::{Namespace, configure, eth0, set_up_guest};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, http};

use super::LIMIT;

fn address(vm: &mut vmgenie_tests::Vm, interface: &str) -> String {
    let text = vm.shell(&format!("cat /sys/class/net/{interface}/address"));
    text.trim().to_owned()
}

#[test]
fn a_guest_has_the_addresses_and_the_mtu_that_were_asked_for() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let interfaces = [
        json!({ "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02", "mtu": 1300 }),
        // This tap is made, as it is not there.
        json!({ "iface_id": "eth1", "host_dev_name": "tap1" }),
    ];
    let mut vm = namespace.boot(Guest::Small, &interfaces);
    assert_eq!(address(&mut vm, "eth0"), "06:00:ac:10:00:02");
    assert_eq!(vm.shell("cat /sys/class/net/eth0/mtu").trim(), "1300");
    assert_ne!(
        vm.run("ip link set eth0 mtu 1400").0,
        0,
        "more than there is"
    );
    assert_eq!(vm.shell("cat /sys/class/net/eth1/mtu").trim(), "1500");
    let other = address(&mut vm, "eth1");
    let first = u8::from_str_radix(&other[..2], 16).unwrap();
    assert_eq!(first & 0b11, 0b10, "{other} is one station's and nobody's");
    // No packet is larger than the MTU, and larger ones are cut.
    set_up_guest(&mut vm);
    vm.shell(&format!(
        "ping -c 1 -W 10 -s 4000 {}",
        vmgenie_tests::net::HOST
    ));
    // The link is up, and what the host's side does is seen.
    vm.shell("ip link set eth1 up");
    assert_eq!(vm.shell("cat /sys/class/net/eth1/carrier").trim(), "1");
}

#[test]
fn a_cable_is_plugged_out_and_in_again_while_the_guest_runs() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    let ping = format!("ping -c 1 -W 10 {}", vmgenie_tests::net::HOST);
    vm.shell(&ping);
    let mut arp = namespace.hear_arp("tap0");
    for (up, carrier) in [(false, "0"), (true, "1")] {
        let body = json!({ "iface_id": "eth0", "link_up": up }).to_string();
        http::done(&mut vm.client, "PATCH /network-interfaces/eth0", body);
        // The guest hears of it by an interrupt, and looks a moment later.
        let waits = format!(
            "for i in $(seq 100); do [ \"$(cat /sys/class/net/eth0/carrier)\" = {carrier} ] && break; sleep 0.1; done; cat /sys/class/net/eth0/carrier"
        );
        assert_eq!(vm.shell(&waits).trim(), carrier);
    }
    // The network may be another.
    arp.announcement(LIMIT);
    vm.shell(&ping);
    no_complaints(&mut vm);
    let body = json!({ "iface_id": "eth9", "link_up": true }).to_string();
    let request = "PATCH /network-interfaces/eth9";
    http::refused_with(&mut vm.client, request, body, "no network interface");
}

#[test]
fn a_tap_that_cannot_be_opened_is_refused_and_another_one_may_be_tried() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut first = namespace.empty_vm();
    configure(&mut first, Guest::Tiny, &[eth0("tap0")]);
    first.client.start().unwrap();
    let mut vm = namespace.empty_vm();
    let start = json!({ "action_type": "InstanceStart" }).to_string();
    configure(&mut vm, Guest::Tiny, &[eth0("tap0")]);
    http::refused_with(&mut vm.client, "PUT /actions", start.clone(), "in use");
    // What can never be opened is told at once.
    let loopback = json!({ "iface_id": "eth0", "host_dev_name": "lo" }).to_string();
    let request = "PUT /network-interfaces/eth0";
    http::refused_with(&mut vm.client, request, loopback, "no tap");
    configure(&mut vm, Guest::Tiny, &[eth0("tap9")]);
    http::done(&mut vm.client, "PUT /actions", start);
    vm.console.wait_for("ready\n", LIMIT);
}
