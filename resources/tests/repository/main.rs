//! What the repository's documents say of themselves holds: names exist, links lead somewhere.
//!
//! Nothing here needs a KVM, root or the network.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod files;
mod promises;
