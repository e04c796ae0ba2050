//! The sample hooks, run by the agent in clones.

use std::collections::HashSet;
use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot_with, no_complaints};

const KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// A DHCP server and a client on the loopback interface, because the guest has no other. The server knows the
/// client's hardware address and does not ask around.
const SERVER: &str = "start 10.9.0.10\\nend 10.9.0.20\\ninterface lo\\nlease_file /tmp/leases\\n\
                      pidfile /run/udhcpd.pid\\nstatic_lease 00:00:00:00:00:00 10.9.0.10\\n";

/// How often the server has given the client its lease.
fn acknowledged(vm: &mut Vm) -> u32 {
    let text = vm.shell("grep -c 'sending ACK' /tmp/udhcpd || true");
    text.trim().parse().expect("a number")
}

fn network(vm: &mut Vm) {
    vm.shell("mkdir -p /run && touch /tmp/leases && ifconfig lo 127.0.0.1 up");
    vm.shell("ifconfig lo:0 10.9.0.1 netmask 255.255.255.255");
    vm.shell(&format!("printf '{SERVER}' > /tmp/udhcpd.conf"));
    vm.shell("udhcpd -f /tmp/udhcpd.conf > /tmp/udhcpd 2>&1 &");
    vm.shell("udhcpc -i lo -f -p /run/udhcpc.lo.pid -s /bin/true > /tmp/udhcpc 2>&1 &");
    wait_for(vm, "the first lease", |vm| acknowledged(vm) == 1);
}

fn wait_for(vm: &mut Vm, what: &str, mut there: impl FnMut(&mut Vm) -> bool) {
    let mut patience = Patience::new(LIMIT);
    while !there(vm) {
        let logs = vm.shell("cat /tmp/agent /tmp/udhcpd /tmp/udhcpc 2>/dev/null || true");
        assert!(!patience.is_over(), "{what}: {logs}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A process that notes in a file that it was asked to load its keys again: what the hook expects of sshd.
fn reloaded_process(vm: &mut Vm) {
    vm.shell("(trap 'cat /etc/ssh/*.pub >> /tmp/loaded' HUP; while :; do sleep 0.1; done) & echo $! > /run/sshd.pid");
}

#[test]
fn the_sample_hooks_renew_boot_id_machine_id_host_keys_and_lease_in_each_clone() {
    let mut vm = boot_with(Boot::new(Guest::Small).extras(), "");
    network(&mut vm);
    reloaded_process(&mut vm);
    vm.shell("tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id");
    vm.shell(&format!(
        "mkdir -p /etc/ssh && ssh-keygen -q -t ed25519 -N '' -f {KEY}"
    ));
    vm.shell("sysgenctl agent --directory /hooks --require-success > /tmp/agent 2>&1 &");
    wait_for(&mut vm, "the agent", |vm| {
        vm.shell("cat /sys/kernel/debug/sysgenid/watchers") == "1\n"
    });
    let public = format!("cut -d' ' -f2 {KEY}.pub");
    let mut known = HashSet::from([vm.shell("cat /etc/machine-id"), vm.shell(&public)]);
    assert_eq!(known.len(), 2);
    known.insert(vm.shell(BOOT_ID));

    let snapshot = vm.snapshot();
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        let waited = clone.wait_adapted();
        assert!(
            waited.adapted,
            "{:?}: {}",
            waited.missing,
            clone.shell("cat /tmp/agent")
        );
        let id = clone.shell("cat /etc/machine-id");
        let hexadecimal = id.trim().bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(id.trim().len() == 32 && hexadecimal, "{id:?}");
        assert!(known.insert(id), "the machine ID is an old one");
        let id = clone.shell(BOOT_ID);
        assert!(known.insert(id), "the boot ID is an old one");
        let key = clone.shell(&public);
        assert!(known.insert(key.clone()), "the host key is an old one");
        // The two halves fit.
        let derived = clone.shell(&format!("ssh-keygen -y -f {KEY} | cut -d' ' -f2"));
        assert_eq!(derived, key);
        wait_for(&mut clone, "the reload", |vm| {
            vm.shell("cat /tmp/loaded 2>/dev/null || true")
                .contains(key.trim())
        });
        wait_for(&mut clone, "another lease", |vm| acknowledged(vm) == 2);
        no_complaints(&mut clone);
    }
    vm.client.resume().unwrap();
    assert!(
        known.contains(&vm.shell("cat /etc/machine-id")),
        "the original is no clone"
    );
    assert!(known.contains(&vm.shell(&public)));
    assert_eq!(acknowledged(&mut vm), 1);
}
