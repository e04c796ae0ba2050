//! Snapshots of real machines on disk: damaged, exchanged, interrupted, out of space, overwritten, and cloned again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod crash;
mod damage;
mod exchange;
mod full_disk;
mod lineage;
