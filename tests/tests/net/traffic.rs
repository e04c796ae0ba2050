//! What goes through.

use std::net::TcpStream;
use std::time::Duration;

use vmgenie_tests::guest::sha256;
use vmgenie_tests::net::{
    GUEST6, HOST, HOST6, LOAD_PORT, Namespace, eth0, set_up_guest, start_load,
};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Vm};

use super::{file, until_it_succeeds};

/// The modules that the stock kernel needs, in this order.
const MODULES: [&str; 4] = ["virtio_mmio", "failover", "net_failover", "virtio_net"];
/// How many bytes a transfer has.
const TRANSFER: u64 = 16 << 20;

fn ping_and_http(namespace: &Namespace, vm: &mut Vm) {
    vm.shell(&format!("ping -c 3 -W 10 {HOST}"));

    // From the guest to the host: the guest asks, the host answers.
    let body = file(3_000_000);
    namespace.serve(8000, body.clone(), Duration::ZERO);
    vm.shell(&format!("wget -q -O /tmp/page http://{HOST}:8000/"));
    let sum = vm.shell("sha256sum < /tmp/page");
    // The other way round.
    vm.shell("mkdir -p /tmp/www && cp /tmp/page /tmp/www/page && httpd -p 80 -h /tmp/www");
    let page = namespace.get(80, "/page");
    assert!(page == body, "{} of {} bytes", page.len(), body.len());
    assert_eq!(sum.split(' ').next(), Some(&*sha256(&body)));
}

fn transfers(namespace: &Namespace, vm: &mut Vm) {
    start_load(vm);
    guest_load::download(namespace.connect(LOAD_PORT), TRANSFER).unwrap();
    guest_load::upload(namespace.connect(LOAD_PORT), TRANSFER).unwrap();
    guest_load::round_trips(namespace.connect(LOAD_PORT), 100).unwrap();
}

/// The guest's own count of what it got (packets, bytes) and sent.
fn traffic_of_guest(vm: &mut Vm) -> [u64; 4] {
    ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"].map(|what| {
        let text = vm.shell(&format!("cat /sys/class/net/eth0/statistics/{what}"));
        text.trim().parse().unwrap()
    })
}

#[test]
fn the_small_kernel_talks_with_its_host() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    ping_and_http(&namespace, &mut vm);
    transfers(&namespace, &mut vm);
    no_complaints(&mut vm);
}

#[test]
fn the_stock_kernel_talks_with_its_host() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Debian, &[eth0("tap0")]);
    for module in MODULES {
        vm.shell(&format!("insmod /modules/{module}.ko"));
    }
    set_up_guest(&mut vm);
    ping_and_http(&namespace, &mut vm);
    transfers(&namespace, &mut vm);
    no_complaints(&mut vm);
}

/// Neither side cuts TCP into packets of 1,500 bytes for the other, and checksums are left out: both sides see packets that are
/// larger, on average over a transfer.
fn packets_are_large(namespace: &Namespace, vm: &mut Vm, connect: impl Fn() -> TcpStream) {
    for upload in [true, false] {
        let guest_before = traffic_of_guest(vm);
        let host_before = namespace.traffic("tap0");
        let stream = connect();
        match upload {
            true => guest_load::upload(stream, TRANSFER).unwrap(),
            false => guest_load::download(stream, TRANSFER).unwrap(),
        };
        let average = |before: [u64; 4], after: [u64; 4], at: usize| {
            (after[at + 1] - before[at + 1]) / (after[at] - before[at])
        };
        // What the guest gets (0) in an upload and sends (2) in a download; the host sees the reverse.
        let (guest_at, host_at) = if upload { (0, 2) } else { (2, 0) };
        let guest_sees = average(guest_before, traffic_of_guest(vm), guest_at);
        let host_sees = average(host_before, namespace.traffic("tap0"), host_at);
        println!(
            "upload {upload}: {guest_sees} bytes a packet in the guest, {host_sees} in the host"
        );
        assert!(guest_sees > 3000, "upload {upload}: {guest_sees}");
        assert!(host_sees > 3000, "upload {upload}: {host_sees}");
    }
}

#[test]
fn segments_and_checksums_are_left_to_the_other_side() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    start_load(&mut vm);
    packets_are_large(&namespace, &mut vm, || namespace.connect(LOAD_PORT));
}

/// The small kernel has no IPv6.
#[test]
fn segments_and_checksums_are_left_to_the_other_side_by_ipv6_as_well() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    namespace.add_ipv6("tap0");
    let mut vm = namespace.booted(Guest::Debian, &[eth0("tap0")]);
    for module in MODULES {
        vm.shell(&format!("insmod /modules/{module}.ko"));
    }
    set_up_guest(&mut vm);
    vm.shell(&format!("ip -6 addr add {GUEST6}/64 dev eth0"));
    until_it_succeeds(&mut vm, &format!("ping -6 -c 1 -W 2 {HOST6}"));
    start_load(&mut vm);
    packets_are_large(&namespace, &mut vm, || {
        namespace.connect_to(GUEST6, LOAD_PORT)
    });
    no_complaints(&mut vm);
}

/// The driver lets go of a device in the middle of a transfer, and takes it again.
#[test]
fn a_device_that_is_reset_under_load_works_again() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.booted(Guest::Small, &[eth0("tap0")]);
    set_up_guest(&mut vm);
    start_load(&mut vm);
    let device = vm.shell("basename $(readlink /sys/class/net/eth0/device)");
    let device = device.trim();
    for _ in 0..3 {
        let stream = namespace.connect(LOAD_PORT);
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let other = stream.try_clone().unwrap();
        let transfer = std::thread::spawn(move || guest_load::download(stream, u64::MAX));
        std::thread::sleep(Duration::from_millis(300));
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        vm.shell(&format!("echo {device} > {driver}/unbind"));
        assert_ne!(vm.run("ip link show eth0").0, 0);
        vm.shell(&format!("echo {device} > {driver}/bind"));
        let _ = other.shutdown(std::net::Shutdown::Both);
        assert!(transfer.join().unwrap().is_err(), "it had no end");
        set_up_guest(&mut vm);
        guest_load::upload(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
        guest_load::download(namespace.connect(LOAD_PORT), 1 << 20).unwrap();
    }
    no_complaints(&mut vm);
}
