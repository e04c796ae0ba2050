//! The one function that begins a new generation, and the devices that make it known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vmgenie_devices::Persist;
use vmgenie_devices::pm::{PmError, PowerManagement};
use vmgenie_devices::sgen::{self, SysGen, SysGenError};
use vmgenie_devices::vmclock::{self, VmClock, VmClockError, VmClockState};
use vmgenie_devices::vmgenid::{self, VmGenId, VmGenIdError, VmGenIdState};

use crate::Standstill;
use crate::layout;
use crate::memory::GuestMemory;

/// Why a new generation could not be begun. The vCPUs must not run before another attempt has succeeded.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// The ID.
    #[error("could not write a new generation ID")]
    Id(#[from] VmGenIdError),
    /// The counter.
    #[error("could not move the generation counter")]
    Counter(#[from] SysGenError),
    /// VMClock.
    #[error("could not tell of a new generation by VMClock")]
    Clock(#[from] VmClockError),
    /// The event.
    #[error("could not raise the general-purpose events of a new generation")]
    Event(#[from] PmError),
    /// The vCPUs.
    #[error("could not stop the vCPUs for a new generation")]
    Running(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What makes a generation known to the guest.
#[derive(Debug)]
pub(crate) struct GenerationDevices {
    /// The ID.
    pub(crate) vmgenid: VmGenId,
    /// The counter and the doorbell, which is on the bus.
    pub(crate) sysgen: Arc<Mutex<SysGen>>,
    /// The clock page.
    pub(crate) vmclock: VmClock,
}

/// The generation that a machine which boots again keeps.
#[derive(Debug)]
pub struct LastGeneration {
    vmgenid: VmGenIdState,
    vmclock: VmClockState,
    counter: u32,
}

impl GenerationDevices {
    /// The devices of a machine that boots: in a generation of its own, or at a reboot in the one that it had.
    pub(crate) fn boot(
        memory: &GuestMemory,
        memory_bytes: u64,
        last: Option<&LastGeneration>,
    ) -> Result<Self, GenerationError> {
        let (vmgenid, vmclock) = match last {
            Some(last) => {
                let vmgenid = VmGenId::from_state(&last.vmgenid)?;
                vmgenid.write_to(memory)?;
                let vmclock = VmClock::from_state(&last.vmclock)?;
                vmclock.write_to(memory)?;
                (vmgenid, vmclock)
            }
            None => (
                VmGenId::new(memory, layout::generation_id(memory_bytes).0)?,
                VmClock::new(memory, layout::vmclock(memory_bytes).0)?,
            ),
        };
        let page = layout::generation_counter(memory_bytes).0;
        let sysgen = SysGen::new(memory, page, last.map_or(0, |last| last.counter))?;
        Ok(Self::new(vmgenid, sysgen, vmclock))
    }

    /// Devices in any state.
    pub(crate) fn new(vmgenid: VmGenId, sysgen: SysGen, vmclock: VmClock) -> Self {
        Self {
            vmgenid,
            sysgen: Arc::new(Mutex::new(sysgen)),
            vmclock,
        }
    }

    /// The counter and the doorbell.
    pub(crate) fn sysgen(&self) -> MutexGuard<'_, SysGen> {
        self.sysgen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a machine that boots again keeps. The counter goes on from where the guest has left it.
    pub(crate) fn last(&self, memory: &GuestMemory) -> Result<LastGeneration, SysGenError> {
        Ok(LastGeneration {
            vmgenid: self.vmgenid.save(),
            vmclock: self.vmclock.save(),
            counter: self.sysgen().counter(memory)?,
        })
    }

    /// A restore that keeps the generation. No event of it. The memory file holds the ID already, unless the guest has written there;
    /// the guest's clock has been disrupted.
    pub(crate) fn keep(
        &mut self,
        _standstill: Standstill<'_>,
        memory: &GuestMemory,
    ) -> Result<(), GenerationError> {
        self.vmgenid.write_to(memory)?;
        Ok(self.vmclock.disrupt(memory)?)
    }
}

/// Has the guest's driver look at the registers of SGEN: its clock is late, or a fork point is asked for or called off. A guest that has not enabled the event, or has tables of
/// an earlier version, does not.
pub(crate) fn tell_driver(pm: &Mutex<PowerManagement>) -> Result<(), PmError> {
    let mut pm = pm.lock().unwrap_or_else(PoisonError::into_inner);
    pm.raise_gpe(sgen::GPE)
}

/// Begins a new generation: ID, counter and clock page in guest memory, then the events that tell the guest.
///
/// *Caller:* restore, and `PUT /generation`; nobody else changes the generation of a machine. *vCPUs:* not running, which
/// `standstill` proves, so that no guest instruction sees the events without the ID, and no step of the driver's with the counter is
/// lost. *Interrupt controllers and devices:* have their state; it would overwrite the events otherwise. *Afterwards:* the events
/// are pending. A guest that has enabled them is interrupted at its first instruction; one that has not is told when it does.
/// A guest that maps the counter sees the generation with its first load.
pub(crate) fn begin(
    _standstill: Standstill<'_>,
    memory: &GuestMemory,
    devices: &mut GenerationDevices,
    pm: &Arc<Mutex<PowerManagement>>,
) -> Result<(), GenerationError> {
    let id = devices.vmgenid.regenerate(memory)?;
    let counter = devices.sysgen().begin(memory)?;
    devices.vmclock.begin(memory)?;
    if !hold::events_are_held(pm) {
        raise(pm)?;
    }
    tracing::info!(id = %id.to_guid(), changes = devices.vmgenid.changes(), counter, "a new generation begins");
    Ok(())
}

/// Raises the events of a new generation. Both are one interrupt.
fn raise(pm: &Mutex<PowerManagement>) -> Result<(), PmError> {
    let mut pm = pm.lock().unwrap_or_else(PoisonError::into_inner);
    pm.raise_gpe(vmgenid::GPE)?;
    pm.raise_gpe(vmclock::GPE)
}

/// For tests alone: `VMGENIE_HOLD_EVENTS=5000` in the environment has the events of each new generation come 5,000 ms late, so that
/// a test can see what a guest knows without them. A snapshot that is taken meanwhile does not hold them.
#[cfg(feature = "fault-injection")]
mod hold {
    use super::{Arc, Mutex, PowerManagement, raise};
    use std::time::Duration;

    pub(super) fn events_are_held(pm: &Arc<Mutex<PowerManagement>>) -> bool {
        let wanted = std::env::var("VMGENIE_HOLD_EVENTS").ok();
        let Some(ms) = wanted.and_then(|ms| ms.parse().ok()) else {
            return false;
        };
        let pm = Arc::downgrade(pm);
        let late = std::thread::Builder::new().name("hold".to_owned());
        let started = late.spawn(move || {
            std::thread::sleep(Duration::from_millis(ms));
            if let Some(pm) = pm.upgrade()
                && let Err(error) = raise(&pm)
            {
                tracing::error!(%error, "the events that were held back");
            }
        });
        started.is_ok()
    }
}

/// Without fault injection no event is held.
#[cfg(not(feature = "fault-injection"))]
mod hold {
    use super::{Arc, Mutex, PowerManagement};

    #[inline]
    pub(super) fn events_are_held(_pm: &Arc<Mutex<PowerManagement>>) -> bool {
        false
    }
}
