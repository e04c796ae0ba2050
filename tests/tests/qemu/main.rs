//! The guest's driver on QEMU with its VMGENID device: the same modules and programs, another hypervisor.
//! What is ours there is not: the counter's page is the driver's own, and moves once in a new generation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod interface;
mod restores;

use std::time::Duration;

use vmgenie_tests::shell::load_modules;
use vmgenie_tests::{Guest, Qemu};

/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest with both modules.
fn boot(guest: Guest) -> Qemu {
    let mut qemu = Qemu::boot(guest, 1);
    load_modules(&mut qemu, "");
    qemu
}
