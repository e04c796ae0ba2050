//! Guests with a vsock device, and the host's side of it.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use guest_load::vsock::connect_to_guest;
use serde_json::{Value, json};
use vm_agent::patience::Patience;

use crate::booted::Booted;
use crate::{Guest, Snapshot, Vm, http};

/// Where the guest's side of [`guest_load`] listens.
pub const LOAD_PORT: u32 = 5001;
/// The guest's CID.
pub const CID: u32 = 42;
/// How long the other side may take to be there.
const LIMIT: Duration = Duration::from_secs(60);

/// The Unix socket of a machine's vsock device.
pub fn socket(vm: &Vm) -> PathBuf {
    vm.dir().join("v.sock")
}

/// A guest with one vCPU and a vsock device, which has booted.
pub fn boot(guest: Guest) -> Vm {
    let booted = Booted::of(&format!("{guest:?} with vsock"), || really_boot(guest));
    let mut vm = Vm::empty();
    let own_socket = json!({ "vsock_override": { "uds_path": socket(&vm) } });
    booted.restore_into(&mut vm, &own_socket);
    vm
}

fn really_boot(guest: Guest) -> Vm {
    let mut vm = Vm::empty();
    let memory: u64 = guest.memory().trim_end_matches('M').parse().expect("MiB");
    let source = guest.boot_source();
    let vsock = json!({ "guest_cid": CID, "uds_path": socket(&vm) });
    for (request, body) in [
        (
            "PUT /machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": memory }),
        ),
        ("PUT /boot-source", source),
        ("PUT /vsock", vsock),
    ] {
        http::done(&mut vm.client, request, body.to_string());
    }
    vm.client.start().expect("the guest starts");
    vm.wait_ready();
    if guest == Guest::Debian {
        for module in [
            "virtio_mmio",
            "vsock",
            "vmw_vsock_virtio_transport_common",
            "vmw_vsock_virtio_transport",
        ] {
            vm.shell(&format!("insmod /modules/{module}.ko"));
        }
    }
    vm
}

/// Starts the guest's side of [`guest_load`].
pub fn start_load(vm: &mut Vm) {
    vm.shell(&format!(
        "guest-load vsock-serve {LOAD_PORT} > /tmp/load 2>&1 &"
    ));
    drop(connect(&socket(vm), LOAD_PORT));
}

/// Connects to the guest; waits until it listens.
pub fn connect(socket: &Path, port: u32) -> UnixStream {
    let mut patience = Patience::new(LIMIT);
    loop {
        match connect_to_guest(socket, port) {
            Ok(stream) => return stream,
            Err(error) => assert!(!patience.is_over(), "port {port}: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Listens where the guest's connections to the host's `port` go.
pub fn listen(socket: &Path, port: u32) -> UnixListener {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    UnixListener::bind(path).expect("a listener")
}

/// Serves [`guest_load`] on the host's `port`.
pub fn serve(socket: &Path, port: u32) {
    let listener = listen(socket, port);
    thread::spawn(move || -> io::Result<()> { guest_load::serve_all(|| Ok(listener.accept()?.0)) });
}

/// A clone whose device has a socket of its own, and another CID if `cid` says so.
pub fn restore(snapshot: &Snapshot, cid: Option<u32>) -> Vm {
    let mut vm = Vm::empty();
    let mut vsock = json!({ "uds_path": socket(&vm) });
    if let Some(cid) = cid {
        vsock["guest_cid"] = Value::from(cid);
    }
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_backend": { "backend_type": "File", "backend_path": snapshot.memory() },
        "resume_vm": true,
        "vsock_override": vsock,
    });
    http::done(&mut vm.client, "PUT /snapshot/load", body.to_string());
    vm
}

/// The guest's CID as its kernel has it.
pub fn cid(vm: &mut Vm) -> u32 {
    let cid = vm.shell("guest-load vsock-cid");
    cid.trim().parse().expect("a CID")
}
