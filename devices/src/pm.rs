//! The fixed-hardware power management block: PM1a events and control, the PM timer, general-purpose
//! event block 0 and the reset register (ACPI 6.5 sections 4.8.3 and 4.8.4).
//!
//! | offset | length | register |
//! |---|---|---|
//! | 0x00 | 2 | PM1 status, write 1 to clear |
//! | 0x02 | 2 | PM1 enable |
//! | 0x04 | 2 | PM1 control |
//! | 0x08 | 4 | PM timer, read only |
//! | 0x20 | 2 | GPE0 status, write 1 to clear |
//! | 0x22 | 2 | GPE0 enable |
//! | 0x30 | 1 | reset register |
//!
//! The machine is always in ACPI mode: SCI_EN is always set. The SCI is a level: it is asserted as
//! long as any event is both pending and enabled, so an event that comes before the guest has enabled
//! it waits for the guest.

mod timer;

use std::{fmt, io};

use serde::{Deserialize, Serialize};
use vm_device::{
    MutDevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vmgenie_acpi::PmPorts;

use crate::{DeviceState, InterruptLine, Persist, Restore};
use timer::Timer;

/// First I/O port of the block.
pub const PORT_BASE: u16 = 0x600;
/// Number of I/O ports of the block.
pub const PORT_LEN: u16 = 0x40;
/// GSI of the system control interrupt: level-triggered, active high.
pub const SCI_GSI: u32 = 9;
/// Number of general-purpose events: 0 to 15.
pub const GPE_COUNT: u8 = 16;
/// SLP_TYP value that, written together with SLP_EN, switches the machine off (`\_S5`).
pub const S5_SLEEP_TYPE: u8 = 5;
/// Value that, written to the reset register, resets the machine.
pub const RESET_VALUE: u8 = 1;
/// Frequency of the PM timer in Hz (section 4.8.2.1).
pub const TIMER_HZ: u64 = 3_579_545;

const PM1_STATUS: usize = 0x00;
const PM1_ENABLE: usize = 0x02;
const PM1_CONTROL: usize = 0x04;
const PM_TIMER: usize = 0x08;
const GPE0_STATUS: usize = 0x20;
const GPE0_ENABLE: usize = 0x22;
const RESET: usize = 0x30;

/// Section 4.8.3.1.1, TMR_STS; the enable bit has the same place.
const TIMER_EVENT: u16 = 1 << 0;
/// Section 4.8.3.1.1, PWRBTN_STS; the enable bit has the same place.
const POWER_BUTTON_EVENT: u16 = 1 << 8;
/// Section 4.8.3.1.2: TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN. ACPICA reads back what it has
/// enabled, and calls hardware broken that does not remember it.
const PM1_EVENTS: u16 = TIMER_EVENT | 1 << 5 | POWER_BUTTON_EVENT | 1 << 9 | 1 << 10;
/// Section 4.8.3.1.1: the events' bits, and those that interrupt nobody: BM_STS and WAK_STS.
const PM1_STATUS_BITS: u16 = PM1_EVENTS | 1 << 4 | 1 << 15;
/// Section 4.8.3.2.1.
const SCI_EN: u16 = 1 << 0;
const BM_RLD: u16 = 1 << 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP: u16 = 0b111 << SLP_TYP_SHIFT;
/// Write only: reads as 0.
const SLP_EN: u16 = 1 << 13;
/// What of PM1 control is remembered. GBL_RLS would signal a BIOS, and there is none.
const PM1_CONTROL_BITS: u16 = BM_RLD | SLP_TYP;

/// What a port outside the block, or one with nothing behind it, reads as.
const NO_REGISTER: u8 = 0xff;

/// Where the registers are, for the FADT.
pub const fn ports() -> PmPorts {
    PmPorts {
        pm1a_evt: PORT_BASE + PM1_STATUS as u16,
        pm1a_cnt: PORT_BASE + PM1_CONTROL as u16,
        pm_timer: PORT_BASE + PM_TIMER as u16,
        gpe0: PORT_BASE + GPE0_STATUS as u16,
        gpe0_len: GPE_COUNT / 8 * 2,
        reset_port: PORT_BASE + RESET as u16,
        reset_value: RESET_VALUE,
    }
}

/// Why an event could not be raised or the SCI not be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PmError {
    /// There is no such event.
    #[error("could not raise general-purpose event {gpe}: there are {GPE_COUNT}, from 0 on")]
    NoSuchGpe {
        /// The number asked for.
        gpe: u8,
    },
    /// The interrupt controller refused the SCI's level. The event itself is pending, and the next
    /// access or [`PowerManagement::sync_line`] tries again.
    #[error("could not set the system control interrupt to {asserted}")]
    Interrupt {
        /// The level that it should have.
        asserted: bool,
        /// What the interrupt line said.
        source: io::Error,
    },
}

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("could not restore {register} to {value:#06x}: only the bits {mask:#06x} exist")]
pub struct PmRestoreError {
    /// Name of the register.
    pub register: &'static str,
    /// The value in the state.
    pub value: u16,
    /// The bits that the register has.
    pub mask: u16,
}

/// What the guest asks the VMM for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Switch the machine off (`\_S5` entered).
    PowerOff,
    /// Reset the machine (reset register written).
    Reset,
}

/// A clock that never goes back and that goes on while vCPUs are paused.
pub trait MonotonicClock: Send {
    /// Nanoseconds since any fixed instant.
    fn now_ns(&self) -> u64;
}

impl<F: Fn() -> u64 + Send> MonotonicClock for F {
    fn now_ns(&self) -> u64 {
        self()
    }
}

/// Told what the guest asks for; called with the device's lock held, so must not call back into it.
pub type PowerRequestHandler = Box<dyn Fn(PowerRequest) + Send>;

/// Told when the next timer edge is (as [`PowerManagement::next_timer_edge`] says it) each time that
/// the guest changes it; called with the device's lock held, so must not call back into it.
pub type TimerHandler = Box<dyn Fn(Option<u64>) + Send>;

/// The registers' values in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerManagementState {
    /// PM1 status: pending events.
    pub pm1_status: u16,
    /// PM1 enable.
    pub pm1_enable: u16,
    /// PM1 control, without SCI_EN and the bits that can only be written.
    pub pm1_control: u16,
    /// GPE0 status: pending general-purpose events, one bit each.
    pub gpe_status: u16,
    /// GPE0 enable.
    pub gpe_enable: u16,
    /// Age of the PM timer in nanoseconds.
    pub timer_ns: u64,
}

impl DeviceState for PowerManagementState {
    const VERSION: u16 = 1;
}

/// The power management block.
pub struct PowerManagement {
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    timer: Timer,
    line: Box<dyn InterruptLine>,
    /// The level that the line was last set to; `None` when that is not known (after a restore).
    line_level: Option<bool>,
    line_errors: u64,
    last_line_error: Option<io::Error>,
    on_request: PowerRequestHandler,
    on_timer_change: Option<TimerHandler>,
}

impl fmt::Debug for PowerManagement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerManagement")
            .field("state", &self.save())
            .field("line_level", &self.line_level)
            .field("line_errors", &self.line_errors)
            .finish_non_exhaustive()
    }
}

impl PowerManagement {
    /// A block as after power-on: nothing pending, nothing enabled, the timer at 0.
    ///
    /// `sci` is the line to [`SCI_GSI`]; `on_request` hears of power-off and reset.
    pub fn new(
        sci: impl InterruptLine + 'static,
        clock: impl MonotonicClock + 'static,
        on_request: PowerRequestHandler,
    ) -> Self {
        Self {
            pm1_status: 0,
            pm1_enable: 0,
            pm1_control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            timer: Timer::new(Box::new(clock)),
            line: Box::new(sci),
            line_level: Some(false),
            line_errors: 0,
            last_line_error: None,
            on_request,
            on_timer_change: None,
        }
    }

    /// Has `handler` called each time that the guest changes when the next timer edge is due. For a
    /// VMM that arms a host timer only then; after a restore it asks [`Self::next_timer_edge`] once.
    pub fn on_timer_change(&mut self, handler: TimerHandler) {
        self.on_timer_change = Some(handler);
    }

    /// Makes general-purpose event `gpe` pending, and asserts the SCI if the guest has enabled it.
    ///
    /// An event that the guest has not enabled yet stays pending until it does. *After a restore:* only
    /// when the interrupt controllers have their state.
    ///
    /// # Errors
    /// [`PmError::NoSuchGpe`], [`PmError::Interrupt`] (the event is pending nevertheless).
    pub fn raise_gpe(&mut self, gpe: u8) -> Result<(), PmError> {
        if gpe >= GPE_COUNT {
            return Err(PmError::NoSuchGpe { gpe });
        }
        self.gpe_status |= 1 << gpe;
        self.tick()
    }

    /// Presses the fixed power button (section 4.8.2.2.1.1), and asserts the SCI if the guest has enabled its event.
    ///
    /// # Errors
    /// [`PmError::Interrupt`] (the event is pending nevertheless).
    pub fn press_power_button(&mut self) -> Result<(), PmError> {
        self.pm1_status |= POWER_BUTTON_EVENT;
        self.tick()
    }

    /// Whether general-purpose event `gpe` is pending: raised, and not cleared by the guest yet.
    pub fn is_gpe_pending(&self, gpe: u8) -> bool {
        gpe < GPE_COUNT && self.gpe_status & 1 << gpe != 0
    }

    /// Sets the SCI to the level that the registers call for, whatever it was set to before.
    ///
    /// *Caller:* the restore code, when the interrupt controllers have their state. *vCPUs:* not
    /// running. *Afterwards:* what was pending and enabled when the state was saved interrupts the guest.
    ///
    /// # Errors
    /// [`PmError::Interrupt`].
    pub fn sync_line(&mut self) -> Result<(), PmError> {
        self.line_level = None;
        self.tick()
    }

    /// Looks at the clock, and raises the timer event if it is due. Every access by the guest does
    /// the same.
    ///
    /// # Errors
    /// [`PmError::Interrupt`].
    pub fn tick(&mut self) -> Result<(), PmError> {
        if self.timer.take_edge() {
            self.pm1_status |= TIMER_EVENT;
        }
        let asserted = self.sci_wanted();
        if self.line_level != Some(asserted) {
            self.line
                .set_level(asserted)
                .map_err(|source| PmError::Interrupt { asserted, source })?;
            self.line_level = Some(asserted);
        }
        Ok(())
    }

    /// When [`Self::tick`] has to be called for the guest to get its timer interrupt, in the clock's
    /// nanoseconds; `None` while the guest wants none (or has one pending that it has not cleared), and
    /// while the timer stands still.
    pub fn next_timer_edge(&self) -> Option<u64> {
        let wanted = self.pm1_enable & TIMER_EVENT != 0 && self.pm1_status & TIMER_EVENT == 0;
        (wanted && self.timer.runs()).then(|| self.timer.next_edge_ns())
    }

    /// Has the timer stand still while the machine does, or go on from where it stood. Nothing happens to a
    /// timer that does so already.
    ///
    /// *Caller:* whoever stops the vCPUs and lets them run. *vCPUs:* not running.
    pub fn let_timer_run(&mut self, run: bool) {
        if run == self.timer.runs() {
            return;
        }
        self.timer.let_run(run);
        if let Some(on_timer_change) = &self.on_timer_change {
            on_timer_change(self.next_timer_edge());
        }
    }

    /// How often setting the SCI failed during an access by the guest, which cannot be told.
    pub fn line_errors(&self) -> u64 {
        self.line_errors
    }

    /// The last error counted in [`Self::line_errors`].
    pub fn last_line_error(&self) -> Option<&io::Error> {
        self.last_line_error.as_ref()
    }

    /// Section 4.8.3: the SCI is the OR of all events that are pending and enabled.
    fn sci_wanted(&self) -> bool {
        self.pm1_status & self.pm1_enable & PM1_EVENTS != 0
            || self.gpe_status & self.gpe_enable != 0
    }

    /// [`Self::tick`] on behalf of the guest.
    fn tick_for_guest(&mut self) {
        if let Err(PmError::Interrupt { source, .. }) = self.tick() {
            self.line_errors = self.line_errors.saturating_add(1);
            self.last_line_error = Some(source);
        }
    }

    /// All registers as the guest reads them, so that no access sees a timer of two instants.
    fn registers(&self) -> [u8; PORT_LEN as usize] {
        let mut file = [0; PORT_LEN as usize];
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(PM1_STATUS, &self.pm1_status.to_le_bytes());
        put(PM1_ENABLE, &self.pm1_enable.to_le_bytes());
        put(PM1_CONTROL, &(self.pm1_control | SCI_EN).to_le_bytes());
        put(PM_TIMER, &self.timer.value().to_le_bytes());
        put(GPE0_STATUS, &self.gpe_status.to_le_bytes());
        put(GPE0_ENABLE, &self.gpe_enable.to_le_bytes());
        file
    }

    /// Takes one byte of a write; says what it asks the VMM for. Section 4.8.3.2.1 has SLP_TYP and
    /// SLP_EN in the same byte, so no register needs more than a byte at a time.
    fn write_byte(&mut self, offset: usize, byte: u8) -> Option<PowerRequest> {
        // A register's second byte is its high one.
        let shift = if offset.is_multiple_of(2) { 0 } else { 8 };
        let value = u16::from(byte) << shift;
        let replace = |old: u16, mask: u16| (old & !(0xff << shift)) | value & mask;
        match offset & !1 {
            PM1_STATUS => self.pm1_status &= !value,
            PM1_ENABLE => self.pm1_enable = replace(self.pm1_enable, PM1_EVENTS),
            PM1_CONTROL => {
                self.pm1_control = replace(self.pm1_control, PM1_CONTROL_BITS);
                let sleep_type = (self.pm1_control & SLP_TYP) >> SLP_TYP_SHIFT;
                if value & SLP_EN != 0 && sleep_type == u16::from(S5_SLEEP_TYPE) {
                    return Some(PowerRequest::PowerOff);
                }
            }
            GPE0_STATUS => self.gpe_status &= !value,
            GPE0_ENABLE => self.gpe_enable = replace(self.gpe_enable, u16::MAX),
            _ if offset == RESET && byte == RESET_VALUE => return Some(PowerRequest::Reset),
            // The timer can only be read, the rest is reserved.
            _ => {}
        }
        None
    }
}

impl MutDevicePio for PowerManagement {
    fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.tick_for_guest();
        let registers = self.registers();
        let from = registers.get(usize::from(offset)..).unwrap_or_default();
        let known = from.len().min(data.len());
        data[..known].copy_from_slice(&from[..known]);
        data[known..].fill(NO_REGISTER);
    }

    fn pio_write(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.tick_for_guest();
        let edge_before = self.next_timer_edge();
        let mut request = None;
        for (offset, &byte) in (usize::from(offset)..usize::from(PORT_LEN)).zip(data) {
            request = self.write_byte(offset, byte).or(request);
        }
        self.tick_for_guest();
        let edge = self.next_timer_edge();
        if edge != edge_before
            && let Some(on_timer_change) = &self.on_timer_change
        {
            on_timer_change(edge);
        }
        if let Some(request) = request {
            (self.on_request)(request);
        }
    }
}

impl Persist for PowerManagement {
    type State = PowerManagementState;

    fn save(&self) -> PowerManagementState {
        let timer = if self.timer.edge_is_due() {
            TIMER_EVENT
        } else {
            0
        };
        PowerManagementState {
            pm1_status: self.pm1_status | timer,
            pm1_enable: self.pm1_enable,
            pm1_control: self.pm1_control,
            gpe_status: self.gpe_status,
            gpe_enable: self.gpe_enable,
            timer_ns: self.timer.age_ns(),
        }
    }
}

impl Restore for PowerManagement {
    type Error = PmRestoreError;

    fn restore(&mut self, state: &PowerManagementState) -> Result<(), PmRestoreError> {
        let check = |register, value: u16, mask: u16| match value & !mask {
            0 => Ok(()),
            _ => Err(PmRestoreError {
                register,
                value,
                mask,
            }),
        };
        check("PM1 status", state.pm1_status, PM1_STATUS_BITS)?;
        check("PM1 enable", state.pm1_enable, PM1_EVENTS)?;
        check("PM1 control", state.pm1_control, PM1_CONTROL_BITS)?;
        self.pm1_status = state.pm1_status;
        self.pm1_enable = state.pm1_enable;
        self.pm1_control = state.pm1_control;
        self.gpe_status = state.gpe_status;
        self.gpe_enable = state.gpe_enable;
        self.timer.set_age(state.timer_ns);
        self.line_level = None;
        Ok(())
    }
}

#[cfg(test)]
#[path = "pm_test.rs"]
mod tests;
