//! The Debian image: boots from its disk, serves over a tap, and its clones become machines of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;
use vmgenie_tests::http::done;
use vmgenie_tests::image::{self, Page};
use vmgenie_tests::net::{GUEST, Namespace};
use vmgenie_tests::shell::no_complaints;

mod cooperative;
mod programs;
mod watchdog;

/// How long the machine stands still: longer than the service with a watchdog may be silent.
const STANDSTILL: Duration = Duration::from_secs(8);
/// How long a guest in an emulated host may take for something.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn the_image_boots_from_its_disk_alone_and_its_clones_are_machines_of_their_own() {
    let home = Namespace::new();
    home.add_tap("tap0");
    let disks = image::room_for_disks();
    let disk = disks.path().join("origin.ext4");
    image::copy_disk(&image::image(), &disk).unwrap();
    let mut vm = image::start(&home, &disk);
    let first = Page::of(&vm.console, &home, GUEST, image::BOOT_LIMIT);
    assert_eq!(first.value("hostname"), image::NAME);
    assert_eq!(first.value("address"), format!("{GUEST}/24"));
    assert_eq!(first.value("generation-counter"), "0");
    image::take_shell(&mut vm);
    let running = "systemctl is-system-running --wait || systemctl --failed --no-legend";
    assert_eq!(
        vm.run_within(running, image::BOOT_LIMIT),
        (0, "running\n".to_owned())
    );
    vm.shell("systemctl is-active ssh.service sysgenctl-agent.service");
    no_complaints(&mut vm);
    let watched = watchdog::start(&mut vm);

    // The disk is copied while the machine stands still: the snapshot's memory and the copies are of one instant.
    let snapshot = vm.snapshot();
    std::thread::sleep(STANDSTILL);
    let mut pages = vec![first];
    let mut clones = Vec::new();
    for number in 1..=2 {
        let address = Ipv4Addr::new(10, 77, 0, 10 + number);
        let name = format!("clone-{number}");
        let namespace = Namespace::new();
        namespace.add_tap("tap0");
        let mut clone = namespace.empty_vm();
        let body = json!({
            "snapshot_path": snapshot.state(),
            "mem_file_path": snapshot.memory(),
            "resume_vm": true,
            "drive_overrides": [{
                "drive_id": "disk0",
                "path_on_host": disks.path().join(format!("{name}.ext4")),
                "copy": true,
            }],
            "instance_data": image::told(address, &name),
        });
        done(&mut clone.client, "PUT /snapshot/load", body.to_string());
        clones.push((namespace, clone, address, name));
    }
    vm.client.resume().unwrap();
    for (namespace, clone, address, name) in &mut clones {
        // The image has an agent, and its word is what counts.
        let waited = clone.wait_adapted_of(Some(1));
        assert!(waited.adapted, "{:?}", waited.missing);
        let page = Page::of(&clone.console, namespace, *address, LIMIT);
        assert_eq!(page.value("hostname"), name);
        assert_eq!(page.value("address"), format!("{address}/24"));
        let id = clone.client.generation().unwrap().raw;
        assert_eq!(page.value("generation-id"), id);
        for old in &pages {
            for name in ["generation-id", "machine-id", "ssh-host-key"] {
                assert_ne!(page.value(name), old.value(name), "{name}");
            }
        }
        assert_eq!(page.value("generation-counter"), "2");
        no_complaints(clone);
        assert_eq!(watchdog::shown(clone), watched, "its watchdog barked");
        pages.push(page);
    }
    let last = Page::of(&vm.console, &home, GUEST, LIMIT);
    assert_eq!(last, pages[0], "the original is no clone");
    assert_eq!(watchdog::shown(&mut vm), watched, "its watchdog barked");
    let button = json!({ "action_type": "SendCtrlAltDel" });
    done(&mut vm.client, "PUT /actions", button.to_string());
    assert!(
        vm.wait_status(LIMIT).success(),
        "it powers off by its button"
    );
}
