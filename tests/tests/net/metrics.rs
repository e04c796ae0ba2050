//! What the process counts of its devices, beside what guest and host count.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use vm_agent::patience::Patience;
use vmgenie_tests::disk::{self, Image};
use vmgenie_tests::net::{LOAD_PORT, Namespace, configure, eth0, set_up_guest, start_load};
use vmgenie_tests::{Guest, Vm, http, vsock};

use super::LIMIT;

/// How many bytes a transfer has.
const TRANSFER: u64 = 1 << 20;
/// What a client of `guest_load` sends first.
const REQUEST: u64 = 9;

/// One number of GET `/metrics`; 0 if there is none of that name.
fn number(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn metrics(vm: &mut Vm) -> String {
    let answer = vm.client.request(hyper::Method::GET, "/metrics", "");
    String::from_utf8(answer.unwrap().body.to_vec()).unwrap()
}

/// How much numbers have grown since `before`.
fn grown(before: &str, now: &str, prefix: &str, names: &[&str]) -> Vec<u64> {
    names
        .iter()
        .map(|name| {
            let name = format!("{prefix}_{name}_total{{");
            number(now, &name) - number(before, &name)
        })
        .collect()
}

#[test]
fn what_devices_have_done_is_counted_and_told_in_both_ways() {
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let image = Image::new(16);
    let mut vm = namespace.empty_vm();
    let lines = vm.dir().join("metrics");
    let to_file = json!({ "metrics_path": lines });
    http::done(&mut vm.client, "PUT /metrics", to_file.to_string());
    configure(&mut vm, Guest::Small, &[eth0("tap0")]);
    disk::put_drives(&mut vm, &[image.drive("data")]);
    let device = json!({ "guest_cid": vsock::CID, "uds_path": vsock::socket(&vm) });
    http::done(&mut vm.client, "PUT /vsock", device.to_string());
    http::done(&mut vm.client, "PUT /entropy", "{}");
    vm.client.start().unwrap();
    vm.wait_ready();

    drive_counts_requests_and_bytes(&mut vm);
    net_counts_what_the_tap_counts(&namespace, &mut vm);
    vsock_counts_the_programs_bytes(&mut vm);

    let before = metrics(&mut vm);
    vm.shell("dd if=/dev/hwrng of=/dev/null bs=64 count=64 iflag=fullblock");
    let now = metrics(&mut vm);
    // The kernel has a buffer of its own, which was full.
    let drawn = grown(&before, &now, "vmgenie_entropy", &["entropy_bytes"]);
    assert!(drawn[0] >= 63 * 64, "{drawn:?}");
    assert!(number(&now, "vmgenie_interrupts_triggers_total{") > 0);
    assert!(number(&now, "vmgenie_uart_write_count_total{") > 100);
    let exits = ["exit_io_out", "exit_mmio_read", "exit_mmio_write"];
    for exit in exits {
        let name = format!("vmgenie_vcpu_{exit}_total{{");
        assert!(number(&now, &name) > 0, "{exit}: {now}");
        let longest = format!("vmgenie_vcpu_{exit}_agg_max_us{{");
        assert!(number(&now, &longest) > 0, "{exit}: {now}");
    }

    lines_tell_the_same(&mut vm, &lines);
}

fn drive_counts_requests_and_bytes(vm: &mut Vm) {
    let drive = "vmgenie_block";
    let names = ["read_count", "read_bytes", "write_count", "write_bytes"];
    let before = metrics(vm);
    assert!(before.contains(r#",device="data"}"#), "{before}");
    vm.shell("guest-load time /dev/vda read random 4096 50 2");
    vm.shell("guest-load time /dev/vda write random 8192 30 1");
    let now = metrics(vm);
    let counted = grown(&before, &now, drive, &names);
    assert_eq!(counted, [100, 100 * 4096, 30, 30 * 8192]);
    let flushes = grown(&before, &now, drive, &["flush_count"]);
    assert!(flushes[0] >= 1, "{flushes:?}");
    assert!(number(&now, "vmgenie_block_read_agg_max_us{") > 0);
}

fn net_counts_what_the_tap_counts(namespace: &Namespace, vm: &mut Vm) {
    set_up_guest(vm);
    start_load(vm);
    guest_load::download(namespace.connect(LOAD_PORT), TRANSFER).unwrap();
    guest_load::upload(namespace.connect(LOAD_PORT), TRANSFER).unwrap();
    let names = [
        "tx_packets_count",
        "tx_bytes_count",
        "rx_packets_count",
        "rx_bytes_count",
    ];
    // Guest and host have something to say to each other at any time.
    let mut patience = Patience::new(LIMIT);
    loop {
        let counted = grown("", &metrics(vm), "vmgenie_net", &names);
        let tap = namespace.traffic("tap0");
        if counted == tap {
            assert!(counted[1] > TRANSFER && counted[3] > TRANSFER);
            return;
        }
        assert!(!patience.is_over(), "{counted:?}, the tap {tap:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn vsock_counts_the_programs_bytes(vm: &mut Vm) {
    let socket = vsock::socket(vm);
    // Another file than that of the load over TCP.
    vm.shell(&format!(
        "guest-load vsock-serve {} > /tmp/vsock-load 2>&1 &",
        vsock::LOAD_PORT
    ));
    drop(vsock::connect(&socket, vsock::LOAD_PORT));
    let before = metrics(vm);
    guest_load::download(vsock::connect(&socket, vsock::LOAD_PORT), TRANSFER).unwrap();
    let now = metrics(vm);
    let names = ["rx_bytes_count", "tx_bytes_count", "conns_added"];
    let counted = grown(&before, &now, "vmgenie_vsock", &names);
    assert_eq!(counted, [REQUEST, TRANSFER, 1]);
    guest_load::upload(vsock::connect(&socket, vsock::LOAD_PORT), TRANSFER).unwrap();
    let counted = grown(&now, &metrics(vm), "vmgenie_vsock", &names);
    assert_eq!(counted, [REQUEST + TRANSFER, 1, 1]);
}

/// Firecracker's lines: each has what was counted since the one before.
fn lines_tell_the_same(vm: &mut Vm, lines: &std::path::Path) {
    let flush = json!({ "action_type": "FlushMetrics" }).to_string();
    http::done(&mut vm.client, "PUT /actions", flush.clone());
    let first = metrics(vm);
    vm.shell("guest-load time /dev/vda read random 4096 10 1");
    http::done(&mut vm.client, "PUT /actions", flush);
    let text = fs::read_to_string(lines).unwrap();
    let told: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let read = number(&first, "vmgenie_block_read_bytes_total{");
    // Lines are written each minute as well.
    let sum = |lines: &[Value], group: &str| -> u64 {
        let values = lines.iter().map(|line| &line[group]["read_bytes"]);
        values.map(|value| value.as_u64().unwrap_or(0)).sum()
    };
    for group in ["block_data", "block"] {
        assert_eq!(sum(&told, group), read + 10 * 4096, "{group}: {text}");
    }
    let last = told.last().unwrap();
    for (group, name) in [
        ("net_eth0", "rx_bytes_count"),
        ("net", "tx_packets_count"),
        ("vsock", "conns_added"),
        ("entropy", "entropy_bytes"),
        ("uart", "write_count"),
        ("vcpu", "exit_mmio_read"),
        ("interrupts", "triggers"),
        ("signals", "sighup"),
    ] {
        assert!(last[group][name].is_u64(), "{group}.{name}: {last}");
    }
    assert!(last["block_data"]["read_agg"]["sum_us"].is_u64(), "{last}");
}
