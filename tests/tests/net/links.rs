//! Networks that go away, guests that boot again, and a driver that keeps to no rule.

use std::time::Duration;

use vm_agent::patience::processor_time;
use vmgenie_tests::net::{HOST, LOAD_PORT, Namespace, eth0, set_up_guest, start_load};
use vmgenie_tests::process::is_alive;
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::vm::{BOOT_LIMIT, Boot};
use vmgenie_tests::{Guest, Vm, http, vsock};

/// The page of the first virtio device's registers.
pub(super) const DEVICE: u64 = 0xd000_0000;
/// Memory that the guest's kernel does not use, behind the pages that the VMM does: for rings.
pub(super) const SPARE: u64 = 0x8000;

#[test]
fn a_guest_whose_tap_is_deleted_goes_on_without_a_network() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    start_load(&mut vm);
    let stream = namespace.connect(LOAD_PORT);
    let other = stream.try_clone().unwrap();
    let transfer = std::thread::spawn(move || guest_load::download(stream, u64::MAX));
    std::thread::sleep(Duration::from_millis(300));
    namespace.delete("tap0");
    std::thread::sleep(Duration::from_millis(300));
    let _ = other.shutdown(std::net::Shutdown::Both);
    assert!(transfer.join().unwrap().is_err(), "it had no end");

    // The guest sends on, to nobody, and nothing holds it up.
    vm.shell(&format!("ping -c 3 -W 1 {HOST} > /tmp/ping || true"));
    let used = || {
        let before = processor_time(vm.pid());
        std::thread::sleep(Duration::from_secs(3));
        let after = processor_time(vm.pid());
        // Of one that has ended there is no time at all.
        assert!(is_alive(vm.pid()), "the machine has ended");
        after - before
    };
    // A loop without end would use all of it, each time; an idle guest that is emulated uses some, and more on a busy machine.
    let used = [(); 3].map(|()| used());
    let least = used.iter().min().expect("three");
    assert!(
        *least < Duration::from_millis(1500),
        "{used:?} of processor time in 3 s each"
    );
    assert_eq!(vm.shell("echo $((6 * 7))").trim(), "42");
    // Such a machine can be saved, and restored where there is a tap again.
    let snapshot = vm.snapshot();
    vm.kill();
    namespace.add_tap("tap0");
    let mut vm = namespace.run(|| Vm::load(&snapshot));
    vm.client.resume().unwrap();
    // The new tap has another hardware address, and the guest may believe in the old one for half a minute.
    vm.shell("ip neigh flush dev eth0");
    vm.shell(&format!("ping -c 3 -W 10 {HOST}"));
    no_complaints(&mut vm);
}

#[test]
fn a_guest_that_boots_again_has_its_network_and_its_sockets_anew() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("v.sock");
    let boot = Boot::new(Guest::Small)
        .option("--net=tap0")
        .option(&format!("--vsock={}", socket.display()))
        .option("--on-reboot=restart");
    let mut vm = namespace.run(|| boot.ready());
    let mut mac = String::new();
    for round in 0..3 {
        if round > 0 {
            vm.console.send("reboot -f\n");
            vm.console.wait_for("@@ready\n", BOOT_LIMIT);
        }
        set_up_guest(&mut vm);
        let now = vm.shell("cat /sys/class/net/eth0/address");
        assert!(round == 0 || now == mac, "{now} after {mac}");
        mac = now;
        start_load(&mut vm);
        guest_load::upload(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
        let port = vsock::LOAD_PORT;
        vm.shell(&format!(
            "guest-load vsock-serve {port} > /tmp/vload 2>&1 &"
        ));
        guest_load::download(vsock::connect(&socket, port), 1 << 20).unwrap();
        no_complaints(&mut vm);
    }
}

/// Writes 32 bits each; busybox's `devmem` goes past the kernel.
pub(super) fn poke(vm: &mut Vm, writes: &[(u64, u64)]) {
    for writes in writes.chunks(8) {
        let commands: Vec<_> = writes
            .iter()
            .map(|(address, value)| format!("devmem {address:#x} 32 {value:#x}"))
            .collect();
        vm.shell(&commands.join(" && "));
    }
}

pub(super) fn peek(vm: &mut Vm, address: u64) -> u64 {
    let text = vm.shell(&format!("devmem {address:#x} 32"));
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
}

/// Where a queue's parts are.
pub(super) struct Rings {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// Negotiates, and sets up queue 1, which is the one from the guest, with 8 entries.
pub(super) fn activate(vm: &mut Vm, rings: &Rings) {
    let (select, features, status) = (DEVICE + 0x24, DEVICE + 0x20, DEVICE + 0x70);
    let queue = DEVICE + 0x30;
    let halves = |at: u64, value: u64| [(at, value & 0xffff_ffff), (at + 4, value >> 32)];
    let mut writes = vec![(status, 0), (status, 1), (status, 3)];
    // VIRTIO_F_VERSION_1 alone.
    writes.extend([
        (select, 0),
        (features, 0),
        (select, 1),
        (features, 1),
        (status, 11),
    ]);
    writes.extend([(queue, 1), (DEVICE + 0x38, 8)]);
    writes.extend(halves(DEVICE + 0x80, rings.descriptors));
    writes.extend(halves(DEVICE + 0x90, rings.available));
    writes.extend(halves(DEVICE + 0xa0, rings.used));
    writes.extend([(DEVICE + 0x44, 1), (status, 15)]);
    poke(vm, &writes);
}

/// `DEVICE_NEEDS_RESET`.
fn needs_reset(vm: &mut Vm) -> bool {
    peek(vm, DEVICE + 0x70) & 0x40 != 0
}

/// The guest writes the device's registers itself, before it loads the driver, and lies about everything.
#[test]
fn a_driver_that_lies_is_told_to_reset_and_one_that_does_not_works_afterwards() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Debian, &[eth0("tap0")]);
    assert_eq!(peek(&mut vm, DEVICE), 0x7472_6976, "\"virt\"");
    let memory: u64 = Guest::Debian
        .memory()
        .trim_end_matches('M')
        .parse()
        .unwrap();
    let spare = (memory << 20) - (64 << 10) + SPARE;
    let rings = || Rings {
        descriptors: spare,
        available: spare + 0x1000,
        used: spare + 0x2000,
    };
    let ring_bell = |vm: &mut Vm| poke(vm, &[(DEVICE + 0x50, 1)]);

    for nowhere in [0xffff_f000_u64, 0xffff_ffff_ffff_f000, memory << 20] {
        activate(
            &mut vm,
            &Rings {
                descriptors: nowhere,
                ..rings()
            },
        );
        assert!(needs_reset(&mut vm), "descriptors at {nowhere:#x}");
    }

    // More chains than the queue has.
    poke(&mut vm, &[(spare + 0x1000, 0x7fff_0000)]);
    activate(&mut vm, &rings());
    ring_bell(&mut vm);
    assert!(needs_reset(&mut vm), "an index that runs away");

    // A descriptor that is its own successor (NEXT), a piece of 4 GiB, and one outside of memory: each is given back.
    let bad = [
        (spare, [0x1000, 0, 60, 1]),
        (spare + 16, [0x1000, 0, 0xffff_ffff, 0]),
        (spare + 32, [0, 0xffff, 60, 0]),
    ];
    for (at, words) in bad {
        let writes: Vec<_> = (0..)
            .zip(words)
            .map(|(n, word)| (at + 4 * n, word))
            .collect();
        poke(&mut vm, &writes);
    }
    poke(
        &mut vm,
        &[
            (spare + 0x2000, 0),
            (spare + 0x1004, 0x0001_0000),
            (spare + 0x1008, 0x0000_0002),
            (spare + 0x1000, 0x0003_0000),
        ],
    );
    activate(&mut vm, &rings());
    ring_bell(&mut vm);
    assert!(!needs_reset(&mut vm), "chains that are malformed");
    // The index of the used ring is in the upper half.
    assert_eq!(peek(&mut vm, spare + 0x2000) >> 16, 3);

    // Queues of sizes that there are not, doorbells of queues that there are not, junk in all registers.
    for size in [0, 3, 257, 65_536, u32::MAX.into()] {
        poke(
            &mut vm,
            &[
                (DEVICE + 0x70, 0),
                (DEVICE + 0x70, 11),
                (DEVICE + 0x30, 1),
                (DEVICE + 0x38, size),
                (DEVICE + 0x44, 1),
            ],
        );
    }
    let junk: Vec<_> = (0..0x110)
        .step_by(4)
        .map(|at| (DEVICE + at, 0xdead_beef))
        .collect();
    poke(&mut vm, &junk);

    let answer = http::ok(&mut vm.client, "GET /", "");
    assert_eq!(answer["state"], "Running");
    for module in ["virtio_mmio", "failover", "net_failover", "virtio_net"] {
        vm.shell(&format!("insmod /modules/{module}.ko"));
    }
    set_up_guest(&mut vm);
    vm.shell(&format!("ping -c 3 -W 10 {HOST}"));
    no_complaints(&mut vm);
}
