//! A fork that is held before its snapshot.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vmgenie_tests::Vm;
use vmgenie_tests::process::wait_until;

use super::LIMIT;

/// Stands between a client and a VMM, and keeps the request for a snapshot until it is let go.
pub(super) struct Holding {
    pub(super) socket: PathBuf,
    held: Arc<AtomicBool>,
    go: Arc<AtomicBool>,
}

impl Holding {
    pub(super) fn before(vm: &Vm, socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let (held, go) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (to, set, wait) = (
            vm.client.socket().to_owned(),
            Arc::clone(&held),
            Arc::clone(&go),
        );
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let vmm = UnixStream::connect(&to).unwrap();
                let (set, wait) = (Arc::clone(&set), Arc::clone(&wait));
                let back = (vmm.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || pass_on(back.0, back.1, |_| ()));
                thread::spawn(move || {
                    pass_on(client, vmm, |bytes| {
                        if bytes.starts_with(b"PUT /snapshot/create") {
                            set.store(true, Ordering::Relaxed);
                            while !wait.load(Ordering::Relaxed) {
                                thread::sleep(Duration::from_millis(5));
                            }
                        }
                    });
                });
            }
        });
        Self { socket, held, go }
    }

    /// Waits until the request is there.
    pub(super) fn wait(&self) {
        let held = || self.held.load(Ordering::Relaxed);
        wait_until("a snapshot is asked for", LIMIT, held);
    }

    pub(super) fn let_go(&self) {
        self.go.store(true, Ordering::Relaxed);
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream, look: impl Fn(&[u8])) {
    let mut bytes = [0; 65536];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        look(&bytes[..len]);
        if to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    // So that the other direction ends as well.
    let _ = to.shutdown(Shutdown::Both);
}
