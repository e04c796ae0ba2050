// SPDX-License-Identifier: GPL-2.0

//! Tests, on the host, of what the kernel modules have that needs no kernel.
//!
//! The files are those that the modules compile. Their items are the modules' own, so that the tests
//! are in this crate, and it offers nothing to others.

#![no_std]

#[cfg(test)]
extern crate std;

/// In the place of the module's, which is of the kernel's tasks.
mod sysgenid_away {
    use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// A task that a test freezes and thaws.
    pub(crate) struct Away(pub(crate) &'static AtomicBool);

    impl Away {
        pub(crate) fn is_frozen(&self) -> bool {
            self.0.load(Relaxed)
        }
    }
}
#[path = "../../sysgenid/sysgenid_core.rs"]
#[allow(
    dead_code,
    reason = "the modules use it, and the tests do; nothing else does"
)]
mod sysgenid_core;
#[path = "../../sysgenid/sysgenid_cycle.rs"]
#[allow(dead_code, reason = "as above")]
mod sysgenid_cycle;
#[path = "../../sysgenid/sysgenid_settle.rs"]
#[allow(dead_code, reason = "as above")]
mod sysgenid_settle;

#[cfg(test)]
mod crng_test;
#[cfg(test)]
mod cycle_test;
#[cfg(test)]
mod device_test;
#[cfg(test)]
mod fork_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod settle_test;
#[cfg(test)]
mod test_device;
#[cfg(test)]
mod test_fork;
#[cfg(test)]
mod test_hypervisor;
#[cfg(test)]
mod ticks_test;
