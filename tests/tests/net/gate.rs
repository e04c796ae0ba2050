//! Clones behind a gate: what a peer sees of them before they know who they are. The packet sockets are on the clones' taps, where everything
//! comes by that a bridge would pass on.

use std::time::Duration;

use serde_json::{Value, json};
use vm_agent::patience::Patience;
use vmgenie_api::wire::{Missing, Stage};
use vmgenie_tests::net::{HOST, Namespace, eth0, set_up_guest};
use vmgenie_tests::packets::Packets;
use vmgenie_tests::shell::{load_modules, no_complaints, start_hanging_agent};
use vmgenie_tests::{Guest, Snapshot, Vm, http};

use super::links::{DEVICE, Rings, SPARE, activate, peek, poke};
use super::{LIMIT, until_it_succeeds};

/// How many frames are in the ring at the snapshot.
const FRAMES: u64 = 8;
/// Their protocol, which is one for local experiments.
const PROTOCOL: [u8; 2] = [0x88, 0xb5];

/// A network with `tap0` in it, and the packet socket there.
fn network() -> (Namespace, Packets) {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let packets = namespace.hear("tap0");
    (namespace, packets)
}

/// Restores a clone there.
fn clone_in(namespace: &Namespace, snapshot: &Snapshot, gate: Option<Value>) -> Vm {
    let mut clone = namespace.empty_vm();
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
        "gate": gate,
    });
    http::done(&mut clone.client, "PUT /snapshot/load", body.to_string());
    clone
}

/// Where the guest's ring is, and behind it the frame.
fn rings() -> (Rings, u64) {
    let memory = Guest::Debian.memory().trim_end_matches('M');
    let spare = (memory.parse::<u64>().unwrap() << 20) - (64 << 10) + SPARE;
    let rings = Rings {
        descriptors: spare,
        available: spare + 0x1000,
        used: spare + 0x2000,
    };
    (rings, spare + 0x3000)
}

/// Has the guest make frames available to the device, and not ring its bell: they are in the ring when the snapshot is taken.
fn fill_ring(vm: &mut Vm) {
    let (rings, at) = rings();
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend([0x06, 0, 0, 0, 0, 1]);
    frame.extend(PROTOCOL);
    frame.resize(72, 0x5a);
    let words = frame.chunks(4).map(|word| word.try_into().unwrap());
    let words = words.map(|word| u64::from(u32::from_le_bytes(word)));
    let mut writes: Vec<_> = (0..).map(|n| at + 4 * n).zip(words).collect();
    for n in 0..8 {
        let descriptor = rings.descriptors + 16 * n;
        let parts = [at, 0, frame.len() as u64, 0];
        writes.extend((0..).map(|part| descriptor + 4 * part).zip(parts));
    }
    for n in 0..4 {
        writes.push((rings.available + 4 + 4 * n, (2 * n) | ((2 * n + 1) << 16)));
    }
    writes.extend([(rings.available, 0), (rings.used, 0)]);
    assert_eq!(peek(vm, DEVICE), 0x7472_6976, "\"virt\"");
    poke(vm, &writes);
    activate(vm, &rings);
    // A device looks at its rings when it is set up, and not again before its bell rings.
    std::thread::sleep(Duration::from_millis(500));
    poke(vm, &[(rings.available, FRAMES << 16)]);
}

/// Waits until the device has had so many frames, and returns how many of them a peer has heard.
fn heard(vm: &mut Vm, packets: &mut Packets, had: u64) -> usize {
    let (rings, _) = rings();
    let mut patience = Patience::new(LIMIT);
    while peek(vm, rings.used) >> 16 != had {
        assert!(!patience.is_over(), "{:#x}", peek(vm, rings.used));
    }
    let frames = packets.from_guest();
    assert!(frames.iter().all(|frame| frame[12..14] == PROTOCOL));
    frames.len()
}

/// Has the guest send one frame more.
fn send_another(vm: &mut Vm, had: u64) {
    let (rings, _) = rings();
    // An emulated processor may lose a clone whose first access to a device is a write.
    peek(vm, DEVICE);
    poke(
        vm,
        &[(rings.available, (had + 1) << 16), (DEVICE + 0x50, 1)],
    );
}

/// Whoever hears them all hears the ring once: from the original, and from each clone without a gate once more.
#[test]
fn a_ring_that_was_full_at_the_snapshot_is_not_sent_by_clones_behind_a_gate() {
    let (namespace, mut home) = network();
    let mut vm = namespace.booted(Guest::Debian, &[eth0("tap0")]);
    load_modules(&mut vm, "");
    fill_ring(&mut vm);
    let snapshot = vm.snapshot();
    assert_eq!(home.from_guest().len(), 0, "nobody has rung");
    vm.client.resume().unwrap();
    assert_eq!(heard(&mut vm, &mut home, FRAMES), FRAMES as usize);

    // As it is without a gate.
    for _ in 0..2 {
        let (namespace, mut packets) = network();
        let mut clone = clone_in(&namespace, &snapshot, None);
        assert_eq!(heard(&mut clone, &mut packets, FRAMES), FRAMES as usize);
    }

    // A guest that says at once that it knows who it is: there is no agent to be waited for.
    let (namespace, mut packets) = network();
    let mut clone = clone_in(&namespace, &snapshot, Some(json!({})));
    clone.until_ready(|ready| ready.ready);
    assert_eq!(heard(&mut clone, &mut packets, FRAMES), 0);
    send_another(&mut clone, FRAMES);
    assert_eq!(heard(&mut clone, &mut packets, FRAMES + 1), 1);

    // One that never says so: it is not heard before its time is over, and the ring not even then.
    let gate = json!({ "agents": 1, "timeout_ms": 20_000, "on_timeout": "open" });
    let (namespace, mut packets) = network();
    let mut clone = clone_in(&namespace, &snapshot, Some(gate));
    let mut had = FRAMES;
    assert_eq!(heard(&mut clone, &mut packets, had), 0);
    while !clone.client.ready().unwrap().ready {
        send_another(&mut clone, had);
        had += 1;
        let sent = heard(&mut clone, &mut packets, had);
        let open = clone.client.ready().unwrap().gate.unwrap().open;
        assert!(sent == 0 || open != Stage::None, "frame {had}");
    }
    assert!(had > FRAMES);
    send_another(&mut clone, had);
    assert!(heard(&mut clone, &mut packets, had + 1) >= 1);
    let gate = clone.client.ready().unwrap().gate.unwrap();
    assert!(gate.forced && gate.timed_out);
    // The original was not disturbed.
    assert_eq!(home.from_guest().len(), 0);
}

/// Until a clone's agent has given it its names, not one frame of it is heard, however much its programs send.
#[test]
fn a_clone_behind_a_gate_is_not_heard_before_it_knows_who_it_is() {
    let (namespace, mut packets) = network();
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    load_modules(&mut vm, "");
    start_hanging_agent(&mut vm);
    assert!(vm.wait_adapted_of(Some(1)).adapted);
    vm.shell(&format!(
        "(while :; do ping -c 1 -W 1 {HOST}; sleep 0.1; done) > /dev/null 2>&1 &"
    ));
    until_it_is_heard(&mut packets);
    let snapshot = vm.snapshot();
    vm.kill();

    // Without a gate it speaks as the original while its agent is at work.
    let (namespace, mut packets) = network();
    let mut clone = clone_in(&namespace, &snapshot, None);
    clone.wait_missing(&[Missing::Watchers, Missing::Agent]);
    until_it_is_heard(&mut packets);
    clone.kill();

    let (namespace, mut packets) = network();
    let mut arp = namespace.hear_arp("tap0");
    let gate = json!({ "timeout_ms": 600_000 });
    let mut clone = clone_in(&namespace, &snapshot, Some(gate));
    let ready = clone.until_ready(|ready| ready.reseeded_us.is_some());
    assert_eq!((ready.ready, ready.stage), (false, Stage::None));
    clone.wait_missing(&[Missing::Watchers, Missing::Agent]);
    let missing = clone.client.ready().unwrap().missing;
    assert!(missing.contains(&Missing::Identity), "{missing:?}");
    // Its programs send all the time.
    clone.shell("sleep 3");
    assert_eq!(clone.shell("cat /sys/class/net/eth0/carrier").trim(), "0");
    assert_eq!(packets.from_guest().len(), 0);
    clone.shell("touch /tmp/go");
    let ready = clone.until_ready(|ready| ready.ready);
    assert!(ready.identity_us.unwrap() <= ready.service_us.unwrap());
    until_it_succeeds(&mut clone, UP);
    arp.announcement(LIMIT);
    until_it_succeeds(&mut clone, &format!("ping -c 1 -W 10 {HOST}"));
    assert!(!packets.from_guest().is_empty());
    no_complaints(&mut clone);
}

/// Succeeds in a guest that has a link.
const UP: &str = "[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]";

fn until_it_is_heard(packets: &mut Packets) {
    let mut patience = Patience::new(LIMIT);
    while packets.from_guest().is_empty() {
        assert!(!patience.is_over(), "nothing is heard");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is unplugged is unplugged, whatever the gate says.
#[test]
fn a_cable_that_is_unplugged_stays_so_when_the_gate_opens() {
    let (namespace, _) = network();
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    load_modules(&mut vm, "");
    let plug = |vm: &mut Vm, up: bool| {
        let body = json!({ "iface_id": "eth0", "link_up": up }).to_string();
        http::done(&mut vm.client, "PATCH /network-interfaces/eth0", body);
    };
    plug(&mut vm, false);
    let snapshot = vm.snapshot();
    vm.kill();
    let (namespace, _) = network();
    let mut clone = clone_in(&namespace, &snapshot, Some(json!({})));
    clone.until_ready(|ready| ready.ready);
    clone.shell("sleep 1");
    assert_eq!(clone.shell("cat /sys/class/net/eth0/carrier").trim(), "0");
    plug(&mut clone, true);
    until_it_succeeds(&mut clone, UP);
    until_it_succeeds(&mut clone, &format!("ping -c 1 -W 10 {HOST}"));
}
