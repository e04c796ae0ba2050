//! SGEN, vmgenie's own device: the page with the guest's generation counter, and the doorbell by which
//! the guest's driver tells how far it has come with a new generation.
//!
//! The page is RAM that e820 reports as reserved; the driver lets programs map it, so that the first
//! load after a resume sees the counter which the host has moved. The counter is a little-endian u32 at
//! offset 0, the rest is zero and reserved.
//!
//! | port offset | written | read |
//! |---|---|---|
//! | 0x0 | counter value of which the driver has told its watchers | last value written |
//! | 0x4 | counter value for which the kernel's RNG has been reseeded | last value written |
//! | 0x8 | number of outdated tracked watchers | last value written |
//! | 0xc | version of the driver's interface, 0 when it goes | version of the device's interface |
//!
//! Registers take accesses of 32 bits; all others are ignored, and read as ones. The guest writes what
//! it likes there and in the page: values are compared and shown, never used as sizes or addresses.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use acpi_tables::{
    Aml, AmlSink,
    aml::{AddressSpace, AddressSpaceCacheable, Device, IO, Name, ResourceTemplate},
};
use serde::{Deserialize, Serialize};
use vm_device::{
    MutDevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{DeviceState, Persist};

/// First I/O port of the doorbell.
pub const PORT_BASE: u16 = 0x640;
/// Number of I/O ports of the doorbell.
pub const PORT_LEN: u16 = 0x10;
/// Version of the device's interface, as the guest reads it.
pub const INTERFACE_VERSION: u32 = 1;
/// Length of the counter's page in bytes.
pub const PAGE_LEN: u64 = 4096;

const REACHED: u16 = 0x0;
const RESEEDED: u16 = 0x4;
const OUTDATED: u16 = 0x8;
const VERSION: u16 = 0xc;

/// Why the counter could not be placed, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysGenError {
    /// The page is not a page.
    #[error("Could not place the generation counter at gpa {gpa:#x}: it needs a whole page")]
    Address {
        /// The guest physical address.
        gpa: u64,
    },
    /// Guest memory could not be reached.
    #[error("Could not reach the generation counter in guest memory at gpa {gpa:#x}: {source}")]
    Memory {
        /// The guest physical address.
        gpa: u64,
        /// What the guest memory said.
        source: GuestMemoryError,
    },
    /// A state belongs to a device at another address, which the guest has read out of its ACPI tables.
    #[error(
        "Could not restore the generation counter of gpa {saved:#x} in a device at gpa {gpa:#x}"
    )]
    OtherAddress {
        /// The guest physical address in the state.
        saved: u64,
        /// The device's guest physical address.
        gpa: u64,
    },
}

/// What the guest's driver has told since the generation began. It is the word of an untrusted guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverReport {
    /// Version of the driver's interface; 0 if there is no driver.
    pub version: u32,
    /// The driver has told its watchers of the generation.
    pub reached: bool,
    /// The kernel's random number generator has been reseeded for the generation.
    pub reseeded: bool,
    /// Tracked watchers that have not acknowledged yet.
    pub outdated: u32,
    /// How long after the beginning of the generation the driver first told that it was reached; none
    /// if it has not, or not to this VMM.
    pub reached_after: Option<Duration>,
    /// The same for the reseeded random number generator.
    pub reseeded_after: Option<Duration>,
    /// The same for the guest as a whole: when [`Self::adapted`] first held.
    pub adapted_after: Option<Duration>,
}

impl DriverReport {
    /// Whether there is a driver.
    pub fn present(&self) -> bool {
        self.version != 0
    }

    /// Whether the guest has adapted to its generation as a whole.
    pub fn adapted(&self) -> bool {
        self.present() && self.reached && self.reseeded && self.outdated == 0
    }
}

/// The device's state in a snapshot. The counter itself is in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysGenState {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// The counter as the host left it when the generation began; 0 at boot.
    pub base: u32,
    /// How far beyond `base` the driver has to come: 1 if it was there when the generation began, else 0.
    pub step: u8,
    /// The doorbell's registers, in the order of their ports.
    pub registers: [u32; 4],
    /// The driver has reached the generation.
    pub reached: bool,
    /// The kernel's random number generator has been reseeded for it.
    pub reseeded: bool,
}

impl DeviceState for SysGenState {
    const VERSION: u16 = 1;
}

/// Called with each report of the driver that differs from the last one, and when a generation begins;
/// with the device locked.
pub type OnReport = Box<dyn Fn(DriverReport) + Send>;

/// The SGEN device.
pub struct SysGen {
    state: SysGenState,
    begun: Option<Instant>,
    report: DriverReport,
    on_report: Option<OnReport>,
}

impl std::fmt::Debug for SysGen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SysGen")
            .field("state", &self.state)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl SysGen {
    /// The device of a guest that boots; writes `counter` to its page at `gpa`, whose rest is zero already.
    /// It is 0 but for a reboot, over which the counter goes on from where it was.
    ///
    /// # Errors
    /// [`SysGenError::Address`], [`SysGenError::Memory`].
    pub fn new<M>(memory: &M, gpa: u64, counter: u32) -> Result<Self, SysGenError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let device = Self::from_state(&SysGenState {
            gpa,
            base: counter,
            step: 0,
            registers: [0; 4],
            // A guest that boots has nothing of an older generation.
            reached: true,
            reseeded: true,
        })?;
        device.store(memory, counter)?;
        Ok(device)
    }

    /// The device that was saved. Guest memory is left alone: it holds the counter.
    ///
    /// # Errors
    /// [`SysGenError::Address`].
    pub fn from_state(state: &SysGenState) -> Result<Self, SysGenError> {
        if !state.gpa.is_multiple_of(PAGE_LEN) {
            return Err(SysGenError::Address { gpa: state.gpa });
        }
        let mut device = Self {
            state: SysGenState {
                step: state.step.min(1),
                ..state.clone()
            },
            begun: None,
            report: DriverReport::default(),
            on_report: None,
        };
        device.report = device.look();
        Ok(device)
    }

    /// Has `on_report` called with each new report, and at once with the present one.
    pub fn on_report(&mut self, on_report: OnReport) {
        on_report(self.report);
        self.on_report = Some(on_report);
    }

    /// Adds one to the counter, and expects the driver to tell when it has adapted. Returns the counter.
    ///
    /// *Caller:* the VMM's one function that begins a new generation, and nobody else. *vCPUs:* not
    /// running, so that no step of the driver's is lost. The counter wraps: being noticed outweighs being
    /// ordered, and watchers compare for inequality.
    ///
    /// # Errors
    /// [`SysGenError::Memory`]; nothing has changed then.
    pub fn begin<M>(&mut self, memory: &M) -> Result<u32, SysGenError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let counter = self.counter(memory)?.wrapping_add(1);
        self.store(memory, counter)?;
        self.state.base = counter;
        self.state.step = u8::from(self.report.present());
        (self.state.reached, self.state.reseeded) = (false, false);
        self.begun = Some(Instant::now());
        self.report = DriverReport::default();
        self.update();
        Ok(counter)
    }

    /// The counter; while vCPUs run it may move at any time.
    ///
    /// # Errors
    /// [`SysGenError::Memory`].
    pub fn counter<M>(&self, memory: &M) -> Result<u32, SysGenError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let gpa = self.state.gpa;
        memory
            .load(GuestAddress(gpa), Ordering::Acquire)
            .map(u32::from_le)
            .map_err(|source| SysGenError::Memory { gpa, source })
    }

    /// What the driver has told.
    pub fn report(&self) -> DriverReport {
        self.report
    }

    /// Guest physical address of the page.
    pub fn gpa(&self) -> u64 {
        self.state.gpa
    }

    fn store<M>(&self, memory: &M, counter: u32) -> Result<(), SysGenError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let gpa = self.state.gpa;
        memory
            .store(counter.to_le(), GuestAddress(gpa), Ordering::Release)
            .map_err(|source| SysGenError::Memory { gpa, source })
    }

    /// Whether a counter value lies at or beyond the present generation, on the circle of u32.
    fn is_of_this_generation(&self, value: u32) -> bool {
        value.wrapping_sub(self.state.base).cast_signed() >= i32::from(self.state.step)
    }

    /// The report as the registers have it, with the times of the last one.
    fn look(&self) -> DriverReport {
        let [_, _, outdated, version] = self.state.registers;
        let present = version != 0;
        DriverReport {
            version,
            reached: present && self.state.reached,
            reseeded: present && self.state.reseeded,
            outdated: if present { outdated } else { 0 },
            ..self.report
        }
    }

    /// Looks at the registers, and tells if there is something new.
    fn update(&mut self) {
        let mut report = self.look();
        let now = self.begun.map(|begun| begun.elapsed());
        for (there, first) in [
            (report.reached, &mut report.reached_after),
            (report.reseeded, &mut report.reseeded_after),
        ] {
            if there && first.is_none() {
                *first = now;
            }
        }
        if report.adapted() && report.adapted_after.is_none() {
            report.adapted_after = now;
        }
        if report != std::mem::replace(&mut self.report, report)
            && let Some(on_report) = &self.on_report
        {
            on_report(report);
        }
    }

    fn write(&mut self, offset: u16, value: u32) {
        let Some(register) = self.state.registers.get_mut(usize::from(offset / 4)) else {
            return;
        };
        let before = std::mem::replace(register, value);
        let current = self.is_of_this_generation(value);
        match offset {
            REACHED => self.state.reached |= current,
            RESEEDED => self.state.reseeded |= current,
            // A driver that comes now has no watchers from before the generation.
            VERSION if before == 0 && value != 0 => self.state.step = 0,
            _ => {}
        }
        self.update();
    }
}

/// The register at `offset`, if the access is one that registers take.
fn register(offset: PioAddressOffset, len: usize) -> Option<u16> {
    (len == 4 && matches!(offset, REACHED | RESEEDED | OUTDATED | VERSION)).then_some(offset)
}

impl MutDevicePio for SysGen {
    fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let value = match register(offset, data.len()) {
            Some(VERSION) => INTERFACE_VERSION,
            Some(offset) => self.state.registers[usize::from(offset / 4)],
            None => return data.fill(0xff),
        };
        data.copy_from_slice(&value.to_le_bytes());
    }

    fn pio_write(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (Some(offset), Ok(bytes)) = (register(offset, data.len()), data.try_into()) {
            self.write(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl Persist for SysGen {
    type State = SysGenState;
    type Error = SysGenError;

    fn save(&self) -> SysGenState {
        self.state.clone()
    }

    /// Does not touch guest memory, as [`SysGen::from_state`] says. The state must be that of a device
    /// at the same address.
    fn restore(&mut self, state: &SysGenState) -> Result<(), SysGenError> {
        if state.gpa != self.state.gpa {
            return Err(SysGenError::OtherAddress {
                saved: state.gpa,
                gpa: self.state.gpa,
            });
        }
        let on_report = self.on_report.take();
        *self = Self::from_state(state)?;
        if let Some(on_report) = on_report {
            self.on_report(on_report);
        }
        Ok(())
    }
}

impl Aml for SysGen {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let page = AddressSpace::new_memory(
            AddressSpaceCacheable::Cacheable,
            true,
            self.state.gpa,
            self.state.gpa + (PAGE_LEN - 1),
            None,
        );
        let doorbell = IO::new(PORT_BASE, PORT_BASE, 1, PORT_LEN as u8);
        let crs = ResourceTemplate::new(vec![&page, &doorbell]);
        Device::new(
            "SGEN".into(),
            vec![
                &Name::new("_HID".into(), &"VMGE0001"),
                &Name::new("_CRS".into(), &crs),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
#[path = "sgen_test.rs"]
mod tests;
