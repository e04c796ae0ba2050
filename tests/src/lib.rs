//! What the integration tests and benchmarks share: guests on a real KVM, reached as a user would reach them.
//!
//! A test gets its surroundings from `cargo xtask test`: `VMGENIE_BIN` names the program, `VMGENIE_GUEST_DIR` the kernels and
//! initramfs archives, `VMGENIE_IMAGE` the Debian image, `VMGENIE_RUNTIMES` the disk with language runtimes, `VMGENIE_QEMU` the other monitor that guests of the driver's tests run on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

pub mod block_device;
pub mod booted;
pub mod console;
pub mod disk;
pub mod evidence;
pub mod failing_disk;
pub mod guest;
pub mod http;
pub mod image;
pub mod net;
pub mod packets;
pub mod process;
pub mod pty;
pub mod qemu;
pub mod qmp;
pub mod room;
pub mod shell;
pub mod small_disk;
pub mod snapshot;
pub mod tiny;
pub mod vm;
pub mod vsock;

pub use guest::Guest;
pub use qemu::Qemu;
pub use shell::Shell;
pub use snapshot::Snapshot;
pub use vm::Vm;
