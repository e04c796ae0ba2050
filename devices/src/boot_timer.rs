//! The boot timer: a guest that has booted writes a byte there, and the host knows how long it took.
//!
//! One write-only register at a gpa of its own, which guests built for Firecracker know: there is no ACPI device for it. It has no
//! state, and machines that come from a snapshot have none.

use std::fmt;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// Where it is, unless there is memory: Firecracker's address.
pub const GPA: u64 = 0xc000_0000;
/// The length of its range in bytes.
pub const LEN: u64 = 0x1000;
/// What a guest that has booted writes to offset 0, as one byte.
pub const BOOTED: u8 = 123;

/// Told that the guest has booted, as often as the guest says so; called on a vCPU's thread.
pub type OnBooted = Box<dyn Fn() + Send + Sync>;

/// The device.
pub struct BootTimer {
    on_booted: OnBooted,
}

impl fmt::Debug for BootTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootTimer").finish_non_exhaustive()
    }
}

impl BootTimer {
    /// A timer that calls `on_booted`.
    pub fn new(on_booted: OnBooted) -> Self {
        Self { on_booted }
    }
}

impl DeviceMmio for BootTimer {
    /// There is nothing to read: `data` stays what the caller has put there.
    fn mmio_read(&self, _base: MmioAddress, _offset: MmioAddressOffset, _data: &mut [u8]) {}

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if offset == 0 && data == [BOOTED] {
            (self.on_booted)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn only_the_byte_at_the_first_address_says_that_the_guest_has_booted() {
        let booted = Arc::new(AtomicUsize::new(0));
        let heard = Arc::clone(&booted);
        let timer = BootTimer::new(Box::new(move || {
            heard.fetch_add(1, Ordering::Relaxed);
        }));
        let write = |offset, data: &[u8]| {
            timer.mmio_write(MmioAddress(GPA), offset, data);
            booted.load(Ordering::Relaxed)
        };
        assert_eq!(write(0, &[BOOTED + 1]), 0);
        assert_eq!(write(1, &[BOOTED]), 0);
        assert_eq!(write(LEN - 1, &[BOOTED]), 0);
        assert_eq!(write(0, &[]), 0);
        assert_eq!(write(0, &[BOOTED, 0]), 0);
        assert_eq!(write(0, &[BOOTED]), 1);
        assert_eq!(write(0, &[BOOTED]), 2);
        let mut data = [7; 4];
        timer.mmio_read(MmioAddress(GPA), 0, &mut data);
        assert_eq!(data, [7; 4]);
    }
}
