//! VMClock: a page in guest memory that tells of clock disruptions and new generations (UAPI group
//! specification 13; the numbers are those of Linux's `include/uapi/linux/vmclock-abi.h`).
//!
//! This device offers **no time**: the guest has kvm-clock for that. The page says so (no counter, clock
//! status unknown) and carries the disruption marker and the generation counter alone. The counter
//! counts generations; it does not tell two clones of one snapshot apart, which the generation ID does.

use std::sync::atomic::{Ordering, fence};

use acpi_tables::{
    Aml, AmlSink,
    aml::{AddressSpace, AddressSpaceCacheable, Device, Name, ResourceTemplate},
};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmgenie_acpi::GpeNotify;

use crate::{DeviceState, Persist};

/// The general-purpose event that is raised after a change.
pub const GPE: u8 = 6;
/// Path of the device in the guest's namespace.
pub const ACPI_PATH: &str = "\\_SB_.VCLK";
/// What the device's driver is notified of: the page has changed.
pub const NOTIFY_CHANGED: u8 = 0x80;
/// Length of the page in bytes.
pub const PAGE_LEN: u64 = 4096;

const MAGIC: u32 = 0x4b4c_4356;
const VERSION: u16 = 1;
/// `VMCLOCK_COUNTER_INVALID`: the page relates no CPU counter to a time.
const COUNTER_INVALID: u8 = 0xff;
/// `VMCLOCK_TIME_UTC`; without a counter it has no meaning.
const TIME_UTC: u8 = 0;
/// `VMCLOCK_STATUS_UNKNOWN`.
const STATUS_UNKNOWN: u8 = 0;
const FLAG_VM_GEN_COUNTER_PRESENT: u64 = 1 << 8;
const FLAG_NOTIFICATION_PRESENT: u64 = 1 << 9;

const OFFSET_SEQ: u64 = 0x0c;
const OFFSET_DISRUPTION: u64 = 0x10;
const OFFSET_GENERATION: u64 = 0x68;
/// Length of the structure at the page's beginning.
const STRUCTURE_LEN: usize = 0x70;

/// What `\_GPE._E06` does, for the machine's description.
pub const fn gpe_notify() -> GpeNotify<'static> {
    GpeNotify {
        gpe: GPE,
        device: ACPI_PATH,
        value: NOTIFY_CHANGED,
    }
}

/// Why the page could not be placed or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmClockError {
    /// The page is not a page.
    #[error("could not place VMClock at gpa {gpa:#x}: it needs a whole page")]
    Address {
        /// The guest physical address.
        gpa: u64,
    },
    /// Guest memory could not be written.
    #[error("could not write VMClock to guest memory at gpa {gpa:#x}")]
    Memory {
        /// The guest physical address.
        gpa: u64,
        /// What the guest memory said.
        source: GuestMemoryError,
    },
}

/// The device's state in a snapshot. Guest memory holds the same, but this is what counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClockState {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// The sequence count: even.
    pub seq: u32,
    /// Another value after each disruption of the guest's clock.
    pub disruption_marker: u64,
    /// Another value in each generation.
    pub generation: u64,
}

impl DeviceState for VmClockState {
    const VERSION: u16 = 1;
}

/// The VMClock device.
#[derive(Clone, Debug)]
pub struct VmClock {
    state: VmClockState,
}

impl VmClock {
    /// The device of a guest that boots; writes its page at `gpa`, whose rest is zero already.
    ///
    /// # Errors
    /// [`VmClockError::Address`], [`VmClockError::Memory`].
    pub fn new<M>(memory: &M, gpa: u64) -> Result<Self, VmClockError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let device = Self::from_state(&VmClockState {
            gpa,
            seq: 0,
            disruption_marker: 0,
            generation: 0,
        })?;
        device.write_to(memory)?;
        Ok(device)
    }

    /// The device that was saved. Guest memory is left alone.
    ///
    /// # Errors
    /// [`VmClockError::Address`].
    pub fn from_state(state: &VmClockState) -> Result<Self, VmClockError> {
        if !state.gpa.is_multiple_of(PAGE_LEN) {
            return Err(VmClockError::Address { gpa: state.gpa });
        }
        Ok(Self {
            state: VmClockState {
                // An odd one, in a hostile file, would have readers wait for ever.
                seq: state.seq & !1,
                ..state.clone()
            },
        })
    }

    /// Tells of a new generation, which is a disruption of the clock, too.
    ///
    /// *Caller:* the VMM's one function that begins a new generation, which then raises [`GPE`]. *vCPUs:*
    /// not running.
    ///
    /// # Errors
    /// [`VmClockError::Memory`]: the page may be half written, so the guest must not run before another
    /// attempt has succeeded.
    pub fn begin<M>(&mut self, memory: &M) -> Result<(), VmClockError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let generation = self.state.generation.wrapping_add(1);
        self.change(memory, generation)
    }

    /// Tells of a disruption of the clock within a generation: a restore that keeps it. No event.
    /// *vCPUs:* not running.
    ///
    /// # Errors
    /// [`VmClockError::Memory`], as for [`Self::begin`].
    pub fn disrupt<M>(&mut self, memory: &M) -> Result<(), VmClockError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        self.change(memory, self.state.generation)
    }

    /// Writes the whole structure, for a guest that boots. *vCPUs:* not running.
    ///
    /// # Errors
    /// [`VmClockError::Memory`].
    pub fn write_to<M>(&self, memory: &M) -> Result<(), VmClockError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let gpa = self.state.gpa;
        memory
            .write_slice(&self.structure(), GuestAddress(gpa))
            .map_err(|source| VmClockError::Memory { gpa, source })
    }

    /// Guest physical address of the page.
    pub fn gpa(&self) -> u64 {
        self.state.gpa
    }

    /// The generation counter.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Writes what changes, by the protocol of the sequence count: odd meanwhile. The device changes when
    /// all of it has been written.
    fn change<M>(&mut self, memory: &M, generation: u64) -> Result<(), VmClockError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let gpa = self.state.gpa;
        let at = |offset| GuestAddress(gpa + offset);
        let next = VmClockState {
            gpa,
            seq: self.state.seq.wrapping_add(2),
            disruption_marker: self.state.disruption_marker.wrapping_add(1),
            generation,
        };
        let odd = self.state.seq | 1;
        (|| {
            memory.store(odd.to_le(), at(OFFSET_SEQ), Ordering::Relaxed)?;
            fence(Ordering::Release);
            let marker = next.disruption_marker.to_le();
            memory.store(marker, at(OFFSET_DISRUPTION), Ordering::Relaxed)?;
            let generation = next.generation.to_le();
            memory.store(generation, at(OFFSET_GENERATION), Ordering::Relaxed)?;
            memory.store(next.seq.to_le(), at(OFFSET_SEQ), Ordering::Release)
        })()
        .map_err(|source| VmClockError::Memory { gpa, source })?;
        self.state = next;
        Ok(())
    }

    fn structure(&self) -> [u8; STRUCTURE_LEN] {
        let mut bytes = [0; STRUCTURE_LEN];
        let mut put = |offset: u64, field: &[u8]| {
            let offset = offset as usize;
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        let flags = FLAG_VM_GEN_COUNTER_PRESENT | FLAG_NOTIFICATION_PRESENT;
        put(0x00, &MAGIC.to_le_bytes());
        // Of the region, not of the structure: Linux makes /dev/vmclock0 for a whole page only.
        put(0x04, &(PAGE_LEN as u32).to_le_bytes());
        put(0x08, &VERSION.to_le_bytes());
        put(0x0a, &[COUNTER_INVALID, TIME_UTC]);
        put(OFFSET_SEQ, &self.state.seq.to_le_bytes());
        put(
            OFFSET_DISRUPTION,
            &self.state.disruption_marker.to_le_bytes(),
        );
        put(0x18, &flags.to_le_bytes());
        put(0x22, &[STATUS_UNKNOWN]);
        put(OFFSET_GENERATION, &self.state.generation.to_le_bytes());
        bytes
    }
}

impl Persist for VmClock {
    type State = VmClockState;

    fn save(&self) -> VmClockState {
        self.state.clone()
    }
}

impl Aml for VmClock {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let page = AddressSpace::new_memory(
            AddressSpaceCacheable::Cacheable,
            false,
            self.state.gpa,
            self.state.gpa + (PAGE_LEN - 1),
            None,
        );
        let crs = ResourceTemplate::new(vec![&page]);
        Device::new(
            "VCLK".into(),
            vec![
                &Name::new("_HID".into(), &"AMZNC10C"),
                &Name::new("_CID".into(), &"VMCLOCK"),
                &Name::new("_DDN".into(), &"VMCLOCK"),
                &Name::new("_CRS".into(), &crs),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
#[path = "vmclock_test.rs"]
mod tests;
