//! What `/machine-config` makes of the machine, as a guest sees it.

use std::fs;

use serde_json::json;
use vmgenie_tests::http::{done, ok, refused};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::{Guest, Vm};

/// The small kernel on a machine like `config`, not started.
fn configured(config: &serde_json::Value) -> Vm {
    let mut vm = Vm::empty();
    let source = json!({
        "kernel_image_path": Guest::Small.kernel(), "initrd_path": Guest::Small.initrd(), "boot_args": Guest::Small.cmdline(),
    });
    done(&mut vm.client, "PUT /machine-config", config.to_string());
    done(&mut vm.client, "PUT /boot-source", source.to_string());
    vm
}

const START: (&str, &str) = ("PUT /actions", r#"{"action_type": "InstanceStart"}"#);

/// The vCPUs that share the core of each.
fn siblings(vm: &mut Vm) -> Vec<String> {
    let all = vm.shell("cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list");
    all.lines().map(str::to_owned).collect()
}

#[test]
fn with_smt_a_guest_and_its_clone_see_two_threads_on_a_core() {
    let config = json!({ "vcpu_count": 2, "mem_size_mib": 128, "smt": true });
    let mut vm = configured(&config);
    done(&mut vm.client, START.0, START.1);
    vm.wait_ready();
    assert_eq!(siblings(&mut vm), ["0-1", "0-1"]);
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    assert_eq!(siblings(&mut clone), ["0-1", "0-1"]);
    assert_eq!(
        ok(&mut clone.client, "GET /machine-config", "")["smt"],
        true
    );
    no_complaints(&mut clone);
}

/// More of the host's huge pages, given back when this is dropped.
struct HugePages {
    before: u32,
}

impl HugePages {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    fn set_aside(pages: u32) -> Self {
        let before = Self::read("HugePages_Total");
        let this = Self { before };
        fs::write(Self::PATH, (before + pages).to_string()).expect("root sets huge pages aside");
        this
    }

    fn read(field: &str) -> u32 {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap()
            .trim_start_matches(':')
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        fs::write(Self::PATH, self.before.to_string()).expect("root gives huge pages back");
    }
}

#[test]
fn a_guest_in_huge_pages_is_snapshotted_and_its_clone_needs_none() {
    const NEEDED: u32 = 64;
    let config = json!({ "vcpu_count": 1, "mem_size_mib": 2 * NEEDED, "huge_pages": "2M" });
    let mut vm = configured(&config);
    if HugePages::read("HugePages_Free") < NEEDED {
        // Too few: told at the start, before the guest could miss one.
        let message = refused(&mut vm.client, START.0, START.1);
        assert!(message.contains("nr_hugepages"), "{message}");
    }
    let pages = HugePages::set_aside(NEEDED);
    let free = HugePages::read("HugePages_Free");
    assert!(
        free >= NEEDED,
        "the host has no {NEEDED} huge pages to give: {free}"
    );
    done(&mut vm.client, START.0, START.1);
    vm.wait_ready();
    assert!(HugePages::read("HugePages_Free") < free);
    vm.shell("echo kept > /tmp/kept");
    let snapshot = vm.snapshot();
    vm.client.resume().unwrap();
    assert_eq!(vm.shell("cat /tmp/kept"), "kept\n");
    no_complaints(&mut vm);
    vm.kill();
    drop(vm);
    drop(pages);
    let mut clone = Vm::restore(&snapshot);
    assert_eq!(clone.shell("cat /tmp/kept"), "kept\n");
    assert_eq!(
        ok(&mut clone.client, "GET /machine-config", "")["huge_pages"],
        "None"
    );
    no_complaints(&mut clone);
}

#[test]
fn a_guest_in_transparent_huge_pages_boots() {
    let config = json!({ "vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "Transparent" });
    let mut vm = configured(&config);
    done(&mut vm.client, START.0, START.1);
    vm.wait_ready();
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vm.pid())).unwrap();
    let flags = maps
        .lines()
        .filter_map(|line| line.strip_prefix("VmFlags:"));
    assert!(
        flags
            .into_iter()
            .any(|flags| flags.split(' ').any(|flag| flag == "hg")),
        "{maps}"
    );
}
