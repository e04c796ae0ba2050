//! Device models, one file each.
//!
//! A device is handed its guest physical address or I/O ports, an interrupt line and its backend. It
//! knows no KVM, opens no files and makes no threads. What the guest writes to its registers may
//! have any value, at any offset and of any length; a device answers all of it without a panic.
//!
//! Devices on the I/O port bus implement [`vm_device::MutDevicePio`], so an
//! `Arc<Mutex<device>>` plugs into vm-device's `IoManager`.

use std::{fmt::Debug, io, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

pub mod boot_timer;
pub mod bounded;
pub mod fw_cfg;
pub mod metrics;
pub mod pm;
pub mod random;
pub mod serial;
pub mod sgen;
pub mod throttle;
pub mod virtio;
pub mod vmclock;
pub mod vmgenid;

pub use boot_timer::BootTimer;
pub use fw_cfg::FwCfg;
pub use pm::{PowerManagement, PowerRequest};
pub use serial::SerialPort;
pub use sgen::SysGen;
pub use vmclock::VmClock;
pub use vmgenid::{GenerationId, VmGenId};

/// A wire to an interrupt controller.
pub trait InterruptLine: Send + Sync {
    /// Sets the wire's level. Setting the level that it has already is allowed and has no effect on a
    /// level-triggered input; on an edge-triggered input only the change from false to true counts.
    ///
    /// Called by devices with their lock held, from vCPU threads and the event loop: must not call
    /// back into a device.
    ///
    /// # Errors
    /// When the interrupt controller did not take the level.
    fn set_level(&self, asserted: bool) -> io::Result<()>;
}

impl<T: InterruptLine + ?Sized> InterruptLine for Arc<T> {
    fn set_level(&self, asserted: bool) -> io::Result<()> {
        (**self).set_level(asserted)
    }
}

/// What a snapshot holds of one device: plain data, which the snapshot's encoder may store as it is.
pub trait DeviceState: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send {
    /// Version of this type's format. It grows with each change that an older reader would misread;
    /// the snapshot stores it beside the state and refuses versions that it does not know.
    const VERSION: u16;
}

/// A device whose state goes into a snapshot.
pub trait Persist {
    /// The device's state.
    type State: DeviceState;

    /// The device's state at this instant.
    ///
    /// *Caller:* the snapshot code. *vCPUs:* paused. *Afterwards:* the device is unchanged, and may go
    /// on as if nothing had happened.
    fn save(&self) -> Self::State;
}

/// A device that is built first and then takes a saved state. (Those that tell of generations are built from their state: where they lie in guest
/// memory is a part of it.)
pub trait Restore: Persist {
    /// Why a state was refused.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes the device what it was when `state` was saved.
    ///
    /// *Caller:* the restore code, before the interrupt controllers have their state. *vCPUs:* not
    /// running. *Afterwards:* every register reads as it did; **no interrupt line has been touched**,
    /// because the interrupt controllers' state would overwrite it: the caller asks the device to
    /// `sync_line()` when they are in place. A device that returns an error is as it was before.
    ///
    /// # Errors
    /// When `state` (which came from a file and may hold anything) cannot have been saved by such a
    /// device.
    fn restore(&mut self, state: &Self::State) -> Result<(), Self::Error>;
}

#[cfg(test)]
mod iasl_test;
#[cfg(test)]
mod testing;
