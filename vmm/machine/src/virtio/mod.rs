//! The virtio devices of a machine: where they are, how their events reach them, how they are saved.
//!
//! All work on queues and backends is done in the event loop's thread, while the vCPUs run. What happens while they stand still is
//! remembered and done when they run again, so that a machine that stands still stays as it is.

mod announce;
mod copies;
mod device;
pub mod drive_files;
mod drives;
mod events;
pub mod files;
mod gate;
pub mod kinds;
mod nets;
mod slot;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_device::bus::{self, MmioAddress, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vmgenie_acpi::Aml;
use vmgenie_devices::throttle::Throttle;
use vmgenie_devices::virtio::{MmioSlot, TransportRestoreError, Turn};

use super::backends::found::DriveFiles;
use super::layout::VIRTIO_GSIS;
use super::memory::GuestMemory;
use crate::config::MacAddress;

use announce::Announcing;
pub use copies::{CopyDrivesError, DriveCopies};
pub use device::DeviceBusy;
pub use drives::UpdateDriveError;
use events::Happening;
pub use events::VirtioEvents;
use gate::GateWork;
pub(crate) use gate::Side;
pub(super) use kinds::SavedVirtio;
use kinds::{DevicesConfig, TransportPart};
pub use nets::UpdateNetError;
use slot::{Pending, Slot, Slots};

/// Why the virtio devices could not be set up.
#[derive(Debug, Error)]
pub enum VirtioError {
    /// More devices than interrupts.
    #[error("a microVM has {} virtio devices at most", VIRTIO_GSIS.len())]
    TooMany,
    /// KVM or the event loop.
    #[error("could not {what} the virtio device in slot {slot}")]
    Connect {
        /// The number of the slot.
        slot: usize,
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device of one kind.
    #[error("could not {what}")]
    Device {
        /// What could not be done.
        what: String,
        /// Why.
        #[source]
        source: kinds::Refusal,
    },
    /// The range of a slot is taken.
    #[error("could not put a virtio device on the bus")]
    Bus(#[source] bus::Error),
    /// The state file lacks something.
    #[error("the snapshot has no state of {0}, which its machine has")]
    Missing(&'static str),
    /// The state file has too much.
    #[error("the snapshot has states of more virtio devices than its machine has")]
    TooManyStates,
    /// A device's own state.
    #[error("could not restore the virtio device in slot {slot}")]
    State {
        /// The number of the slot.
        slot: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A transport's state.
    #[error("could not restore the virtio device in slot {slot}")]
    Restore {
        /// The number of the slot.
        slot: usize,
        /// Why.
        #[source]
        source: TransportRestoreError,
    },
}

/// What the guest has written to a drive may not be on its disk.
#[derive(Debug, Error)]
#[error("could not make durable what the guest has written to the drive {id:?}")]
pub struct SyncDriveError {
    id: String,
    #[source]
    source: io::Error,
}

/// The virtio devices of a machine.
#[derive(Debug)]
pub(super) struct VirtioDevices {
    config: DevicesConfig,
    slots: Vec<Slot>,
    events: Arc<VirtioEvents>,
    complaints: Throttle,
    gate: GateWork,
    announcing: Announcing,
}

impl VirtioDevices {
    /// The devices of a machine that boots. The VM has its interrupt controllers and no vCPUs yet: connecting doorbells is cheap
    /// then.
    pub(super) fn boot(
        vm: &VmFd,
        memory: &GuestMemory,
        config: &DevicesConfig,
        events: &Arc<VirtioEvents>,
    ) -> Result<Self, VirtioError> {
        check_number(config)?;
        let mut slots = Slots::new(vm, memory, events, None);
        kinds::boot(config, &mut slots)?;
        Ok(Self {
            slots: slots.filled(),
            config: config.clone(),
            events: Arc::clone(events),
            complaints: Throttle::default(),
            gate: GateWork::default(),
            announcing: Announcing::default(),
        })
    }

    /// The devices of a machine that is restored; `config` is what `saved` says, but for what the request wants otherwise, and `found` are the files
    /// of its drives. Neither guest memory nor an interrupt is touched.
    pub(super) fn restore(
        vm: &VmFd,
        memory: &GuestMemory,
        config: DevicesConfig,
        found: Vec<DriveFiles>,
        saved: &SavedVirtio,
        events: &Arc<VirtioEvents>,
    ) -> Result<Self, VirtioError> {
        check_number(&config)?;
        let transports = saved.transports();
        if transports.len() > config.len() {
            return Err(VirtioError::TooManyStates);
        }
        let mut slots = Slots::new(vm, memory, events, Some(&transports));
        kinds::restore(&config, found, saved, &mut slots)?;
        Ok(Self {
            slots: slots.filled(),
            config,
            events: Arc::clone(events),
            complaints: Throttle::default(),
            gate: GateWork::default(),
            announcing: Announcing::default(),
        })
    }

    /// What the devices are.
    pub(super) fn config(&self) -> &DevicesConfig {
        &self.config
    }

    /// The same for a machine that boots again: with the MAC addresses that were made up.
    pub(super) fn config_to_keep(&self) -> DevicesConfig {
        let mut config = self.config.clone();
        let nets = self.slots.iter().filter_map(|slot| slot.device.as_net());
        let macs = nets.map(|net| net.with_device(|net, _| net.settings().mac));
        config.keep_macs(macs.map(MacAddress::new));
        config
    }

    /// Puts the devices on the bus.
    pub(super) fn register(&self, bus: &mut IoManager) -> Result<(), VirtioError> {
        for slot in &self.slots {
            let base = MmioAddress(slot.place.gpa.into());
            let range = MmioRange::new(base, MmioSlot::LEN.into()).map_err(VirtioError::Bus)?;
            bus.register_mmio(range, Arc::clone(&slot.device).on_bus())
                .map_err(VirtioError::Bus)?;
        }
        Ok(())
    }

    /// The devices' descriptions for the guest.
    pub(super) fn acpi(&self) -> impl Iterator<Item = &dyn Aml> {
        self.slots.iter().map(|slot| &slot.place as &dyn Aml)
    }

    /// After a restore, when all other states are in place and interrupts reach the guest. *vCPUs:* standing still.
    pub(super) fn restored(&self) {
        for slot in &self.slots {
            slot.device.restored();
        }
        self.kick_all();
    }

    /// Ends or takes back what is in flight: until the vCPUs run again, nobody writes guest memory. What was taken back is taken up
    /// then. *vCPUs:* standing still.
    pub(super) fn drain(&self) {
        for slot in &self.slots {
            slot.device.drain();
        }
        self.kick_all();
    }

    /// Makes durable what is on the drives. *vCPUs:* any; drained, and nothing was taken up since.
    ///
    /// # Errors
    /// The first drive's that has one.
    pub(super) fn sync_drives(&self) -> Result<(), SyncDriveError> {
        for slot in &self.slots {
            if let Some(device) = slot.device.as_drive() {
                device
                    .with_device(|block, _| block.sync().map_err(|e| (block.id().to_owned(), e)))
                    .map_err(|(id, source)| SyncDriveError { id, source })?;
            }
        }
        Ok(())
    }

    /// Saves all devices; of the drives, `copies` were made. *vCPUs:* standing still. *Afterwards:* drained.
    pub(super) fn save(&self, copies: &DriveCopies) -> SavedVirtio {
        self.drain();
        let mut saved = SavedVirtio::of(self.config.clone());
        for slot in &self.slots {
            let state = slot.device.save();
            saved.transports.push(TransportPart(state));
            slot.device.save_to(&mut saved, copies);
        }
        saved
    }

    /// Has the event loop look at everything as soon as the vCPUs run: doorbells that were rung before a snapshot ring nowhere
    /// after a restore.
    fn kick_all(&self) {
        (0..self.slots.len()).for_each(|slot| self.events.kick(slot));
    }

    /// Takes note of what has happened. The event loop calls when [`VirtioEvents`] are readable, whether the vCPUs run or not.
    pub(super) fn take_events(&mut self) {
        let Self { slots, events, .. } = self;
        let taken = events.take(|happening| match happening {
            Happening::Doorbell { slot, queue } => {
                if let Some(slot) = slots.get_mut(slot) {
                    slot.pending.ring(queue);
                }
            }
            Happening::Backend { slot } => {
                if let Some(slot) = slots.get_mut(slot) {
                    slot.pending.backend = true;
                }
            }
            Happening::Everything { slot } => {
                if let Some(slot) = slots.get_mut(slot) {
                    slot.pending = Pending::ALL;
                }
            }
        });
        if let Err(error) = taken
            && let Some(more) = self.complaints.allows(Instant::now())
        {
            tracing::error!(%error, more, "the events of the virtio devices");
        }
    }

    /// Does what is to be done, each thing once; what is left then is for the event loop's next turn. *vCPUs:* running.
    pub(super) fn work(&mut self) {
        self.go_on_opening();
        for slot in &mut self.slots {
            let pending = std::mem::take(&mut slot.pending);
            if pending.is_empty() {
                continue;
            }
            let transport = &slot.device;
            if pending.backend && transport.backend_ready() == Turn::More {
                slot.pending.backend = true;
            }
            for queue in 0..transport.queue_count() {
                if pending.queues & 1 << queue != 0 && transport.doorbell(queue) == Turn::More {
                    slot.pending.ring(queue);
                }
            }
        }
        self.wake_if_pending();
    }

    /// The vCPUs run again: what happened meanwhile is looked at in the event loop's next turn.
    pub(super) fn wake_if_pending(&self) {
        if self.slots.iter().any(|slot| !slot.pending.is_empty()) {
            self.events.wake();
        }
    }
}

/// Whether so many devices have a place.
pub fn check_number(config: &DevicesConfig) -> Result<(), VirtioError> {
    if config.len() > VIRTIO_GSIS.len() {
        return Err(VirtioError::TooMany);
    }
    Ok(())
}
