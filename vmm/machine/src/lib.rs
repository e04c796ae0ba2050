//! The machine: memory, vCPUs, interrupt controllers, devices. One owner, the controller; no API type in here.

pub mod backends;
pub mod boot;
mod boot_state;
pub mod boot_timer;
mod clock;
pub mod config;
pub mod console;
mod cpuid;
mod cpuid_names;
mod devices;
pub mod events;
mod fork;
mod gate;
pub mod generation;
mod host;
pub mod layout;
pub mod memory;
pub mod memory_loss;
pub mod metrics;
mod persist;
mod platform;
pub mod readiness;
pub mod report;
pub mod request;
mod run_page;
#[cfg(feature = "fault-injection")]
mod single_step;
pub mod state;
pub mod text;
pub mod unix_socket;
mod vcpu;
mod vcpu_state;
mod vcpus;
pub mod virtio;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;
use thiserror::Error;
use tokio::sync::watch;
use vmgenie_devices::BootTimer;
use vmgenie_devices::fw_cfg::InstanceData;
use vmgenie_devices::sgen::{DriverReport, SysGenError};
use vmgenie_snapshot::MadeFile;

use crate::config::{BootSource, DeviceId, MachineConfig};
use crate::generation::{GenerationDevices, GenerationError, LastGeneration};
use crate::request::{ClockPolicy, Generation};
use boot::BootError;
use memory_loss::MemoryLoss;

use boot_state::BootStateError;
use clock::{ClockError, GuestTime};
use console::ConsoleOutput;
pub use devices::DeviceError;
use devices::Devices;
pub use devices::monotonic_ns;
use events::EventSender;
pub use fork::ForkError;
pub use host::{Host, HostError};
use memory::{GuestMemory, Memory, MemoryError};
pub use persist::{RestoreError, SaveError, SavedError, SavedMachine};
use platform::PlatformError;
use readiness::Readiness;
use vcpu::{Vcpu, VcpuError};
use vcpus::VcpuSet;
pub use vcpus::{Standstill, StillRunning};
pub use virtio::VirtioError;
pub use virtio::files::HostPathError;
use virtio::kinds::DevicesConfig;
pub use virtio::{DeviceBusy, DriveCopies, UpdateDriveError, UpdateNetError};
use virtio::{Side, VirtioDevices, VirtioEvents};

/// The guest's memory does not fit the host's CPU.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{memory_mib} MiB of guest memory end at {end:#x}, beyond the {bits} bits of physical address that this host's CPU has"
)]
pub struct AddressBitsError {
    /// The size of the memory in MiB.
    pub memory_mib: u64,
    /// Where it ends.
    pub end: u64,
    /// Bits of physical address.
    pub bits: u32,
}

/// Why a machine could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The guest's memory does not fit the host's CPU.
    #[error(transparent)]
    AddressBits(#[from] AddressBitsError),
    /// Memory.
    #[error("could not set up the guest's memory")]
    Memory(#[from] MemoryError),
    /// Interrupt controllers, clock, PIT.
    #[error("could not set up the interrupt controllers")]
    Platform(#[from] PlatformError),
    /// A vCPU.
    #[error("could not set up the vCPUs")]
    Vcpu(#[from] VcpuError),
    /// CPUID.
    #[error("could not set up the CPUID of a vCPU")]
    Cpuid(#[from] cpuid::TooManyEntries),
    /// Devices.
    #[error("could not set up the devices")]
    Devices(#[from] DeviceError),
    /// Generation ID, counter, VMClock.
    #[error("could not set up the devices that tell of generations")]
    Generation(#[from] GenerationError),
    /// Kernel and initrd.
    #[error("could not load the guest")]
    Boot(#[from] BootError),
    /// The first registers.
    #[error("could not set the registers in which the guest starts")]
    BootState(#[from] BootStateError),
    /// Virtio devices.
    #[error("could not set up the virtio devices")]
    Virtio(#[from] VirtioError),
}

/// A guest whose time of day pauses have made late by this is told to set it.
const TOLD_OF_TIME: Duration = Duration::from_secs(1);

/// Why a machine could not go on. Its vCPUs stand still.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// Its new generation.
    #[error("could not begin the machine's new generation")]
    Generation(#[from] GenerationError),
    /// Its time.
    #[error("could not set the guest's time")]
    Clock(#[from] ClockError),
}

/// Where a machine's console and events go.
#[derive(Debug)]
pub struct MachineIo {
    /// Takes what the guest writes to its serial port.
    pub console: ConsoleOutput,
    /// Takes what ends the machine.
    pub events: EventSender,
    /// Takes what the guest's driver reports of its generation.
    pub reports: Arc<watch::Sender<DriverReport>>,
    /// Takes how far the guest has come.
    pub readiness: Arc<Readiness>,
    /// Hears of the virtio devices' doorbells and backends.
    pub virtio: Arc<VirtioEvents>,
    /// Where the guest says that it has booted, if anybody wants to know.
    pub boot_timer: Option<BootTimer>,
}

impl MachineIo {
    /// Where a device reports to.
    fn on_report(&self) -> Result<vmgenie_devices::sgen::OnReport, DeviceError> {
        let (reports, readiness) = (Arc::clone(&self.reports), Arc::clone(&self.readiness));
        // Nobody else has to be called.
        let gated = readiness.is_pending();
        let events = gated.then(|| self.events.try_clone()).transpose();
        let events = events.map_err(DeviceError::Events)?;
        Ok(Box::new(move |report| {
            #[cfg(feature = "fault-injection")]
            single_step::reported(&report);
            reports.send_replace(report);
            if readiness.told(&report)
                && let Some(events) = &events
            {
                events.wake();
            }
        }))
    }
}

/// A machine. It is built standing still.
///
/// The fields are dropped in this order: the vCPUs' threads end before the VM goes, and the VM before its memory.
#[derive(Debug)]
pub struct Machine {
    vcpus: VcpuSet,
    devices: Devices,
    vm: Arc<VmFd>,
    memory: Memory,
    config: MachineConfig,
    pit: bool,
    /// An attempt to begin a new generation has failed: guest memory may hold half an ID, and no vCPU may run.
    generation_owed: bool,
    /// The guest's time when the vCPUs stopped, from which they will go on. None while they run, and before they first have.
    stopped_at: Option<GuestTime>,
    /// By how much pauses have made the guest's time of day late since its driver was last told to set it.
    late: Duration,
    /// How far the guest has come.
    readiness: Arc<Readiness>,
    /// What was made for it when it was restored.
    made: Vec<MadeFile>,
}

impl Machine {
    /// Builds a machine in `vm` (an empty one) that will boot `source`. At a reboot it keeps its generation, which `last` is.
    pub fn boot(
        host: &Host,
        vm: VmFd,
        config: MachineConfig,
        virtio: &DevicesConfig,
        (source, files): (&BootSource, boot::Files),
        last: Option<&LastGeneration>,
        io: MachineIo,
    ) -> Result<Self, BuildError> {
        check_address_bits(host, config)?;
        let bytes = config.memory_bytes();
        let memory = Memory::fresh(bytes, config.huge_pages())?;
        let vm = Arc::new(vm);
        // Memory slots come first: after the interrupt controllers they would cost milliseconds.
        memory.register(&vm)?;
        let pit = host.needs_pit();
        platform::create(&vm, pit)?;
        let images = boot::load(memory.map(), bytes, source, files)?;
        let generation = GenerationDevices::boot(memory.map(), bytes, last)?;
        io.readiness.begin(false, None);
        let on_report = io.on_report()?;
        let virtio = VirtioDevices::boot(&vm, memory.map(), virtio, &io.virtio)?;
        let devices = Devices::new(
            &vm,
            generation,
            virtio,
            io.console,
            &io.events,
            on_report,
            io.boot_timer,
        )?;
        devices.offer_time(ClockPolicy::Step);
        let rsdp = devices.write_acpi(memory.map(), config.vcpus())?;
        let entry = images.write_boot_data(memory.map(), bytes, &source.cmdline, rsdp)?;
        let vcpus = (0..config.vcpus())
            .map(|index| {
                let cpuid = cpuid::for_vcpu(&host.cpuid, index, config, host.tsc_deadline)?;
                let vcpu = Vcpu::new(&vm, index, cpuid)?;
                boot_state::set_common(&vcpu.fd)?;
                if index == 0 {
                    boot_state::set_entry(&vcpu.fd, entry)?;
                }
                Ok(vcpu)
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        let vcpus = VcpuSet::spawn(vcpus, &devices.bus, &io.events)?;
        Ok(Self {
            vcpus,
            devices,
            vm,
            memory,
            config,
            pit,
            generation_owed: false,
            stopped_at: None,
            late: Duration::ZERO,
            readiness: io.readiness,
            made: Vec::new(),
        })
    }

    /// Lets the vCPUs run. A machine whose new generation could not be begun gets another attempt first.
    ///
    /// # Errors
    /// That attempt has failed as well, or KVM refuses the guest's time; the vCPUs stand still.
    pub fn resume(&mut self, host: &Host) -> Result<(), ResumeError> {
        if self.generation_owed {
            self.begin_generation()?;
        }
        if let (Some(time), Some(standstill)) = (self.stopped_at, self.vcpus.standstill()) {
            time.set(&self.vm, standstill)?;
            self.stopped_at = None;
            self.devices.pm().let_timer_run(true);
            self.late += time.since.map_or(Duration::ZERO, |since| since.elapsed());
            if self.late >= TOLD_OF_TIME && self.devices.tell_of_time() {
                self.late = Duration::ZERO;
            }
        }
        self.readiness.resumed();
        self.vcpus.run(host);
        self.devices.virtio.wake_if_pending();
        Ok(())
    }

    /// Stops the vCPUs, and the guest's time with them.
    ///
    /// # Errors
    /// One waits for a device. All go on.
    pub fn pause(&mut self) -> Result<(), StillRunning> {
        if !self.is_running() {
            return Ok(());
        }
        self.vcpus.stop()?;
        self.readiness.paused();
        self.devices.pm().let_timer_run(false);
        self.stopped_at = self.vcpus.standstill().and_then(|standstill| {
            GuestTime::read(&self.vm, standstill)
                .inspect_err(|error| {
                    tracing::warn!(%error, "the guest's time goes on while it stands still");
                })
                .ok()
        });
        if self.stopped_at.is_none() {
            self.devices.pm().let_timer_run(true);
        }
        Ok(())
    }

    /// Do the vCPUs run?
    pub fn is_running(&self) -> bool {
        self.vcpus.is_running()
    }

    /// A core dump has none of the guest's memory from now on: see [`Memory::keep_out_of_core_dumps`].
    pub fn keep_memory_out_of_core_dumps(&self) {
        self.memory.keep_out_of_core_dumps();
    }

    /// What has become of the memory file that the machine was restored from, if that may be why its guest has failed.
    pub fn memory_loss(&self) -> Option<MemoryLoss> {
        self.memory.loss()
    }

    /// vCPUs and memory.
    pub fn config(&self) -> MachineConfig {
        self.config
    }

    /// The virtio devices.
    pub fn devices_config(&self) -> &DevicesConfig {
        self.devices.virtio.config()
    }

    /// The virtio devices for a machine that boots again: what was changed while it ran, and the MAC addresses that were made up.
    pub fn devices_to_keep(&self) -> DevicesConfig {
        self.devices.virtio.config_to_keep()
    }

    /// Puts another file behind a drive, or opens the present one anew. The guest learns of another size.
    ///
    /// # Errors
    /// There is no such drive, a vCPU stays in it, or the file cannot be used; nothing has changed.
    pub fn update_drive(
        &mut self,
        id: &DeviceId,
        path: Option<PathBuf>,
    ) -> Result<(), UpdateDriveError> {
        self.devices.virtio.update_drive(id, path)
    }

    /// Plugs the cable of a network interface in or out, if `link_up` says so. The guest is told.
    ///
    /// # Errors
    /// There is no such interface, or a vCPU stays in it; nothing has changed.
    pub fn update_net(
        &mut self,
        id: &DeviceId,
        link_up: Option<bool>,
    ) -> Result<(), UpdateNetError> {
        self.devices.virtio.update_net(id, link_up)
    }

    /// Gives a machine behind a gate its networks, and lets its guest connect to the host.
    pub fn open_networks(&mut self) {
        self.devices.virtio.open_gate(Side::Networks);
    }

    /// Lets the host connect to the guest of a machine behind a gate.
    pub fn open_to_host(&mut self) {
        self.devices.virtio.open_gate(Side::Host);
    }

    /// The present generation.
    ///
    /// # Errors
    /// The counter cannot be read.
    pub fn generation(&self) -> Result<Generation, SysGenError> {
        let GenerationDevices { vmgenid, .. } = &self.devices.generation;
        let sysgen = self.devices.generation.sysgen();
        Ok(Generation {
            id: vmgenid.id(),
            ancestors: vmgenid.ancestors().to_vec(),
            changes: vmgenid.changes(),
            since: vmgenid.changed_at(),
            counter: sysgen.counter(self.memory.map())?,
            driver: sysgen.report(),
        })
    }

    /// The generation, for a machine that boots again and keeps it.
    ///
    /// # Errors
    /// The counter cannot be read.
    pub fn last_generation(&self) -> Result<LastGeneration, SysGenError> {
        self.devices.generation.last(self.memory.map())
    }

    /// Begins a new generation; the vCPUs run afterwards if they ran before. After an error they stand still, until an attempt
    /// succeeds.
    pub fn new_generation(&mut self, host: &Host) -> Result<Generation, ResumeError> {
        let ran = self.is_running();
        self.pause()
            .map_err(|error| GenerationError::Running(error.into()))?;
        self.begin_generation()?;
        if ran {
            self.resume(host)?;
        }
        Ok(self.generation().map_err(GenerationError::from)?)
    }

    /// Begins a new generation of a machine that stands still.
    fn begin_generation(&mut self) -> Result<(), GenerationError> {
        self.generation_owed = true;
        self.at_standstill(Devices::begin_generation)?;
        self.generation_owed = false;
        Ok(())
    }

    /// Does to the devices what needs the vCPUs to stand still. Callers have stopped them.
    fn at_standstill<T>(
        &mut self,
        action: impl FnOnce(&mut Devices, Standstill<'_>, &GuestMemory) -> T,
    ) -> T {
        let Self {
            vcpus,
            devices,
            memory,
            ..
        } = self;
        let Some(standstill) = vcpus.standstill() else {
            unreachable!("callers have stopped the vCPUs, and `self` is borrowed exclusively");
        };
        action(devices, standstill, memory.map())
    }

    /// Gives the guest console input; returns how many bytes it took. None if a vCPU is busy with the serial port, perhaps for
    /// milliseconds: try again.
    pub fn console_input(&self, bytes: &[u8]) -> Option<usize> {
        let mut serial = self.devices.try_serial()?;
        let room = serial.room().min(bytes.len());
        Some(match serial.enqueue(&bytes[..room]) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "console input");
                room
            }
        })
    }

    /// Writes console output that waits for its reader; true if some still does, or if a vCPU is busy with the serial port.
    pub fn flush_console(&self) -> bool {
        let Some(mut serial) = self.devices.try_serial() else {
            return true;
        };
        serial
            .output_mut()
            .is_some_and(ConsoleOutput::flush_waiting)
    }

    /// The virtio devices have events: takes them, and does what they ask for if the vCPUs run; else when they do.
    ///
    /// Needs the machine exclusively, so that nobody who copies its memory is disturbed.
    pub fn virtio_work(&mut self) {
        self.devices.virtio.take_events();
        if self.is_running() {
            self.devices.virtio.work();
        }
    }

    /// How long the event loop may sleep before [`Self::tend`] has something to do though nobody calls.
    pub fn patience(&self) -> Option<Duration> {
        self.devices.virtio.patience().filter(|_| self.is_running())
    }

    /// Does what is due by now.
    pub fn tend(&mut self) {
        if self.is_running() {
            self.devices.virtio.announce();
        }
    }

    /// Presses the power button: the guest's `button` driver tells its first program, which ends the guest. A guest that has not
    /// enabled the event yet learns of it when it does.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn press_power_button(&mut self) -> Result<(), vmgenie_devices::pm::PmError> {
        self.devices.pm().press_power_button()
    }

    /// The string by which the guest knows who it is.
    pub fn instance_data(&self) -> InstanceData {
        self.devices.fw_cfg().data().clone()
    }

    /// Gives the guest another such string, which its next read has.
    pub fn set_instance_data(&self, data: InstanceData) {
        self.devices.fw_cfg().set_data(data);
    }

    /// The PM timer's interrupt is due: raises it, and says when the next one is.
    pub fn pm_timer_tick(&self) -> Option<u64> {
        let mut pm = self.devices.pm();
        if let Err(error) = pm.tick() {
            tracing::warn!(%error, "PM timer");
        }
        pm.next_timer_edge()
    }
}

/// Does the guest's memory lie within the physical addresses of the host's CPU?
fn check_address_bits(host: &Host, config: MachineConfig) -> Result<(), AddressBitsError> {
    let end = layout::ram_ranges(config.memory_bytes())
        .last()
        .map_or(0, |range| range.start.0 + range.len);
    let bits = host.physical_address_bits();
    if bits < 64 && end > 1 << bits {
        return Err(AddressBitsError {
            memory_mib: config.memory_mib(),
            end,
            bits,
        });
    }
    Ok(())
}
