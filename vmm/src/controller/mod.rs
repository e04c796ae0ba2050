//! The controller: the only way to the machine. It owns the configuration, the machine and the rules of what may come when.

pub mod command;
mod configuration;
pub(crate) mod console_input;
pub(crate) mod descriptors;
mod ending;
pub(crate) mod event_loop;
mod forking;
mod monitoring;
mod readiness;
mod self_snapshots;
mod serial;
pub(crate) mod signals;
mod snapshots;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use kvm_ioctls::VmFd;
use thiserror::Error;
use tokio::sync::watch;
use vmgenie_devices::sgen::DriverReport;
use vmgenie_machine::boot::{self, BootError};
use vmgenie_machine::boot_timer;
use vmgenie_machine::config::{BootSource, ConfigError, InstanceData, MachineConfig};
use vmgenie_machine::console::history::ConsoleHistory;
use vmgenie_machine::events::EventSender;
use vmgenie_machine::generation::LastGeneration;
use vmgenie_machine::readiness::Readiness;
use vmgenie_machine::report::report;
use vmgenie_machine::virtio::VirtioEvents;
use vmgenie_machine::virtio::kinds::DevicesConfig;
use vmgenie_machine::{BuildError, Host, HostError, Machine, MachineIo, ResumeError};

use crate::metrics::MetricsFile;
use command::{Command, CommandError, CommandResult, Reply, VmState};

pub use ending::{Outcome, RunError};
use forking::Forking;
use monitoring::Measured;
use self_snapshots::SelfSnapshots;
use serial::SerialOutput;
use snapshots::{AtForkPoint, create_snapshot};

/// Firecracker's sentence for what is possible before the start only; programs that were written for it look for it.
const NOT_AFTER_START: &str =
    "The requested operation is not supported after starting the microVM.";
/// The same of a load.
const NOT_AFTER_CONFIGURING: &str = "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
     boot-specific resources.";
/// The same for what needs a machine.
const NOT_BEFORE_START: &str =
    "The requested operation is not supported before starting the microVM.";

/// Why a machine could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// No kernel was set.
    #[error("there is nothing to boot: set the kernel first (PUT /boot-source)")]
    NoBootSource,
    /// KVM.
    #[error("KVM could not make a VM")]
    Host(#[from] HostError),
    /// Standard output or the event loop's eventfd.
    #[error("could not connect the machine's console and events")]
    Io(#[from] std::io::Error),
    /// The machine.
    #[error("could not build the machine")]
    Build(#[from] BuildError),
    /// The kernel command line has no room for the root drive.
    #[error("could not tell the kernel of its root drive")]
    Cmdline(#[from] ConfigError),
    /// The machine could not go on.
    #[error("could not let the machine run")]
    Resume(#[from] ResumeError),
}

/// What a machine that boots again keeps of its last life.
#[derive(Debug)]
pub(crate) struct LastLife {
    generation: LastGeneration,
    /// A machine that was paused while its reset was under way boots paused.
    ran: bool,
}

/// A start that waits for the files of its image.
#[derive(Debug)]
struct Starting {
    files: Receiver<Result<boot::Files, BootError>>,
    source: BootSource,
    last: Option<LastLife>,
}

/// The configuration, the machine once there is one, and what both need of the host.
#[derive(Debug)]
pub(crate) struct Controller {
    host: Host,
    /// An empty VM, made ahead of time: it does not depend on a configuration or a snapshot.
    spare: Option<VmFd>,
    config: MachineConfig,
    boot_source: Option<BootSource>,
    devices: DevicesConfig,
    /// For the machine that will boot. Once there is one, its device has the string.
    instance_data: InstanceData,
    /// Something was configured, so that no snapshot may be loaded any more.
    configured: bool,
    machine: Option<Machine>,
    /// There will be a machine when its image has been read.
    starting: Option<Starting>,
    /// A snapshot that was restored and whose directory was not tidied up since.
    restored_from: Option<(PathBuf, PathBuf)>,
    events: EventSender,
    /// Shared with the machine's device; whoever waits for reports learns of the end when both are gone.
    reports: Arc<watch::Sender<DriverReport>>,
    /// How far the machine's guest has come, and its gate.
    readiness: Arc<Readiness>,
    /// What the machine's guest says.
    console: Arc<ConsoleHistory>,
    /// The doorbells and backends of the machine's virtio devices.
    virtio: Arc<VirtioEvents>,
    /// The name of this process's machine.
    id: String,
    metrics: Option<MetricsFile>,
    serial: SerialOutput,
    /// A snapshot that waits for the guest.
    forking: Option<Forking>,
    /// The guest may ask for snapshots of itself.
    self_snapshots: Option<SelfSnapshots>,
    /// Machines that boot have a boot timer.
    boot_timer: bool,
}

impl Controller {
    /// A controller without a machine.
    pub(crate) fn new(
        events: EventSender,
        virtio: VirtioEvents,
        id: String,
    ) -> Result<Self, HostError> {
        let host = Host::open()?;
        let spare = Some(host.empty_vm()?);
        Ok(Self {
            host,
            spare,
            config: MachineConfig::default(),
            boot_source: None,
            devices: DevicesConfig::default(),
            instance_data: InstanceData::default(),
            configured: false,
            machine: None,
            starting: None,
            restored_from: None,
            events,
            reports: Arc::new(watch::Sender::new(DriverReport::default())),
            readiness: Arc::default(),
            console: Arc::default(),
            virtio: Arc::new(virtio),
            id,
            metrics: None,
            serial: SerialOutput::default(),
            forking: None,
            self_snapshots: None,
            boot_timer: false,
        })
    }

    /// The machine, once there is one.
    pub(crate) fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// Readable when virtio devices have something to do.
    pub(crate) fn virtio_events(&self) -> &VirtioEvents {
        &self.virtio
    }

    /// Virtio devices have something to do.
    pub(crate) fn virtio_work(&mut self) {
        match &mut self.machine {
            Some(machine) => machine.virtio_work(),
            // The last words of a machine that has gone.
            None => self.virtio.discard(),
        }
    }

    /// What the guest's driver reports, for as long as there is this controller.
    pub(crate) fn reports(&self) -> watch::Receiver<DriverReport> {
        self.reports.subscribe()
    }

    /// What the guest says on its console, for as long as there is this controller.
    pub(crate) fn console(&self) -> Arc<ConsoleHistory> {
        Arc::clone(&self.console)
    }

    /// Carries out one command.
    pub(crate) fn execute(&mut self, command: Command) -> CommandResult {
        let measured = Measured::begin(&command);
        let result = self.carry_out(command);
        measured.end(&result);
        result
    }

    fn carry_out(&mut self, command: Command) -> CommandResult {
        match command {
            Command::State => Ok(Reply::State(self.state())),
            Command::Config => Ok(Reply::Config(self.vm_config())),
            Command::SetMachineConfig(config) => self.set_machine_config(config),
            Command::SetBootSource(source) => self.set_boot_source(source),
            Command::SetDevice(device) => self.set_device(device),
            Command::SetInstanceData(data) => {
                match &self.machine {
                    Some(machine) => machine.set_instance_data(data.clone()),
                    None => self.configured = true,
                }
                // Of the machine that boots again after a reboot, too.
                self.instance_data = data;
                Ok(Reply::Done)
            }
            Command::InstanceData => Ok(Reply::InstanceData(
                self.machine
                    .as_ref()
                    .map_or_else(|| self.instance_data.clone(), Machine::instance_data),
            )),
            Command::UpdateNet(id, link_up) => {
                self.with_machine("update a network interface of", |_, machine| {
                    machine.update_net(&id, link_up).map_err(refused)?;
                    Ok(Reply::Done)
                })
            }
            Command::SetLog(config) => self.set_log(&config),
            Command::SetSerial(path) => self.set_serial(path),
            Command::SetMetrics(config) => self.set_metrics(config),
            Command::FlushMetrics => self.flush_metrics(),
            Command::SetSelfSnapshot(config) => self.set_self_snapshot(config),
            Command::SelfSnapshots => Ok(self.show_self_snapshots()),
            // The event loop has it wait for the guest.
            Command::ConsoleInput(_) => Ok(Reply::Done),
            Command::PressPowerButton => {
                self.with_machine("press the power button of", |_, machine| {
                    machine.press_power_button().map_err(refused)?;
                    Ok(Reply::Done)
                })
            }
            Command::UpdateDrive(id, path) => {
                self.with_machine("update a drive of", |_, machine| {
                    machine.update_drive(&id, path).map_err(refused)?;
                    Ok(Reply::Done)
                })
            }
            Command::Start => self.start_by_command(),
            Command::Pause => self.with_machine("pause", |_, machine| {
                machine.pause().map_err(refused)?;
                Ok(Reply::Done)
            }),
            Command::Resume => self.with_machine("resume", |host, machine| {
                machine.resume(host).map_err(refused)?;
                Ok(Reply::Done)
            }),
            Command::CreateSnapshot(request) => {
                self.with_machine("take a snapshot of", |host, machine| {
                    let made = create_snapshot(host, machine, &request, AtForkPoint::No)?;
                    Ok(Reply::SnapshotCreated(made))
                })
            }
            Command::LoadSnapshot(request) => self.load_snapshot(&request),
            Command::Generation => self.with_machine("show the generation of", |_, machine| {
                machine.generation().map(Reply::Generation).map_err(refused)
            }),
            Command::NewGeneration => {
                self.with_machine("begin a new generation of", |host, machine| {
                    machine
                        .new_generation(host)
                        .map(Reply::Generation)
                        .map_err(refused)
                })
            }
        }
    }

    /// Does what no client has to wait for: removes what a crashed writer left beside a restored snapshot.
    pub(crate) fn tidy_up(&mut self) {
        if self.machine.is_none() && self.spare.is_none() && self.starting.is_none() {
            // A load or start has failed and used the empty VM up. If this fails, the next attempt tells.
            self.spare = self.host.empty_vm().ok();
            vmgenie_machine::virtio::kinds::forget_metrics();
        }
        if let Some((state, memory)) = self.restored_from.take() {
            if let Some(machine) = &self.machine {
                machine.keep_memory_out_of_core_dumps();
            }
            vmgenie_snapshot::sweep(&state, &memory);
        }
    }

    fn state(&self) -> VmState {
        match &self.machine {
            None => VmState::NotStarted,
            Some(machine) if machine.is_running() => VmState::Running,
            Some(_) => VmState::Paused,
        }
    }

    fn with_machine(
        &mut self,
        verb: &str,
        action: impl FnOnce(&Host, &mut Machine) -> CommandResult,
    ) -> CommandResult {
        match &mut self.machine {
            Some(machine) => action(&self.host, machine),
            None if self.starting.is_some() => Err(CommandError(format!(
                "cannot {verb} the microVM yet: it is starting, and its image is being read"
            ))),
            None => Err(CommandError(format!(
                "{NOT_BEFORE_START} Cannot {verb} the microVM: there is none yet. Start one (PUT /actions InstanceStart) \
                 or load a snapshot (PUT /snapshot/load)"
            ))),
        }
    }

    fn start_by_command(&mut self) -> CommandResult {
        self.before_start("the boot source")
            .map_err(|_| CommandError(NOT_AFTER_START.to_owned()))?;
        self.start().map_err(refused)?;
        Ok(Reply::Done)
    }

    /// Boots the machine that was configured, and lets it run; at once, or when its image has been read: [`Self::finish_start`].
    pub(crate) fn start(&mut self) -> Result<(), StartError> {
        self.boot(None)
    }

    /// Whether the machine came from a snapshot: what it had been booted from is not known.
    pub(crate) fn cannot_boot_again(&self) -> bool {
        self.boot_source.is_none()
    }

    /// Takes down a machine that will boot once more; returns its generation, which it keeps as it keeps its devices, and whether it ran.
    /// None if it cannot boot again: it came from a snapshot, and what it had been booted from is not
    /// known.
    pub(crate) fn stop_for_restart(&mut self) -> Option<LastLife> {
        self.boot_source.as_ref()?;
        let machine = self.machine.take()?;
        let generation = machine.last_generation().inspect_err(|error| {
            tracing::error!(%error, "the generation of a machine that boots again");
        });
        self.devices = machine.devices_to_keep();
        Some(LastLife {
            generation: generation.ok()?,
            ran: machine.is_running(),
        })
    }

    /// Boots once more, in the generation that [`Self::stop_for_restart`] told; at once or later, as [`Self::start`].
    pub(crate) fn start_again(&mut self, last: LastLife) -> Result<(), StartError> {
        self.boot(Some(last))
    }

    fn boot(&mut self, last: Option<LastLife>) -> Result<(), StartError> {
        let mut source = self.boot_source.clone().ok_or(StartError::NoBootSource)?;
        if let Some(root) = self.devices.root_drive() {
            source.cmdline = source.cmdline.with_root(root)?;
        }
        match boot::open_source(&source, self.config.memory_bytes()).map_err(BuildError::from)? {
            boot::Opened::Files(files) => self.boot_from(source, files, last),
            boot::Opened::Image(image) => self.read_image(source, image, last),
        }
    }

    /// Has the files of an image read in a thread of its own: a guest may have made that last, and the event loop waits for nobody.
    fn read_image(
        &mut self,
        source: BootSource,
        image: boot::Unread,
        last: Option<LastLife>,
    ) -> Result<(), StartError> {
        let (sender, files) = sync_channel(1);
        let events = self.events.try_clone()?;
        std::thread::Builder::new()
            .name("image".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                // A controller that has gone meanwhile needs no files.
                let _ = sender.send(image.read());
                events.wake();
            })?;
        self.starting = Some(Starting {
            files,
            source,
            last,
        });
        Ok(())
    }

    /// Whether a start waits for its image.
    pub(crate) fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// Goes on with a start whose image has been read; none if there is no such start.
    pub(crate) fn finish_start(&mut self) -> Option<Result<(), StartError>> {
        let files = match self.starting.as_ref()?.files.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Ok(files) => files.map_err(|error| StartError::from(BuildError::from(error))),
            // Its thread has panicked.
            Err(gone) => Err(StartError::Io(std::io::Error::other(gone))),
        };
        let Starting { source, last, .. } = self.starting.take()?;
        Some(files.and_then(|files| self.boot_from(source, files, last)))
    }

    fn boot_from(
        &mut self,
        source: BootSource,
        files: boot::Files,
        last: Option<LastLife>,
    ) -> Result<(), StartError> {
        let vm = self.take_vm()?;
        let generation = last.as_ref().map(|last| &last.generation);
        let boot_timer = self.boot_timer.then(boot_timer::begun_now);
        let io = MachineIo {
            boot_timer,
            ..self.io()?
        };
        let mut machine = Machine::boot(
            &self.host,
            vm,
            self.config,
            &self.devices,
            (&source, files),
            generation,
            io,
        )?;
        machine.set_instance_data(self.instance_data.clone());
        machine.allow_self_fork(self.self_snapshots.is_some());
        if last.as_ref().is_none_or(|last| last.ran) {
            machine.resume(&self.host)?;
        }
        self.machine = Some(machine);
        Ok(())
    }

    fn take_vm(&mut self) -> Result<VmFd, HostError> {
        self.spare.take().map_or_else(|| self.host.empty_vm(), Ok)
    }

    fn io(&mut self) -> std::io::Result<MachineIo> {
        Ok(MachineIo {
            console: self.serial.open()?.with_history(self.console()),
            events: self.events.try_clone()?,
            reports: Arc::clone(&self.reports),
            readiness: Arc::clone(&self.readiness),
            virtio: Arc::clone(&self.virtio),
            boot_timer: None,
        })
    }
}

/// The whole chain of an error, as the client is told it.
fn refused(error: impl std::error::Error + 'static) -> CommandError {
    CommandError(report(&error))
}

#[cfg(test)]
#[path = "nets_test.rs"]
mod nets_tests;
