//! All vCPUs of a machine, and the proof that none of them runs.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use thiserror::Error;
use vm_device::device_manager::IoManager;

use super::events::EventSender;
use super::gate::Gate;
use super::host::Host;
use super::vcpu::{Vcpu, VcpuError, VcpuHandle};
use crate::metrics::MACHINE;

/// How long the vCPUs may take to stop. One that resets a disk waits for the requests in flight, and those for the host's storage.
const PATIENCE: Duration = Duration::from_secs(30);

/// vCPUs that do not stop.
#[derive(Debug, Error)]
#[error(
    "{0} of the vCPUs did not stop within {limit} s and the microVM goes on: a device that the guest resets waits for the host, as a drive does whose \
     storage gives no answer. Look at the storage of its drives, and try again",
    limit = PATIENCE.as_secs()
)]
pub struct StillRunning(usize);

/// The vCPUs with their threads.
#[derive(Debug)]
pub(super) struct VcpuSet {
    handles: Vec<VcpuHandle>,
    gate: Arc<Gate>,
}

/// The proof that no vCPU runs, for as long as it lives: [`VcpuSet::run`] needs the set exclusively.
#[derive(Debug, Clone, Copy)]
pub struct Standstill<'a> {
    vcpus: &'a VcpuSet,
}

impl VcpuSet {
    /// Starts a thread for each vCPU; all wait at the gate.
    pub(super) fn spawn(
        vcpus: Vec<Vcpu>,
        bus: &Arc<IoManager>,
        events: &EventSender,
    ) -> Result<Self, VcpuError> {
        let mut set = Self {
            handles: Vec::with_capacity(vcpus.len()),
            gate: Arc::new(Gate::new()),
        };
        for vcpu in vcpus {
            let index = vcpu.index;
            let events = events
                .try_clone()
                .map_err(|source| VcpuError::Thread { index, source })?;
            let handle = VcpuHandle::spawn(vcpu, Arc::clone(&set.gate), Arc::clone(bus), events)?;
            set.handles.push(handle);
        }
        Ok(set)
    }

    /// Lets all vCPUs run. Does nothing if they do.
    pub(super) fn run(&mut self, host: &Host) {
        if self.is_running() {
            return;
        }
        if host.kvmclock_ctrl {
            for handle in &self.handles {
                // Tells the guest's watchdogs that it stood still. Refused where the guest has no kvm-clock (yet): nothing to
                // tell then.
                if handle.lock().fd.kvmclock_ctrl().is_err() {
                    MACHINE.vcpu.kvmclock_ctrl_fails.inc();
                }
            }
        }
        self.gate.open();
    }

    /// Stops all vCPUs; returns when none runs and none has an access to a device under way.
    ///
    /// # Errors
    /// An access takes longer than [`PATIENCE`]. All go on.
    pub(super) fn stop(&mut self) -> Result<(), StillRunning> {
        let handles = &self.handles;
        let kick = || handles.iter().for_each(VcpuHandle::kick);
        self.gate.close(PATIENCE, kick).map_err(StillRunning)
    }

    /// Do the vCPUs run?
    pub(super) fn is_running(&self) -> bool {
        self.gate.is_open()
    }

    /// The proof that no vCPU runs; none if they do.
    pub(super) fn standstill(&self) -> Option<Standstill<'_>> {
        (!self.is_running()).then_some(Standstill { vcpus: self })
    }
}

impl Standstill<'_> {
    /// The vCPUs, in the order of their numbers.
    pub(super) fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> {
        self.vcpus.handles.iter().map(VcpuHandle::lock)
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        let handles = &self.handles;
        self.gate
            .dismiss(|| handles.iter().for_each(VcpuHandle::kick));
        self.handles.iter_mut().for_each(VcpuHandle::join);
    }
}
