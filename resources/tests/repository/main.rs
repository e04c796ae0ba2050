//! What the repository says of itself holds: names in its documents exist, and what it depends on is
//! allowed.
//!
//! Nothing here needs a KVM or root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod circles;
mod dependencies;
mod errors;
mod files;
mod kinds;
mod licence;
mod markdown;
mod promises;
mod publish;
mod spelling;
