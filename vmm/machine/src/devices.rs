//! The devices of a machine, on their bus and their interrupt lines; and the ACPI tables that tell the guest of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fmt, io};

use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_device::DevicePio;
use vm_device::bus::{self, MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_memory::Bytes;
use vmgenie_acpi::{Aml, IoApic, MachineDescription};
use vmgenie_devices::fw_cfg::{self, FwCfg};
use vmgenie_devices::pm::{self, PmError, PmRestoreError, PowerManagement, PowerRequest};
use vmgenie_devices::serial::{self, SerialError, SerialPort, SerialRestoreError};
use vmgenie_devices::sgen::{self, OnReport, RealtimeClock};
use vmgenie_devices::{BootTimer, InterruptLine, Persist, Restore, boot_timer, vmclock, vmgenid};

use crate::generation::{self, GenerationDevices, GenerationError};
use crate::metrics::SERIAL;
use crate::request::ClockPolicy;

use super::console::ConsoleOutput;
use super::events::{EventSender, MachineEvent};
use super::layout;
use super::memory::GuestMemory;
use super::state::{FwCfgPart, PmPart, SerialPart, SysGenPart, VmClockPart, VmGenIdPart};
use super::vcpus::Standstill;
use super::virtio::{DriveCopies, SavedVirtio, VirtioDevices, VirtioError};

/// Why the devices could not be set up.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A range of ports is taken twice.
    #[error("could not put a device on the bus")]
    Bus(#[source] bus::Error),
    /// The virtio devices.
    #[error("could not set up the virtio devices")]
    Virtio(#[from] VirtioError),
    /// The eventfd ran out.
    #[error("could not connect a device to the event loop")]
    Events(#[source] io::Error),
    /// The snapshot's power management state.
    #[error("the snapshot's power management state does not fit")]
    Pm(#[from] PmRestoreError),
    /// The snapshot's serial state.
    #[error("the snapshot's serial port state does not fit")]
    Serial(#[from] SerialRestoreError),
    /// The SCI.
    #[error("could not set the SCI")]
    Sci(#[from] PmError),
    /// The serial port's interrupt.
    #[error("could not raise the serial port's interrupt")]
    SerialInterrupt(#[from] SerialError),
    /// The ACPI tables.
    #[error("could not build the ACPI tables")]
    Acpi(#[from] vmgenie_acpi::BuildError),
    /// The ACPI tables.
    #[error("could not write the ACPI tables to guest memory")]
    AcpiWrite(#[source] vm_memory::GuestMemoryError),
}

/// An input of the in-kernel interrupt controllers.
struct GsiLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl InterruptLine for GsiLine {
    fn set_level(&self, asserted: bool) -> io::Result<()> {
        self.vm.set_irq_line(self.gsi, asserted).map_err(Into::into)
    }
}

/// The devices of one machine.
pub(super) struct Devices {
    pm: Arc<Mutex<PowerManagement>>,
    serial: Arc<Mutex<SerialPort<ConsoleOutput>>>,
    fw_cfg: Arc<Mutex<FwCfg>>,
    pub(super) generation: GenerationDevices,
    pub(super) virtio: VirtioDevices,
    pub(super) bus: Arc<IoManager>,
}

/// What the saved devices are.
#[derive(Debug)]
pub(super) struct DeviceStates {
    pub(super) pm: PmPart,
    pub(super) serial: SerialPart,
    pub(super) vmgenid: VmGenIdPart,
    pub(super) sysgen: SysGenPart,
    pub(super) vmclock: VmClockPart,
    pub(super) fw_cfg: FwCfgPart,
    pub(super) virtio: SavedVirtio,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bus has nothing to show of itself.
        f.debug_struct("Devices")
            .field("pm", &self.pm)
            .field("serial", &self.serial)
            .field("fw_cfg", &self.fw_cfg)
            .field("generation", &self.generation)
            .field("virtio", &self.virtio)
            .finish_non_exhaustive()
    }
}

impl Devices {
    /// Makes all devices as after power-on, but for the virtio devices, which have their states already.
    pub(super) fn new(
        vm: &Arc<VmFd>,
        generation: GenerationDevices,
        virtio: VirtioDevices,
        mut console: ConsoleOutput,
        events: &EventSender,
        on_report: OnReport,
        boot_timer: Option<BootTimer>,
    ) -> Result<Self, DeviceError> {
        let line = |gsi| GsiLine {
            vm: Arc::clone(vm),
            gsi,
        };
        let power = events.try_clone().map_err(DeviceError::Events)?;
        let room = Mutex::new(events.try_clone().map_err(DeviceError::Events)?);
        let timer = events.try_clone().map_err(DeviceError::Events)?;
        let mut pm = PowerManagement::new(
            line(pm::SCI_GSI),
            monotonic_ns,
            Box::new(move |request| power.send(event_of(request))),
        );
        pm.on_timer_change(Box::new(move |edge| {
            timer.send(MachineEvent::PmTimer(edge))
        }));
        let pm = Arc::new(Mutex::new(pm));
        let behind = events.try_clone().map_err(DeviceError::Events)?;
        console.on_behind(Box::new(move || behind.send(MachineEvent::ConsoleBehind)));
        let serial = Arc::new(Mutex::new(SerialPort::with_drained_handler(
            line(serial::GSI),
            console,
            Box::new(move || {
                room.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .send(MachineEvent::ConsoleRoom);
            }),
            SERIAL.of(),
        )));
        let mut bus = IoManager::new();
        put(&mut bus, pm::PORT_BASE, pm::PORT_LEN, Arc::clone(&pm) as _)?;
        put(
            &mut bus,
            serial::PORT_BASE,
            serial::PORT_LEN,
            Arc::clone(&serial) as _,
        )?;
        generation.sysgen().on_report(on_report);
        let fork = events.try_clone().map_err(DeviceError::Events)?;
        generation.sysgen().on_fork(Box::new(move || fork.wake()));
        put(
            &mut bus,
            sgen::PORT_BASE,
            sgen::PORT_LEN,
            Arc::clone(&generation.sysgen) as _,
        )?;
        let fw_cfg = Arc::new(Mutex::new(FwCfg::default()));
        put(
            &mut bus,
            fw_cfg::PORT_BASE,
            fw_cfg::PORT_LEN,
            Arc::clone(&fw_cfg) as _,
        )?;
        virtio.register(&mut bus)?;
        if let Some(timer) = boot_timer {
            let base = MmioAddress(boot_timer::GPA);
            let range = MmioRange::new(base, boot_timer::LEN).map_err(DeviceError::Bus)?;
            bus.register_mmio(range, Arc::new(timer))
                .map_err(DeviceError::Bus)?;
        }
        Ok(Self {
            pm,
            serial,
            fw_cfg,
            generation,
            virtio,
            bus: Arc::new(bus),
        })
    }

    /// Begins a new generation on these devices. The interrupt controllers have their state.
    pub(super) fn begin_generation(
        &mut self,
        standstill: Standstill<'_>,
        memory: &GuestMemory,
    ) -> Result<(), GenerationError> {
        generation::begin(standstill, memory, &mut self.generation, &self.pm)
    }

    /// Whether the guest's driver is offered the host's time of day.
    pub(super) fn offer_time(&self, policy: ClockPolicy) {
        let clock = match policy {
            ClockPolicy::Step => Some(realtime_ns as RealtimeClock),
            ClockPolicy::Keep => None,
        };
        self.generation.sysgen().offer_realtime(clock);
    }

    /// Tells the guest's driver that the time of day is late. False if there is none, or that could not be told, or is not offered.
    pub(super) fn tell_of_time(&self) -> bool {
        let is_waited_for = {
            let sysgen = self.generation.sysgen();
            sysgen.offers_realtime() && sysgen.report().present()
        };
        if !is_waited_for {
            return false;
        }
        generation::tell_driver(&self.pm)
            .inspect_err(|error| tracing::warn!(%error, "could not tell the guest of the time"))
            .is_ok()
    }

    /// Power management, for who locks it by himself.
    pub(super) fn shared_pm(&self) -> &Mutex<PowerManagement> {
        &self.pm
    }

    /// Power management.
    pub(super) fn pm(&self) -> MutexGuard<'_, PowerManagement> {
        // Devices do not panic on what a guest does; if one did, its registers are still plain values.
        self.pm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The firmware configuration device.
    pub(super) fn fw_cfg(&self) -> MutexGuard<'_, FwCfg> {
        self.fw_cfg.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The serial port.
    pub(super) fn serial(&self) -> MutexGuard<'_, SerialPort<ConsoleOutput>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The serial port, unless a vCPU is busy with it.
    pub(super) fn try_serial(&self) -> Option<MutexGuard<'_, SerialPort<ConsoleOutput>>> {
        match self.serial.try_lock() {
            Ok(serial) => Some(serial),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Saves all devices. *vCPUs:* standing still.
    pub(super) fn save(&self, copies: &DriveCopies) -> DeviceStates {
        DeviceStates {
            pm: PmPart(self.pm().save()),
            serial: SerialPart(self.serial().save()),
            vmgenid: VmGenIdPart(self.generation.vmgenid.save()),
            sysgen: SysGenPart(self.generation.sysgen().save()),
            vmclock: VmClockPart(self.generation.vmclock.save()),
            fw_cfg: FwCfgPart(self.fw_cfg().save()),
            virtio: self.virtio.save(copies),
        }
    }

    /// Gives the devices their registers; no interrupt line is touched.
    pub(super) fn restore(&self, states: &DeviceStates) -> Result<(), DeviceError> {
        self.pm().restore(&states.pm.0)?;
        self.serial().restore(&states.serial.0)?;
        let Ok(()) = self.fw_cfg().restore(&states.fw_cfg.0);
        Ok(())
    }

    /// Sets all interrupt lines, once the interrupt controllers have their state.
    pub(super) fn sync_lines(&self) -> Result<(), DeviceError> {
        self.pm().sync_line()?;
        self.serial().sync_line()?;
        self.virtio.restored();
        Ok(())
    }

    /// Writes the ACPI tables for `vcpus` vCPUs to guest memory; returns the gpa of the RSDP.
    pub(super) fn write_acpi(&self, memory: &GuestMemory, vcpus: u8) -> Result<u64, DeviceError> {
        let serial = self.serial();
        let GenerationDevices {
            vmgenid, vmclock, ..
        } = &self.generation;
        let sysgen = self.generation.sysgen();
        let fw_cfg = self.fw_cfg();
        let mut devices: Vec<&dyn Aml> = vec![&*serial, vmgenid, &*sysgen, vmclock, &*fw_cfg];
        devices.extend(self.virtio.acpi());
        let tables = vmgenie_acpi::build(
            &MachineDescription {
                cpus: vcpus,
                sci_gsi: pm::SCI_GSI as u8,
                pm: pm::ports(),
                s5_sleep_type: pm::S5_SLEEP_TYPE,
                devices,
                gpe_notifies: vec![
                    vmgenid::gpe_notify(),
                    vmclock::gpe_notify(),
                    sgen::gpe_notify(),
                ],
                io_apic: IoApic {
                    id: 0,
                    address: layout::IOAPIC,
                },
                local_apic_address: layout::LOCAL_APIC,
            },
            layout::ACPI.0,
            layout::ACPI_LEN,
        )?;
        memory
            .write_slice(&tables.bytes, layout::ACPI)
            .map_err(DeviceError::AcpiWrite)?;
        Ok(tables.rsdp)
    }
}

fn put(
    bus: &mut IoManager,
    base: u16,
    len: u16,
    device: Arc<dyn DevicePio + Send + Sync>,
) -> Result<(), DeviceError> {
    let range = PioRange::new(PioAddress(base), len).map_err(DeviceError::Bus)?;
    bus.register_pio(range, device).map_err(DeviceError::Bus)
}

fn event_of(request: PowerRequest) -> MachineEvent {
    match request {
        PowerRequest::PowerOff => MachineEvent::PowerOff,
        PowerRequest::Reset => MachineEvent::Reset,
    }
}

/// Nanoseconds of CLOCK_REALTIME, which the guest's driver sets its clock to.
pub(crate) fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Nanoseconds of CLOCK_MONOTONIC, which the PM timer counts.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec. CLOCK_MONOTONIC exists on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec
        .cast_unsigned()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec.cast_unsigned())
}
