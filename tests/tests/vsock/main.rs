//! Sockets between real guests and the host.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod clones;
mod gate;
mod traffic;
