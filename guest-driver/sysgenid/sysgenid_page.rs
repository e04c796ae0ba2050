// SPDX-License-Identifier: GPL-2.0

//! SGEN, the device of vmgenie's that keeps the counter: a page that the hypervisor adds one to
//! while no vCPU runs, and ports by which it is told how far the guest has come.

use crate::{
    sysgenid_acpi::{AcpiDevice, Mapping},
    sysgenid_backend::Report,
    sysgenid_settle::Answer,
};
use core::arch::asm;
use kernel::{
    page,
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic,
    },
};

/// Its `_HID`.
const SGEN: &[&CStr] = &[c"VMGE0001"];

/// Registers, as offsets of ports. All take 32 bits.
const REACHED: u16 = 0x0;
const RESEEDED: u16 = 0x4;
const OUTDATED: u16 = 0x8;
const VERSION: u16 = 0xc;
/// Number of ports that every such device has.
const PORTS: u64 = 0x10;
/// Those that only newer ones have, as FEATURES says.
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

/// The version of the device's interface. It never changes: what is new has a bit in FEATURES.
const INTERFACE: u32 = 1;
/// The hypervisor may ask for a fork point: REQUEST, LIMIT, FORK and ABORT.
const HAS_FORK: u32 = 1 << 0;
/// It offers random bits.
const HAS_SEED: u32 = 1 << 1;
/// The hypervisor offers its time.
const HAS_REALTIME: u32 = 1 << 2;
/// READY, CHAIN and REQUIRED.
const HAS_READY: u32 = 1 << 3;
/// The machine may ask for a snapshot of itself: ASK.
const HAS_ASK: u32 = 1 << 4;

/// Whether this kernel can stand still. Where spinlocks sleep, one may be held by a task that is
/// preempted, so that nothing can be reseeded before that goes on.
pub(crate) const CAN_STAND: bool = cfg!(not(CONFIG_PREEMPT_RT));

/// An answer to a request, without what belongs to a kind of it.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    /// It is known; an agent has it, or not.
    Known { agent: bool },
    /// It is refused, for a reason of `include/uapi/linux/sysgenid.h`.
    Refused(u32),
    /// All is done that comes before the stop, by flags of the same.
    Quiesced(u32),
    /// No request's: the machine is another one to its neighbours, in the generation whose counter
    /// stands in the ticket's place.
    Identity,
}

/// What has become of what was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The hypervisor has not decided.
    Waits,
    /// This request is the answer.
    Granted(u32),
    /// It is refused.
    Refused,
    /// That request is over, or it was not this machine that has asked.
    Over,
}

/// 32 bytes of the hypervisor's generator.
pub(crate) type Seed = [u8; 32];

/// The device, which is told that there is a driver until this is dropped.
pub(crate) struct CounterPage {
    start: u64,
    mapping: Mapping,
    ports: u16,
    /// Whether there is a register FEATURES.
    newer: bool,
    /// Whether there are READY, CHAIN and REQUIRED.
    has_ready: bool,
    /// What was told of watchers and agents; only accessed by `report()`, whose callers take turns.
    outdated: Atomic<u32>,
    required: Atomic<u32>,
    ready: Atomic<u32>,
    _device: AcpiDevice,
}

impl CounterPage {
    /// The device, if there is one that we know how to use.
    pub(crate) fn find() -> Option<Self> {
        let device = AcpiDevice::find(SGEN)?;
        Self::new(device)
            .inspect_err(|error| {
                pr_warn!("the hypervisor's counter page is not used: {error:?}\n");
            })
            .ok()
    }

    /// The same device, for its notifications.
    pub(crate) fn device() -> Option<AcpiDevice> {
        AcpiDevice::find(SGEN)
    }

    fn new(device: AcpiDevice) -> Result<Self> {
        let (start, length) = device.memory().ok_or(ENODEV)?;
        let (ports, count) = device.ports().ok_or(ENODEV)?;
        if start % page::PAGE_SIZE as u64 != 0 || length < page::PAGE_SIZE as u64 || count < PORTS {
            return Err(EINVAL);
        }
        let mut this = Self {
            start,
            mapping: Mapping::new(start, page::PAGE_SIZE)?,
            ports: ports.try_into().map_err(|_| EINVAL)?,
            newer: count > u64::from(FEATURES),
            has_ready: false,
            outdated: Atomic::new(0),
            required: Atomic::new(0),
            ready: Atomic::new(0),
            _device: device,
        };
        match this.read(VERSION) {
            INTERFACE => {
                // A machine that uses these is not restored by a hypervisor that lacks them.
                this.has_ready = this.has(HAS_READY);
                Ok(this)
            }
            other => {
                pr_warn!("interface version {other} of the counter page is not known\n");
                Err(EPROTO)
            }
        }
    }

    /// The counter.
    pub(crate) fn word(&self) -> *mut u32 {
        self.mapping.as_ptr().cast()
    }

    /// The page's frame.
    pub(crate) fn frame(&self) -> usize {
        (self.start >> page::PAGE_SHIFT) as usize
    }

    /// Tells the hypervisor that there is a driver, and what it uses. Then the hypervisor expects
    /// nothing of before: a driver that has just come owes it no step beyond its counter.
    pub(crate) fn hello(&self) {
        self.write(VERSION, 0);
        let mut used = 0;
        if self.has_ready {
            used |= HAS_READY;
        }
        if self.has_fork_point() {
            used |= HAS_FORK;
        }
        if used != 0 {
            self.write(FEATURES, used);
        }
        self.write(VERSION, INTERFACE);
    }

    /// Whether the hypervisor may ask for a fork point, and this kernel can do it.
    pub(crate) fn has_fork_point(&self) -> bool {
        CAN_STAND && self.has(HAS_FORK)
    }

    /// The request of the hypervisor's, and the milliseconds that are left for it. None if there
    /// is none.
    pub(crate) fn request(&self) -> Option<(u32, u32)> {
        if !self.has(HAS_FORK) {
            return None;
        }
        match self.read(REQUEST) {
            0 | u32::MAX => None,
            ticket => Some((ticket, self.read(LIMIT))),
        }
    }

    /// Answers a request.
    pub(crate) fn reply(&self, ticket: u32, reply: Reply) {
        let (state, detail) = match reply {
            Reply::Known { agent } => (1, agent.into()),
            Reply::Refused(reason) => (2, reason),
            Reply::Quiesced(flags) => (3, flags),
            Reply::Identity => (4, 0),
        };
        self.write(REQUEST, state << 24 | (detail & 0xff) << 16 | ticket & 0xffff);
    }

    /// Whether a program of this machine may ask for a snapshot of it, and this kernel can do it.
    pub(crate) fn may_ask(&self) -> bool {
        CAN_STAND && self.has(HAS_FORK | HAS_ASK)
    }

    /// Asks for a snapshot of the machine; 0: not any more.
    pub(crate) fn ask(&self, tag: u32) {
        self.write(ASK, tag);
    }

    /// What has become of that.
    pub(crate) fn asked(&self) -> Asked {
        // In this order: a request that is there while the other one says "asked" is the answer.
        let ticket = self.read(REQUEST);
        match (self.read(ASK), ticket) {
            (0, _) => Asked::Over,
            (1, 0) => Asked::Waits,
            (1, ticket) => Asked::Granted(ticket),
            // Refused, or a hypervisor that lets nobody ask has restored the machine.
            _ => Asked::Refused,
        }
    }

    /// Tells that all CPUs stand still, as the request `ticket` asks for.
    pub(crate) fn stand(&self, ticket: u32) {
        self.write(FORK, ticket);
    }

    /// What the hypervisor says to that.
    pub(crate) fn answer(&self) -> Answer {
        match self.read(FORK) {
            0 => Answer::Pending,
            1 => Answer::Original,
            2 => Answer::Clone,
            3 => Answer::Aborted,
            _ => Answer::Unknown,
        }
    }

    /// Tells that nobody waits for it any more.
    pub(crate) fn give_up(&self, ticket: u32) {
        self.write(ABORT, ticket);
    }

    /// Fresh bits of the hypervisor's generator, which no snapshot has.
    pub(crate) fn seed(&self) -> Option<Seed> {
        if !self.has(HAS_SEED) {
            return None;
        }
        let mut seed = Seed::default();
        for word in seed.chunks_exact_mut(4) {
            word.copy_from_slice(&self.read(SEED).to_ne_bytes());
        }
        Some(seed)
    }

    /// Tells the hypervisor that there is no driver any more.
    pub(crate) fn goodbye(&self) {
        self.write(VERSION, 0);
    }

    /// Tells the hypervisor what is new. Callers take turns.
    ///
    /// `reseeded`: the kernel's random number generator has been reseeded in this generation of the
    /// hypervisor's; `chained`: the kernel's own have heard of it.
    pub(crate) fn report(&self, report: &Report, reseeded: bool, chained: bool) {
        let counter = report.counter;
        if report.event == Report::REGISTERED {
            self.hello();
        }
        let began = matches!(report.event, Report::BEGAN | Report::REGISTERED);
        if began {
            self.ready.store(0, Relaxed);
            if reseeded {
                self.reseeded(counter);
            }
            if chained {
                self.chain(counter);
            }
        }
        self.report_watchers(report, began);
        if began {
            self.write(REACHED, counter);
        }
        if self.has_ready {
            // Each write is one more agent.
            for _ in self.ready.load(Relaxed)..report.ready {
                self.write(READY, counter);
            }
            self.ready.store(report.ready, Relaxed);
        }
    }

    /// Each write is an exit from the machine: only what is new, unless it is `all`.
    fn report_watchers(&self, report: &Report, all: bool) {
        let Report { outdated, required, .. } = *report;
        if all || outdated != self.outdated.load(Relaxed) {
            self.outdated.store(outdated, Relaxed);
            self.write(OUTDATED, outdated);
        }
        if self.has_ready && (all || required != self.required.load(Relaxed)) {
            self.required.store(required, Relaxed);
            self.write(REQUIRED, required);
        }
    }

    /// Tells that the kernel's random number generator has been reseeded for `counter`.
    pub(crate) fn reseeded(&self, counter: u32) {
        self.write(RESEEDED, counter);
    }

    /// Tells that those of the kernel who want to hear of a fork have heard of that which `counter`
    /// stands for.
    pub(crate) fn chain(&self, counter: u32) {
        if self.has_ready {
            self.write(CHAIN, counter);
        }
    }

    /// Whether that has been told already, by whatever driver was there before.
    pub(crate) fn knows_chain(&self, counter: u32) -> bool {
        !self.has_ready || self.read(CHAIN) == counter
    }

    /// Whether the device has what the bits of FEATURES stand for. That may change when the machine
    /// is restored, so that it is looked at before each use.
    fn has(&self, features: u32) -> bool {
        if !self.newer {
            return false;
        }
        match self.read(FEATURES) {
            u32::MAX => false,
            there => there & features == features,
        }
    }

    /// The hypervisor's CLOCK_REALTIME in nanoseconds, if it offers it.
    #[allow(dead_code)]
    pub(crate) fn realtime(&self) -> Option<u64> {
        if !self.has(HAS_REALTIME) {
            return None;
        }
        // In this order: the low half latches the high one.
        let low = u64::from(self.read(REALTIME_LOW));
        let now = u64::from(self.read(REALTIME_HIGH)) << 32 | low;
        // A restore may have come in between, by a hypervisor that does not offer it.
        self.has(HAS_REALTIME).then_some(now)
    }

    fn write(&self, register: u16, value: u32) {
        // SAFETY: The ports are those of the device's.
        unsafe {
            asm!(
                "out dx, eax",
                in("dx") self.ports + register,
                in("eax") value,
                options(nostack, preserves_flags)
            )
        };
    }

    fn read(&self, register: u16) -> u32 {
        let value;
        // SAFETY: The ports are those of the device's.
        unsafe {
            asm!(
                "in eax, dx",
                in("dx") self.ports + register,
                out("eax") value,
                options(nostack, preserves_flags)
            )
        };
        value
    }
}

impl Drop for CounterPage {
    fn drop(&mut self) {
        self.goodbye();
    }
}
