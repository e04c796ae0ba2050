//! What a snapshot holds of a transport.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_queue::{Queue, QueueState, QueueT};

use super::irq::{CONFIG, IrqState, USED};
use super::registers::Registers;
use super::{F_EVENT_IDX, F_VERSION_1, GuestMemory};
use crate::DeviceState;

/// More queues than a device has.
const MAX_QUEUES: usize = 16;

/// Why a saved transport was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportRestoreError {
    /// Other queues than this device's.
    #[error("the saved device has queues of {saved:?} entries at most, this one has {own:?}")]
    Queues {
        /// In the state.
        saved: Vec<u16>,
        /// Of this device.
        own: Vec<u16>,
    },
    /// The driver uses features that are not on offer here.
    #[error("the driver uses features {saved:#x}, of which this device has {offered:#x} only")]
    Features {
        /// In the state.
        saved: u64,
        /// On offer.
        offered: u64,
    },
    /// A status that no driver can bring about.
    #[error("{0:#x} is no status of a device")]
    Status(u32),
    /// A cause of interrupts that there is not.
    #[error("{0:#x} is no interrupt status of a device")]
    InterruptStatus(u32),
    /// A queue's size or an address.
    #[error("queue {queue} of the saved device is impossible: {reason}")]
    Queue {
        /// The number of the queue.
        queue: usize,
        /// Why.
        reason: String,
    },
    /// A queue that is in use lies elsewhere.
    #[error("queue {queue} of the saved device lies outside of guest memory")]
    QueueOutside {
        /// The number of the queue.
        queue: usize,
    },
}

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// The largest number of entries.
    pub max_size: u16,
    /// The number of entries that the driver chose.
    pub size: u16,
    /// The driver has set it up.
    pub ready: bool,
    /// The index of the chain that is taken next.
    pub next_avail: u16,
    /// The index of the chain that is given back next.
    pub next_used: u16,
    /// Guest physical address of the table of descriptors.
    pub desc_table: u64,
    /// Guest physical address of the ring in which the driver offers chains.
    pub avail_ring: u64,
    /// Guest physical address of the ring in which the device gives them back.
    pub used_ring: u64,
}

/// The state of a transport: all registers of the device but its configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// `Status`, without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// The device needs a reset.
    pub needs_reset: bool,
    /// What the driver has written to `DriverFeatures`.
    pub driver_features: u64,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
    /// The queues, in their order.
    #[serde(deserialize_with = "crate::bounded::at_most::<_, _, MAX_QUEUES>")]
    pub queues: Vec<QueueRegisters>,
}

impl DeviceState for TransportState {
    const VERSION: u16 = 1;
}

impl TransportState {
    pub(super) fn of(registers: &Registers, queues: &[Queue], irq: &IrqState) -> Self {
        Self {
            status: registers.status,
            needs_reset: irq.is_broken(),
            driver_features: registers.driver_features,
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            queue_sel: registers.queue_sel,
            interrupt_status: irq.status(),
            config_generation: irq.config_generation(),
            queues: queues.iter().map(saved_queue).collect(),
        }
    }

    pub(super) fn registers(&self) -> Registers {
        Registers {
            status: self.status,
            driver_features: self.driver_features,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
        }
    }

    /// Whether this can be the state of a device with queues of `sizes` that offers `offered`, without a device.
    ///
    /// # Errors
    /// As for [`VirtioMmio::from_state`](super::VirtioMmio::from_state).
    pub fn precheck(
        &self,
        sizes: &[u16],
        offered: u64,
        memory: &GuestMemory,
    ) -> Result<(), TransportRestoreError> {
        self.check(sizes, offered | F_VERSION_1, memory).map(drop)
    }

    /// The queues, if all of this can be the state of a device with queues of `sizes` that offers `offered`.
    pub(super) fn check(
        &self,
        sizes: &[u16],
        offered: u64,
        memory: &GuestMemory,
    ) -> Result<Vec<Queue>, TransportRestoreError> {
        let saved: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        if saved != sizes {
            let own = sizes.to_vec();
            return Err(TransportRestoreError::Queues { saved, own });
        }
        if !is_status(self.status) {
            return Err(TransportRestoreError::Status(self.status));
        }
        if self.interrupt_status & !(USED | CONFIG) != 0 {
            let error = TransportRestoreError::InterruptStatus(self.interrupt_status);
            return Err(error);
        }
        let settled = self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        let known = self.driver_features & !offered == 0 && self.driver_features & F_VERSION_1 != 0;
        if settled && !known {
            return Err(TransportRestoreError::Features {
                saved: self.driver_features,
                offered,
            });
        }
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        // Queues that are broken are never looked at again; a driver may have put them anywhere.
        let live = self.registers().is_live() && !self.needs_reset;
        let queues = self.queues.iter().enumerate().map(|(number, saved)| {
            let queue = restored_queue(number, saved, live && event_idx)?;
            if live && queue.ready() && !queue.is_valid(memory) {
                return Err(TransportRestoreError::QueueOutside { queue: number });
            }
            Ok(queue)
        });
        queues.collect()
    }
}

/// Can a driver have brought this about?
fn is_status(status: u32) -> bool {
    let has = |bit| status & bit != 0;
    let known = VIRTIO_CONFIG_S_ACKNOWLEDGE
        | VIRTIO_CONFIG_S_DRIVER
        | VIRTIO_CONFIG_S_FEATURES_OK
        | VIRTIO_CONFIG_S_DRIVER_OK
        | VIRTIO_CONFIG_S_FAILED;
    status & !known == 0
        && (has(VIRTIO_CONFIG_S_DRIVER) || !has(VIRTIO_CONFIG_S_FEATURES_OK))
        && (has(VIRTIO_CONFIG_S_FEATURES_OK) || !has(VIRTIO_CONFIG_S_DRIVER_OK))
}

fn saved_queue(queue: &Queue) -> QueueRegisters {
    QueueRegisters {
        max_size: queue.max_size(),
        size: queue.size(),
        ready: queue.ready(),
        next_avail: queue.next_avail(),
        next_used: queue.next_used(),
        desc_table: queue.desc_table(),
        avail_ring: queue.avail_ring(),
        used_ring: queue.used_ring(),
    }
}

fn restored_queue(
    number: usize,
    saved: &QueueRegisters,
    event_idx: bool,
) -> Result<Queue, TransportRestoreError> {
    Queue::try_from(QueueState {
        max_size: saved.max_size,
        next_avail: saved.next_avail,
        next_used: saved.next_used,
        event_idx_enabled: event_idx,
        size: saved.size,
        ready: saved.ready,
        desc_table: saved.desc_table,
        avail_ring: saved.avail_ring,
        used_ring: saved.used_ring,
    })
    .map_err(|error| TransportRestoreError::Queue {
        queue: number,
        reason: error.to_string(),
    })
}
