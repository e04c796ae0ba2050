//! Restoring a machine. What is on this path is paid by every clone: each system call counts.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{CpuId, KVM_CLOCK_REALTIME};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmgenie_devices::fw_cfg::InstanceData;
use vmgenie_devices::sgen::ForkStage;
use vmgenie_snapshot::{LoadedSnapshot, MadeFile};

use super::host_fit::{self, HostFitError};
use super::saved::{SavedError, SavedMachine, WantedDevices};
use crate::backends::copy::{Copies, CopyError, make_drives};
use crate::clock::{self, ClockError, GuestTime};
use crate::config::DeviceOverrides;
use crate::devices::{DeviceError, Devices};
use crate::generation::{GenerationError, tell_driver};
use crate::memory::{Memory, MemoryError};
use crate::platform::{self, PlatformError};
use crate::request::{LoadSnapshot, RestoreAs};
use crate::state::VcpuState;
use crate::vcpu::{Vcpu, VcpuError};
use crate::vcpu_state::{self, VcpuStateError};
use crate::vcpus::VcpuSet;
use crate::virtio::{VirtioDevices, VirtioError};
use crate::{AddressBitsError, Host, Machine, MachineIo, check_address_bits};

/// Why a machine could not be restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// What the state file says.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A drive's image could not be copied.
    #[error("could not give the machine drives of its own")]
    CopyDrive(#[from] CopyError),
    /// The host on which it was made did not tell the time.
    #[error("clock_realtime requested but not present in the snapshot state")]
    NoRealtime,
    /// The host lacks something.
    #[error("the snapshot does not fit this host")]
    HostFit(#[from] HostFitError),
    /// The guest's memory does not fit the host's CPU.
    #[error("the snapshot does not fit this host")]
    AddressBits(#[from] AddressBitsError),
    /// Memory.
    #[error("could not set up the guest's memory")]
    Memory(#[from] MemoryError),
    /// Interrupt controllers, clock, PIT.
    #[error("could not restore the interrupt controllers")]
    Platform(#[from] PlatformError),
    /// The guest's time.
    #[error("could not restore the guest's time")]
    Clock(#[from] ClockError),
    /// A vCPU could not be made.
    #[error("could not set up the vCPUs")]
    Vcpu(#[from] VcpuError),
    /// A vCPU's state.
    #[error("could not restore vCPU {index}")]
    VcpuState {
        /// The number of the vCPU.
        index: u8,
        /// Why.
        #[source]
        source: VcpuStateError,
    },
    /// Devices.
    #[error("could not restore the devices")]
    Devices(#[from] DeviceError),
    /// Virtio devices.
    #[error("could not restore the virtio devices")]
    Virtio(#[from] VirtioError),
    /// The new generation.
    #[error("could not begin a new generation")]
    Generation(#[from] GenerationError),
}

impl Machine {
    /// Builds the machine that `snapshot` holds in `vm` (an empty one), as `request` wants it, standing still. With [`RestoreAs::New`] a new
    /// generation has begun.
    ///
    /// The order: everything is checked before anything is built. Memory slots come before the interrupt controllers (after them
    /// they would cost milliseconds). The new generation comes after the states of interrupt controllers and devices, which would
    /// overwrite its event. The files that were made for it go unless the caller keeps them.
    pub fn restore(
        host: &Host,
        vm: VmFd,
        snapshot: LoadedSnapshot,
        request: &LoadSnapshot,
        io: MachineIo,
    ) -> Result<(Self, Copies), RestoreError> {
        let saved = SavedMachine::read(snapshot.reader)?;
        if request.clock_realtime && saved.platform.clock.flags & KVM_CLOCK_REALTIME == 0 {
            return Err(RestoreError::NoRealtime);
        }
        saved
            .vcpus
            .iter()
            .try_for_each(|vcpu| host_fit::check(host, vcpu))?;
        check_address_bits(host, saved.config)?;
        let WantedDevices {
            wanted,
            mut located,
        } = saved.wanted(request, snapshot.distrust)?;
        let memory = Memory::from_file(saved.config.memory_bytes(), snapshot.memory)?;
        // Nothing on the host is opened for a state that will be refused.
        saved.check_virtio(&wanted, memory.map())?;
        let copies = make_drives(
            located.devices.drives(),
            &mut located.found,
            &request.overrides,
        )?;
        let vm = Arc::new(vm);
        memory.register(&vm)?;
        let pit = saved.platform.pit.is_some();
        let fork_stage = saved.devices.sysgen.0.fork.stage;
        platform::create(&vm, pit)?;
        platform::restore(&vm, &saved.platform)?;
        // Before there are vCPUs: KVM need not wait for them with each doorbell.
        let (states, found) = (&saved.devices.virtio, located.found);
        let mut virtio =
            VirtioDevices::restore(&vm, memory.map(), wanted, found, states, &io.virtio)?;
        if saved.vcpus.iter().any(vcpu_state::counts_events) {
            // An earlier version let guests have them.
            platform::have_counters(&vm, true);
        }
        let vcpus = restore_vcpus(host, &vm, &saved.vcpus)?;
        if let Some(gate) = request.gate {
            virtio.shut_gate(gate);
        }
        let counts = request.generation == RestoreAs::New;
        io.readiness.begin(counts, request.gate);
        let on_report = io.on_report()?;
        let devices = Devices::new(
            &vm,
            saved.generation,
            virtio,
            io.console,
            &io.events,
            on_report,
            io.boot_timer,
        )?;
        devices.restore(&saved.devices)?;
        devices.fw_cfg().set_data(instance_data(
            request.generation,
            &request.overrides,
            saved.devices.fw_cfg.0.data,
        ));
        devices.sync_lines()?;
        devices.offer_time(request.clock);
        // Until the vCPUs run, as the other clocks.
        devices.pm().let_timer_run(false);
        let vcpus = VcpuSet::spawn(vcpus, &devices.bus, &io.events)?;
        let mut machine = Self {
            vcpus,
            devices,
            vm,
            memory,
            config: saved.config,
            pit,
            generation_owed: false,
            stopped_at: Some(GuestTime::saved(
                &saved.platform.clock,
                &saved.vcpus,
                request.clock_realtime,
            )),
            // The new generation tells of it.
            late: Duration::ZERO,
            readiness: io.readiness,
            made: copies.files(),
        };
        match request.generation {
            RestoreAs::New => machine.begin_generation()?,
            RestoreAs::Keep => {
                machine.at_standstill(|devices, standstill, memory| {
                    devices.generation.keep(standstill, memory)
                })?;
                machine.devices.tell_of_time();
                machine.end_fork_as_original();
            }
        }
        if matches!(fork_stage, ForkStage::Asked | ForkStage::Acked) {
            // Nobody waits for it here: the guest's programs shall not, either.
            tell_driver(machine.devices.shared_pm()).map_err(GenerationError::from)?;
        }
        Ok((machine, copies))
    }

    /// Removes the files that were made for this machine when it was restored. It goes on with them.
    pub fn remove_made_files(&self) {
        self.made.iter().for_each(MadeFile::remove);
    }
}

/// The restored machine's identity string. A clone with a new generation starts with an empty one, so that it cannot
/// pass for the original.
fn instance_data(
    restore_as: RestoreAs,
    overrides: &DeviceOverrides,
    saved: InstanceData,
) -> InstanceData {
    let own = overrides.instance_data.clone();
    own.unwrap_or_else(|| match restore_as {
        RestoreAs::New => InstanceData::default(),
        RestoreAs::Keep => saved,
    })
}

/// Makes all vCPUs and gives them their states. All are made first: making one more begins another reckoning of the TSC in KVM.
fn restore_vcpus(host: &Host, vm: &VmFd, states: &[VcpuState]) -> Result<Vec<Vcpu>, RestoreError> {
    let numbered = || (0..).zip(states);
    let at = |index| move |source| RestoreError::VcpuState { index, source };
    let vcpus = numbered()
        .map(|(index, state)| make_vcpu(vm, index, state))
        .collect::<Result<Vec<_>, _>>()?;
    for ((index, state), vcpu) in numbered().zip(&vcpus) {
        vcpu_state::set_tsc_khz(host, &vcpu.fd, state.tsc_khz).map_err(at(index))?;
    }
    let have_tsc = clock::restore_tscs(&vcpus, states)?;
    for ((index, state), vcpu) in numbered().zip(&vcpus) {
        vcpu_state::restore(host, &vcpu.fd, state, have_tsc).map_err(at(index))?;
        #[cfg(feature = "fault-injection")]
        crate::single_step::begin(&vcpu.fd);
    }
    Ok(vcpus)
}

fn make_vcpu(vm: &VmFd, index: u8, state: &VcpuState) -> Result<Vcpu, RestoreError> {
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| {
        SavedError::Contradiction(format!(
            "vCPU {index} has {} CPUID entries",
            state.cpuid.len()
        ))
    })?;
    Ok(Vcpu::new(vm, index, cpuid)?)
}
