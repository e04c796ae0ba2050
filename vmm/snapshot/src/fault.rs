//! Points at which a test can stop a create, to see what a crash leaves behind.
//!
//! `VMGENIE_FAULT=memory-written:abort` in the environment kills the process with SIGKILL when it
//! reaches that point; `:error` makes the step fail there instead, as a full disk would. Several
//! are separated by commas. Only compiled in with the cargo feature `fault-injection` and in this
//! crate's own tests.

use std::io;

/// The points of a create in the order in which they are passed, each named for what has just
/// happened.
pub const POINTS: &[&str] = &[
    "staging-created",
    "memory-written",
    "state-written",
    "memory-synced",
    "synced",
    "locked",
    "memory-staged",
    "state-staged",
    "staged-names-synced",
    "state-renamed",
    "state-rename-synced",
    "memory-renamed",
    "memory-rename-synced",
];

/// The first of [`POINTS`] where a crash leaves the new snapshot, not the old one.
pub const COMMITTED: &str = "state-renamed";

/// Not among [`POINTS`]: `unnamed-files:error` stands for a file system that has none.
pub const UNNAMED_FILES: &str = "unnamed-files";

/// Passes the point `name`.
///
/// # Errors
/// Fails only if the environment says so.
#[cfg(any(test, feature = "fault-injection"))]
pub fn pass(name: &'static str) -> io::Result<()> {
    let faults = std::env::var("VMGENIE_FAULT").unwrap_or_default();
    for fault in faults.split(',') {
        match fault.split_once(':') {
            Some((point, "abort")) if point == name => {
                let this = rustix::process::getpid();
                rustix::process::kill_process(this, rustix::process::Signal::KILL)?;
            }
            Some((point, "error")) if point == name => {
                return Err(io::Error::other(format!("injected fault at {name}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Passes the point `name`: nothing at all in a build without fault injection.
///
/// # Errors
/// Never fails.
#[cfg(not(any(test, feature = "fault-injection")))]
#[inline]
pub fn pass(_name: &'static str) -> io::Result<()> {
    Ok(())
}
