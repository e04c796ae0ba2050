//! A word to the service manager (`sd_notify`), if there is one.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The watcher is open, and generations that began before have been handled.
pub(super) fn ready() {
    send("READY=1");
}

/// The agent ends.
pub(super) fn stopping() {
    send("STOPPING=1");
}

/// A manager that does not hear it finds out by itself, sooner or later.
fn send(message: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(message.as_bytes(), &address);
    }
}
