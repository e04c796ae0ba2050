//! The machine around a device: memory, and wires that lead nowhere.

use std::io;

use vm_memory::GuestAddress;
use vmgenie_devices::InterruptLine;
use vmgenie_devices::virtio::{GuestMemory, Wires};

/// Two ranges of memory with a hole between them.
#[allow(
    clippy::expect_used,
    reason = "constants, and a fuzzer without memory has to end"
)]
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[
        (GuestAddress(0), 0x20_0000),
        (GuestAddress(0x40_0000), 0x1_0000),
    ])
    .expect("two mebibytes of memory")
}

/// An interrupt, an event loop, a line that nobody hears of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Nowhere;

impl Wires for Nowhere {
    fn interrupt(&self) -> io::Result<()> {
        Ok(())
    }

    fn kick(&self) {}
}

impl InterruptLine for Nowhere {
    fn set_level(&self, _asserted: bool) -> io::Result<()> {
        Ok(())
    }
}
