//! The registers of the MMIO transport that hold something.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};

/// The registers that hold something, without the queues'.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    /// As the driver wrote it; `DEVICE_NEEDS_RESET` is in [`IrqState`].
    pub(super) status: u32,
    pub(super) driver_features: u64,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) queue_sel: u32,
}

impl Registers {
    pub(super) fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    /// The driver uses the device.
    pub(super) fn is_live(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.has(VIRTIO_CONFIG_S_FAILED)
    }

    /// The driver may set up queues (section 3.1.1, step 7).
    pub(super) fn in_setup(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK)
            && self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED) == 0
    }
}
