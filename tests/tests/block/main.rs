//! Drives of real guests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod function;

use std::time::Duration;

use vmgenie_tests::Vm;

/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(120);

/// The kernel log has nothing to complain about.
fn no_complaints(vm: &mut Vm) {
    const COMPLAINTS: &str =
        "BUG:|WARNING:|Oops|Call Trace|I/O error|virtio.*(error|fail)|id .* is not a head|hung";
    let log = vm.shell(&format!("dmesg | grep -iE '{COMPLAINTS}' || true"));
    assert_eq!(log, "");
}
