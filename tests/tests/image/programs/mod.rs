//! Programs that take part without being rewritten: language packages, and the stock clients of other people's contracts.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use vm_agent::patience::Patience;
use vmgenie_tests::Vm;
use vmgenie_tests::http::done;
use vmgenie_tests::image::{self, Page};
use vmgenie_tests::net::{GUEST, Namespace};
use vmgenie_tests::snapshot::Snapshot;

use crate::LIMIT;

mod functions;

/// The memory of a machine with several runtimes in it.
const MEMORY: &str = "448M";
/// Where the runtimes disk is in the guest, and what it has of the guest.
const MOUNT: &str = "mkdir -p /opt/rt && mount -o ro /dev/vdb /opt/rt && \
    for d in dev proc run sys tmp; do mount --rbind /$d /opt/rt/$d; done && \
    mount --bind /usr/bin/sysgenctl /opt/rt/usr/bin/sysgenctl";
/// Where the runtime API is served.
const API: &str = "127.0.0.1:9001";
/// The file whose read waits.
const FILE: &str = "/run/vmgenie/forkpoint";

/// A machine with the image, the runtimes, and an agent that speaks the contracts, restored on an overlay of its disk.
struct Machine {
    _disks: TempDir,
    _base: Snapshot,
    _namespace: Namespace,
    vm: Vm,
}

impl Machine {
    fn new() -> Self {
        let home = Namespace::new();
        home.add_tap("tap0");
        let disks = image::room_for_disks();
        let disk = disks.path().join("origin.ext4");
        image::copy_disk(&image::image(), &disk).unwrap();
        let arguments = [
            "run".to_owned(),
            format!("--disk={},writeback", disk.display()),
            format!("--drive={},ro", image::runtimes().display()),
            format!("--memory={MEMORY}"),
            format!("--cmdline={}", image::cmdline()),
            "--net=tap0".to_owned(),
            "--entropy".to_owned(),
        ];
        let mut vm = home.run(|| Vm::spawn(&arguments, &[]));
        Page::of(&vm.console, &home, GUEST, image::BOOT_LIMIT);
        image::take_shell(&mut vm);
        vm.shell(MOUNT);
        let options = format!("--lambda {API} --forkpoint-file {FILE} --limit 60s");
        vm.shell(&format!(
            "echo 'SYSGENCTL_OPTIONS=\"{options}\"' > /etc/default/sysgenctl-agent && \
             systemctl restart sysgenctl-agent.service"
        ));
        vm.shell(&format!("cat /proc/self/mounts | grep -q {FILE}"));
        let base = vm.snapshot();
        drop(vm);
        // The same machine on an overlay, of which a copy is quickly made while it stands still.
        let mut vm = home.empty_vm();
        let body = json!({
            "snapshot_path": base.state(),
            "mem_file_path": base.memory(),
            "resume_vm": true,
            "generation": "keep",
            "drive_overrides": [{
                "drive_id": "disk0",
                "path_on_host": disks.path().join("original.overlay"),
                "overlay": true,
            }],
        });
        done(&mut vm.client, "PUT /snapshot/load", body.to_string());
        Self {
            _disks: disks,
            _base: base,
            _namespace: home,
            vm,
        }
    }

    fn disks(&self) -> &Path {
        self._disks.path()
    }
}

/// Starts a program of the runtimes disk as a service; `variables` are its environment.
fn start(vm: &mut Vm, unit: &str, variables: &[&str], program: &str) {
    let set: String = variables
        .iter()
        .map(|variable| format!("--setenv={variable} "))
        .collect();
    vm.shell(&format!(
        "systemd-run --quiet --collect --unit={unit} {set} chroot /opt/rt {program}"
    ));
}

/// Waits until a command in the guest succeeds, and returns what it says.
fn until(vm: &mut Vm, command: &str) -> String {
    until_within(vm, command, LIMIT)
}

fn until_within(vm: &mut Vm, command: &str, limit: Duration) -> String {
    let mut patience = Patience::new(limit);
    loop {
        let (status, said) = vm.run(command);
        if status == 0 {
            return said;
        }
        if patience.is_over() {
            let log = vm.run("journalctl -b -o cat --no-pager | tail -n 60").1;
            panic!("{command}: {status}: {said}\n{log}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
