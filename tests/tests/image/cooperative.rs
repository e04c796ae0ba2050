//! The agent as a service of systemd, when the host asks for a snapshot: it freezes all programs but a few, and one that
//! is killed meanwhile leaves no frozen machine.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use vm_agent::patience::{Patience, stretched};
use vmgenie_api::wire::{CooperativeCreate, MAX_QUIESCE_MS, SnapshotFallback, SnapshotHow};
use vmgenie_tests::Vm;
use vmgenie_tests::http::done;
use vmgenie_tests::image::{self, Page};
use vmgenie_tests::net::{GUEST, Namespace};
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::snapshot::Snapshot;

use crate::LIMIT;

/// The page's service, one of those that are frozen.
const FROZEN: &str = "grep -q frozen.1 /sys/fs/cgroup/system.slice/web.service/cgroup.events";
const RAN: &str = "cat /run/ran";
const KILLED: &str = "[ ! -e /run/kill ] || { rm /run/kill; kill -9 $PPID; exec sleep 1000; }";
const STAGES: [&str; 4] = [
    "quiesce.d",
    "adapt.d/identity",
    "adapt.d/service",
    "resume.d",
];

/// Writes a hook of each stage that notes whether the page's service is frozen. That of the first stage kills the
/// agent if there is a file that says so.
fn write_hooks(vm: &mut Vm) {
    for stage in STAGES {
        let kills = if stage == "adapt.d/identity" {
            KILLED
        } else {
            ""
        };
        let note = format!("s=runs; ! {FROZEN} || s=frozen; echo $SYSGENID_STAGE $s >> /run/ran");
        let file = format!("/etc/sysgenid/{stage}/90-note");
        vm.shell(&format!(
            "mkdir -p /etc/sysgenid/{stage} && printf '#!/bin/sh\\n{note}\\n{kills}\\n' > {file} && chmod 755 {file}"
        ));
    }
}

/// A machine of its own, restored from the snapshot with an overlay on the disk.
pub(crate) fn restored(snapshot: &Snapshot, disks: &Path, number: u8) -> (Namespace, Vm, Ipv4Addr) {
    let mut restored = restored_unadapted(snapshot, disks, number);
    let waited = restored.1.wait_adapted_of(Some(1));
    assert!(waited.adapted, "{:?}", waited.missing);
    restored
}

/// The same, before it has adapted.
pub(crate) fn restored_unadapted(
    snapshot: &Snapshot,
    disks: &Path,
    number: u8,
) -> (Namespace, Vm, Ipv4Addr) {
    let address = Ipv4Addr::new(10, 77, 0, 10 + number);
    let name = format!("clone-{number}");
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.empty_vm();
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
        "drive_overrides": [{
            "drive_id": "disk0",
            "path_on_host": disks.join(format!("{name}.overlay")),
            "overlay": true,
        }],
        "instance_data": image::told(address, &name),
    });
    done(&mut vm.client, "PUT /snapshot/load", body.to_string());
    (namespace, vm, address)
}

/// A snapshot in which the guest takes part.
pub(crate) fn taken(vm: &mut Vm) -> Snapshot {
    let snapshot = Snapshot::new();
    let mut request = snapshot.request();
    request.copy_drives = true;
    request.cooperative = Some(CooperativeCreate {
        quiesce_ms: (stretched(LIMIT).as_millis() as u64).min(MAX_QUIESCE_MS),
        fallback: SnapshotFallback::Refuse,
    });
    let made = vm.client.create_snapshot(&request);
    let log = "journalctl -u sysgenctl-agent.service -o cat --no-pager";
    let made = made.unwrap_or_else(|error| panic!("{error}: {}", vm.shell(log)));
    let made = made.cooperation.expect("it was asked for");
    assert_eq!(made.how, SnapshotHow::ForkPoint, "{made:?}");
    let waited = made.waited_for;
    assert!(
        waited.hooks && waited.frozen && waited.parked,
        "{waited:?}: {}",
        vm.shell(log)
    );
    snapshot
}

/// What the hooks have noted, when that of `resume.d` has.
fn ran(vm: &mut Vm) -> String {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = vm.shell(RAN);
        if text.ends_with("resume runs\n") {
            return text.replace('\n', ", ");
        }
        assert!(!patience.is_over(), "{text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn programs_are_frozen_at_the_fork_point_and_a_killed_agents_unit_thaws_them() {
    let home = Namespace::new();
    home.add_tap("tap0");
    let disks = image::room_for_disks();
    let disk = disks.path().join("origin.ext4");
    image::copy_disk(&image::image(), &disk).unwrap();
    let mut vm = image::start(&home, &disk);
    Page::of(&vm.console, &home, GUEST, image::BOOT_LIMIT);
    image::take_shell(&mut vm);
    let running = "systemctl is-system-running --wait || systemctl --failed --no-legend";
    assert_eq!(
        vm.run_within(running, image::BOOT_LIMIT),
        (0, "running\n".to_owned())
    );
    write_hooks(&mut vm);
    let base = vm.snapshot();
    drop(vm);

    // On an overlay, of which a copy is quickly made while the machine stands still.
    let (namespace, mut original, address) = restored(&base, disks.path(), 1);
    original.shell("rm -f /run/ran");
    let snapshot = taken(&mut original);
    assert_eq!(ran(&mut original), "quiesce runs, resume runs, ");
    let page = Page::of(&original.console, &namespace, address, LIMIT);

    let (theirs, mut clone, their_address) = restored(&snapshot, disks.path(), 2);
    let adapted = "quiesce runs, identity frozen, service runs, resume runs, ";
    assert_eq!(ran(&mut clone), adapted);
    let other = Page::of(&clone.console, &theirs, their_address, LIMIT);
    for name in ["generation-id", "machine-id", "ssh-host-key", "hostname"] {
        assert_ne!(page.value(name), other.value(name), "{name}");
    }
    assert_eq!(clone.shell("systemctl --failed --no-legend"), "");
    no_complaints(&mut clone);
    drop((clone, theirs));

    original.shell("rm -f /run/ran; touch /run/kill");
    let snapshot = taken(&mut original);
    let (theirs, mut clone, their_address) = restored(&snapshot, disks.path(), 3);
    // The first agent was killed frozen; the second adapts a machine that runs.
    let adapted = "quiesce runs, identity frozen, identity runs, service runs, resume runs, ";
    assert_eq!(ran(&mut clone), adapted);
    let unit = "journalctl -u sysgenctl-agent.service -o cat --no-pager";
    let thawed = clone.shell(&format!(
        "{unit} | grep -c 'control groups thawed[.]' || true"
    ));
    assert_eq!(thawed, "1\n", "{}", clone.shell(unit));
    Page::of(&clone.console, &theirs, their_address, LIMIT);
    no_complaints(&mut clone);
    no_complaints(&mut original);
}
