//! The API of real processes: what it does, what it refuses, and that nothing a client sends harms it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod adaptation;
mod endpoints;
mod fork;
mod generation;
mod hostile;
mod load;
mod machine;
mod order;
mod ready;
mod self_snapshot;
mod serial;
