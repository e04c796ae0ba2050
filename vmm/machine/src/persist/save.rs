//! Saving a machine that stands still.

use std::path::Path;
use std::ptr::NonNull;

use thiserror::Error;
use vm_memory::GuestMemoryBackend;
use vmgenie_snapshot::{MemorySource, MemorySourceError, SnapshotId, StateWriter, WriteStateError};

use crate::clock::{ClockError, GuestTime};
use crate::platform::{self, PlatformError};
use crate::state::{MachineState, VcpuState};
use crate::vcpu_state::{self, VcpuStateError};
use crate::virtio::{CopyDrivesError, DriveCopies, SyncDriveError};
use crate::{Host, Machine};

/// Why a machine could not be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The vCPUs run.
    #[error("the microVM runs; pause it first")]
    Running,
    /// Guest memory may hold half an ID.
    #[error(
        "the machine's new generation could not be begun yet; try that again first (PUT /generation)"
    )]
    GenerationOwed,
    /// A vCPU.
    #[error("could not save vCPU {index}")]
    Vcpu {
        /// The number of the vCPU.
        index: u8,
        /// Why.
        #[source]
        source: VcpuStateError,
    },
    /// A drive: a snapshot would refer to what is not on its disk.
    #[error(transparent)]
    Drive(#[from] SyncDriveError),
    /// A copy of a drive.
    #[error(transparent)]
    CopyDrive(#[from] CopyDrivesError),
    /// Interrupt controllers, clock, PIT.
    #[error("could not save the interrupt controllers")]
    Platform(#[from] PlatformError),
    /// The guest's time.
    #[error("could not read the guest's time")]
    Clock(#[from] ClockError),
    /// Encoding.
    #[error("could not encode the state")]
    Encode(#[from] WriteStateError),
    /// Guest memory.
    #[error("could not describe the guest's memory")]
    Memory(#[from] MemorySourceError),
}

impl Machine {
    /// Copies the drives that the guest may write to for snapshot `id`, beside its state file.
    ///
    /// # Errors
    /// The vCPUs must stand still; a drive that cannot be copied. No copy stays then.
    pub fn copy_drives(&self, state: &Path, id: SnapshotId) -> Result<DriveCopies, SaveError> {
        if self.is_running() {
            return Err(SaveError::Running);
        }
        self.devices.virtio.drain();
        Ok(self.devices.virtio.copy_drives(state, id)?)
    }

    /// Makes durable what a snapshot refers to on the machine's drives. It was saved, or its drives were copied, by this thread, which has not let
    /// the devices work since: the vCPUs may run again.
    ///
    /// # Errors
    /// [`SaveError::Drive`].
    pub fn sync_drives(&self) -> Result<(), SaveError> {
        Ok(self.devices.virtio.sync_drives()?)
    }

    /// The content of the state file of snapshot `id`, which has these copies of drives.
    ///
    /// # Errors
    /// The vCPUs must stand still; KVM's errors. The machine may go on afterwards in any case. *Afterwards:* [`Self::sync_drives`].
    pub fn save(
        &self,
        host: &Host,
        id: SnapshotId,
        copies: &DriveCopies,
    ) -> Result<Vec<u8>, SaveError> {
        let standstill = self.vcpus.standstill().ok_or(SaveError::Running)?;
        if self.generation_owed {
            return Err(SaveError::GenerationOwed);
        }
        // First: what ends now raises its interrupt before the interrupt controllers are saved, if KVM is quick.
        self.devices.virtio.drain();
        let time = match self.stopped_at {
            Some(time) => time,
            None => GuestTime::read(&self.vm, standstill)?,
        };
        let mut vcpus = standstill
            .vcpus()
            .map(|vcpu| {
                vcpu_state::save(host, &vcpu.fd, &vcpu.cpuid).map_err(|source| SaveError::Vcpu {
                    index: vcpu.index,
                    source,
                })
            })
            .collect::<Result<Vec<VcpuState>, _>>()?;
        time.put_into(&mut vcpus);
        let platform = platform::save(&self.vm, self.pit, time.clock)?;
        let devices = self.devices.save(copies);
        let machine = MachineState {
            vcpus: self.config.vcpus(),
            memory_mib: self.config.memory_mib(),
            smt: self.config.smt(),
        };
        let mut writer = StateWriter::new(id, self.config.memory_bytes());
        writer
            .part(&machine)?
            .parts(&vcpus)?
            .part(&platform)?
            .part(&devices.pm)?
            .part(&devices.serial)?
            .part(&devices.vmgenid)?
            .part(&devices.sysgen)?
            .part(&devices.vmclock)?
            .part(&devices.fw_cfg)?;
        devices.virtio.write(&mut writer)?;
        Ok(writer.finish()?)
    }

    /// The guest's memory, for the memory file.
    ///
    /// # Errors
    /// The vCPUs must stand still, and for as long as the sources are used: they borrow the machine, which only runs when it is
    /// borrowed exclusively.
    pub fn memory_sources(&self) -> Result<Vec<MemorySource<'_>>, SaveError> {
        if self.is_running() {
            return Err(SaveError::Running);
        }
        self.devices.virtio.drain();
        let mut offset = 0;
        let mut sources = Vec::new();
        for region in self.memory.map().iter() {
            let address = NonNull::new(region.as_ptr()).unwrap_or(NonNull::dangling());
            let len = region.size();
            // SAFETY: the region stays mapped as long as `self` is borrowed, and nobody writes to it: no vCPU runs and none can be
            // started (see above); virtio devices have nothing in flight (see above) and take up nothing without an exclusive
            // borrow (`virtio_work`); no device has a thread of its own.
            let mut source = unsafe { MemorySource::new(address, len, offset) }?;
            if let Some(base) = self.memory.backing() {
                source = source.over(base, offset)?;
            }
            sources.push(source);
            offset += len as u64;
        }
        Ok(sources)
    }
}
