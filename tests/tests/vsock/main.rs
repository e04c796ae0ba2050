//! Sockets between real guests and the host.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod clones;
mod traffic;

use vmgenie_tests::Vm;

/// The kernel log has nothing to complain about.
fn no_complaints(vm: &mut Vm) {
    const COMPLAINTS: &str = "BUG|WARNING|Oops|Call Trace|virtio.*(error|fail)|id .* is not a head";
    let log = vm.shell(&format!("dmesg | grep -iE '{COMPLAINTS}' || true"));
    assert_eq!(log, "");
}
