//! The one function that begins a new generation.

use thiserror::Error;
use vmgenie_devices::pm::{PmError, PowerManagement};
use vmgenie_devices::vmgenid::{self, GenerationId, VmGenId, VmGenIdError};

use crate::machine::Standstill;
use crate::machine::memory::GuestMemory;

/// Why a new generation could not be begun. The vCPUs must not run before another attempt has succeeded.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// The ID.
    #[error("could not write a new generation ID")]
    Id(#[from] VmGenIdError),
    /// The event.
    #[error("could not raise the general-purpose event of a new generation")]
    Event(#[from] PmError),
}

/// Begins a new generation: a new ID in guest memory, then the event that tells the guest.
///
/// *Caller:* restore, and `PUT /generation`; nobody else changes the ID of a machine. *vCPUs:* not running, which `standstill`
/// proves, so that no guest instruction sees the event without the ID. *Interrupt controllers and devices:* have their state; it
/// would overwrite the event otherwise. *Afterwards:* the event is pending. A guest that has enabled it is interrupted at its
/// first instruction; one that has not is told when it does.
pub(crate) fn begin(
    _standstill: Standstill<'_>,
    memory: &GuestMemory,
    vmgenid: &mut VmGenId,
    pm: &mut PowerManagement,
) -> Result<GenerationId, GenerationError> {
    let id = vmgenid.regenerate(memory)?;
    pm.raise_gpe(vmgenid::GPE)?;
    tracing::info!(id = %id.to_guid(), changes = vmgenid.changes(), "a new generation begins");
    Ok(id)
}
