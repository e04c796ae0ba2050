//! SGEN, vmgenie's own device: the page with the guest's generation counter, and the doorbell by which
//! the guest's driver tells how far it has come with a new generation.
//!
//! The page is RAM that e820 reports as reserved; the driver lets programs map it, so that the first
//! load after a resume sees the counter which the host has moved. The counter is a little-endian u32 at
//! offset 0, the rest is zero and reserved.
//!
//! | port offset | written | read |
//! |---|---|---|
//! | 0x00 REACHED | counter value of which the driver has told its watchers | last value written |
//! | 0x04 RESEEDED | counter value for which the kernel's RNG has been reseeded | last value written |
//! | 0x08 OUTDATED | number of outdated tracked watchers | last value written |
//! | 0x0c VERSION | version of the driver's interface, 0 when it goes | 1 for ever |
//! | 0x10 FEATURES | what of the registers below the driver uses | what the device has |
//! | 0x14 REQUEST | the driver's answer to a request, or what its agent has done | the host's ticket; 0: none |
//! | 0x18 LIMIT | - | milliseconds that the host will still wait; 0: there is no request |
//! | 0x1c FORK | ticket: all CPUs stand still | 0 not decided, 1 original, 2 clone, 3 called off |
//! | 0x20 ABORT | ticket: the guest gives up; what FORK reads afterwards is final | - |
//! | 0x24 SEED | - | 32 fresh bits of the host's random number generator |
//! | 0x28 REALTIME | - | low half of the host's CLOCK_REALTIME in ns; latches the high one |
//! | 0x2c | - | high half |
//! | 0x30 READY | counter value for which one more agent has finished | last value written |
//! | 0x34 CHAIN | counter value for which the kernel's vmfork chain has run | last value written |
//! | 0x38 ASK | not 0: the guest wants a snapshot of itself, by this tag; 0: no more | 0 no, 1 asked, 2 refused |
//! | 0x3c REQUIRED | number of privileged watchers that have not adapted | last value written |
//!
//! An answer is `state << 24 | detail << 16 | low half of the ticket`:
//!
//! | state | detail |
//! |---|---|
//! | 1 heard | bit 0: an agent has the request |
//! | 2 refused | why: [`ForkRefusal`] in its order, from 1 on |
//! | 3 quiet | bit 0: hooks have run, 1: programs are frozen, 2: programs have parked |
//! | 4 identity | -; the low half is the counter's: the agent has given this machine its names |
//!
//! A driver of today lives on in snapshots, and refuses a VERSION that it does not know: what is new
//! has a bit in FEATURES instead. A device that has no FEATURES has no such port, which reads as ones.
//!
//! Registers take accesses of 32 bits; all others are ignored, and read as ones, as do registers that
//! FEATURES does not have. The guest writes what it likes there and in the page: values are compared
//! and shown, never used as sizes or addresses.

use std::sync::atomic::Ordering;
use std::time::Instant;

use acpi_tables::{
    Aml, AmlSink,
    aml::{AddressSpace, AddressSpaceCacheable, Device, IO, Name, ResourceTemplate},
};
use vm_device::{
    MutDevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmgenie_acpi::GpeNotify;

use crate::Persist;

mod fork;
mod own;
mod report;
mod state;

pub use fork::{AskError, ForkProgress, ForkRefusal, ForkStage, ForkState, Quiesced};
pub use report::{DriverReport, Lack};
pub use state::{LaterRegisters, SysGenState, SysGenStateV1, SysGenStateV2};

use fork::{ForkPoint, seed};
use own::OwnSnapshot;

/// Name of the device in the ACPI namespace.
pub const ACPI_PATH: &str = "\\_SB_.SGEN";
/// The general-purpose event that is raised when the driver shall look at the device's registers.
pub const GPE: u8 = 7;
/// What its method notifies the device of.
pub const NOTIFY_LOOK: u8 = 0x81;

/// What `\_GPE._E07` does, for the machine's description.
pub const fn gpe_notify() -> GpeNotify<'static> {
    GpeNotify {
        gpe: GPE,
        device: ACPI_PATH,
        value: NOTIFY_LOOK,
    }
}

/// First I/O port of the doorbell.
pub const PORT_BASE: u16 = 0x640;
/// Number of I/O ports of the doorbell.
pub const PORT_LEN: u16 = 0x40;
/// Version of the device's interface, as the guest reads it. It never changes.
pub const INTERFACE_VERSION: u32 = 1;
/// Length of the counter's page in bytes.
pub const PAGE_LEN: u64 = 4096;

const REACHED: u16 = 0x0;
const RESEEDED: u16 = 0x4;
const OUTDATED: u16 = 0x8;
const VERSION: u16 = 0xc;
const FEATURES: u16 = 0x10;
const REQUEST: u16 = 0x14;
const LIMIT: u16 = 0x18;
const FORK: u16 = 0x1c;
const ABORT: u16 = 0x20;
const SEED: u16 = 0x24;
const REALTIME_LOW: u16 = 0x28;
const REALTIME_HIGH: u16 = 0x2c;
const READY: u16 = 0x30;
const CHAIN: u16 = 0x34;
const ASK: u16 = 0x38;
const REQUIRED: u16 = 0x3c;

/// FEATURES: REQUEST, LIMIT, FORK and ABORT. A driver that uses them can have its guest forked.
pub const FEATURE_FORK: u32 = 1 << 0;
/// FEATURES: SEED.
pub const FEATURE_SEED: u32 = 1 << 1;
/// FEATURES: REALTIME is offered.
pub const FEATURE_REALTIME: u32 = 1 << 2;
/// FEATURES: READY, CHAIN and REQUIRED.
pub const FEATURE_READY: u32 = 1 << 3;
/// FEATURES: the guest may ask for snapshots of itself, by ASK.
pub const FEATURE_SELF: u32 = 1 << 4;

/// Why the counter could not be placed, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysGenError {
    /// The page is not a page.
    #[error("could not place the generation counter at gpa {gpa:#x}: it needs a whole page")]
    Address {
        /// The guest physical address.
        gpa: u64,
    },
    /// Guest memory could not be reached.
    #[error("could not reach the generation counter in guest memory at gpa {gpa:#x}")]
    Memory {
        /// The guest physical address.
        gpa: u64,
        /// What the guest memory said.
        source: GuestMemoryError,
    },
}

/// Called with each report of the driver that differs from the last one, and when a generation begins;
/// with the device locked.
pub type OnReport = Box<dyn Fn(DriverReport) + Send>;

/// Called when a request for a fork point has come further; with the device locked.
pub type OnFork = Box<dyn Fn() + Send>;

/// Nanoseconds of the host's CLOCK_REALTIME.
pub type RealtimeClock = fn() -> u64;

/// The SGEN device.
pub struct SysGen {
    state: SysGenState,
    begun: Option<Instant>,
    report: DriverReport,
    on_report: Option<OnReport>,
    realtime: Option<RealtimeClock>,
    fork: ForkPoint,
    on_fork: Option<OnFork>,
    own: OwnSnapshot,
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
            later: LaterRegisters {
                chain: true,
                // So that a driver knows that there was no fork before it came.
                chain_counter: counter,
                ..LaterRegisters::default()
            },
            identity: false,
            fork: ForkState::default(),
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
            realtime: None,
            fork: ForkPoint::from_state(state.fork),
            on_fork: None,
            own: OwnSnapshot::default(),
        };
        device.report = device.look();
        Ok(device)
    }

    /// Has `on_report` called with each new report, and at once with the present one.
    pub fn on_report(&mut self, on_report: OnReport) {
        on_report(self.report);
        self.on_report = Some(on_report);
    }

    /// Offers the guest the host's time from `clock` on, or no more. A device that was made or restored
    /// offers none. The driver looks at FEATURES before each use, so this may change at any time.
    pub fn offer_realtime(&mut self, clock: Option<RealtimeClock>) {
        self.realtime = clock;
    }

    /// Whether the guest is offered the host's time.
    pub fn offers_realtime(&self) -> bool {
        self.realtime.is_some()
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
        (self.state.later.chain, self.state.later.ready) = (false, 0);
        self.state.identity = false;
        // Whoever stands still at a fork point is another machine from now on.
        if self.fork.answer(ForkStage::Clone) {
            self.tell_of_fork();
        }
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
        let SysGenState {
            registers: [_, _, outdated, version],
            reached,
            reseeded,
            ref later,
            ..
        } = self.state;
        // Without a driver the machine is expected to have its agents again, and nothing else is known.
        if version == 0 {
            return DriverReport {
                agents: later.agents,
                ..DriverReport::default()
            };
        }
        let tells = later.features & FEATURE_READY != 0;
        DriverReport {
            version,
            reached,
            reseeded,
            chain: tells.then_some(later.chain),
            outdated,
            required: if tells { later.required } else { outdated },
            ready: later.ready,
            agents: later.agents,
            identity: self.state.identity,
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
        let current = self.is_of_this_generation(value);
        let state = &mut self.state;
        if let Some(register) = state.registers.get_mut(usize::from(offset / 4)) {
            let before = std::mem::replace(register, value);
            match offset {
                REACHED => state.reached |= current,
                RESEEDED => state.reseeded |= current,
                // A driver that comes now has no watchers from before the generation, and its agents
                // have told it nothing.
                VERSION if before == 0 && value != 0 => {
                    (state.step, state.later.ready, state.identity) = (0, 0, false);
                }
                // The next driver may be an older one, and nobody answers a request any more.
                VERSION if value == 0 => {
                    state.later.features = 0;
                    self.driver_went();
                    return self.update();
                }
                _ => {}
            }
        }
        let later = &mut state.later;
        match offset {
            FEATURES => later.features = value & (FEATURE_FORK | FEATURE_READY),
            REQUEST | FORK | ABORT => self.write_fork(offset, value),
            ASK => self.write_ask(value),
            CHAIN => {
                later.chain_counter = value;
                later.chain |= current;
            }
            READY => {
                // The guest has begun a generation by itself, and its agents begin anew.
                if current && value != later.ready_counter {
                    later.ready = 0;
                }
                later.ready_counter = value;
                later.ready = later.ready.saturating_add(u32::from(current));
                later.agents = later.agents.max(later.ready);
            }
            REQUIRED => later.required = value,
            _ => {}
        }
        self.update();
    }

    fn read(&mut self, offset: u16) -> u32 {
        const UNKNOWN: u32 = u32::MAX;
        const FEATURES_ALWAYS: u32 = FEATURE_FORK | FEATURE_SEED | FEATURE_READY;
        let later = &mut self.state.later;
        match (offset, self.realtime) {
            (REACHED | RESEEDED | OUTDATED, _) => self.state.registers[usize::from(offset / 4)],
            (VERSION, _) => INTERFACE_VERSION,
            (FEATURES, clock) => {
                let realtime = clock.map_or(0, |_| FEATURE_REALTIME);
                FEATURES_ALWAYS | realtime | self.own.features()
            }
            (REQUEST, _) => self.fork.request(),
            (LIMIT, _) => self.fork.limit(),
            (FORK, _) => self.fork.who(),
            (SEED, _) => seed(),
            (REALTIME_LOW, Some(clock)) => {
                let now = clock();
                later.realtime_high = (now >> 32) as u32;
                now as u32
            }
            (REALTIME_HIGH, Some(_)) => later.realtime_high,
            (READY, _) => later.ready_counter,
            (CHAIN, _) => later.chain_counter,
            (ASK, _) => self.own.read(self.fork.is_open()).unwrap_or(UNKNOWN),
            (REQUIRED, _) => later.required,
            _ => UNKNOWN,
        }
    }
}

impl MutDevicePio for SysGen {
    fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        match data.len() {
            4 => data.copy_from_slice(&self.read(offset).to_le_bytes()),
            _ => data.fill(0xff),
        }
    }

    fn pio_write(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let Ok(bytes) = data.try_into()
            && offset.is_multiple_of(4)
        {
            self.write(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl Persist for SysGen {
    type State = SysGenState;

    fn save(&self) -> SysGenState {
        SysGenState {
            fork: self.fork.save(),
            ..self.state.clone()
        }
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
