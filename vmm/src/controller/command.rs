//! The commands through which the API reaches the machine, and the handle that sends them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use vmgenie_devices::sgen::DriverReport;
use vmgenie_machine::config::{BootSource, DeviceId, InstanceData, MachineConfig};
use vmgenie_machine::console::history::ConsoleHistory;
use vmgenie_machine::readiness::Readiness;
use vmgenie_machine::request::{CreateSnapshot, Generation, LoadSnapshot};
use vmgenie_machine::virtio::kinds::{DeviceConfig, DevicesConfig};
use vmm_sys_util::eventfd::EventFd;

use crate::logging::LogConfig;
use crate::metrics::MetricsConfig;

/// How many commands may wait for the event loop; who has another one waits for room.
const MAX_WAITING: usize = 128;

/// One request to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// What state is the microVM in? Always answered, with [`Reply::State`].
    State,
    /// The whole configuration. Always answered, with [`Reply::Config`].
    Config,
    /// Sets vCPUs and memory; before the start only.
    SetMachineConfig(MachineConfig),
    /// Sets kernel, initrd and command line; before the start only. Whether the files are there and readable is checked.
    SetBootSource(BootSource),
    /// Adds or replaces a device of any kind; before the start only.
    SetDevice(DeviceConfig),
    /// Sets the string by which the guest knows who it is; before the start or later.
    SetInstanceData(InstanceData),
    /// That string. Always answered, with [`Reply::InstanceData`].
    InstanceData,
    /// Another file behind a drive of a machine; none if the file is opened anew.
    UpdateDrive(DeviceId, Option<PathBuf>),
    /// Plugs the cable of a machine's network interface in or out; with none, asks whether there is such an interface.
    UpdateNet(DeviceId, Option<bool>),
    /// Changes the log; before the start only.
    SetLog(LogConfig),
    /// Where the guest's serial console goes, standard output if nowhere else; before the start or a restore only.
    SetSerial(Option<PathBuf>),
    /// Opens the file for metrics, once; before the start only.
    SetMetrics(MetricsConfig),
    /// Lets the guest ask for snapshots of itself; before the start or a restore only.
    SetSelfSnapshot(SelfSnapshotConfig),
    /// What it may have and has had. Always answered, with [`Reply::SelfSnapshots`].
    SelfSnapshots,
    /// Writes a line of metrics; once there is a machine.
    FlushMetrics,
    /// Types on the machine's console. Answered when the guest has taken it all, however long that takes.
    ConsoleInput(Vec<u8>),
    /// Presses the machine's power button.
    PressPowerButton,
    /// Boots the machine; once.
    Start,
    /// Stops all vCPUs. A paused machine may be paused again.
    Pause,
    /// Lets all vCPUs go on. A running machine may be resumed again.
    Resume,
    /// Writes a full snapshot of a paused machine, or of one that it may pause.
    CreateSnapshot(CreateSnapshot),
    /// Restores a snapshot into a VMM that has nothing configured.
    LoadSnapshot(LoadSnapshot),
    /// The generation. Answered with [`Reply::Generation`] once there is a machine.
    Generation,
    /// Begins a new generation on a running or paused machine; answered with [`Reply::Generation`].
    NewGeneration,
}

/// What the controller answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// The state of the microVM.
    State(VmState),
    /// The configuration.
    Config(VmConfig),
    /// The generation.
    Generation(Generation),
    /// The string by which the guest knows who it is.
    InstanceData(InstanceData),
    /// A snapshot was written.
    SnapshotCreated(SnapshotCreated),
    /// What the guest may have of snapshots of itself, if it may, and those that were taken.
    SelfSnapshots(Option<SelfSnapshotConfig>, Vec<SelfSnapshot>),
}

/// The states of a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// Nothing runs yet.
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
}

/// The configuration as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// What is booted; none before it was set and after a restore.
    pub boot_source: Option<BootSource>,
    /// The virtio devices.
    pub devices: DevicesConfig,
}

/// What the host lets its guest have of snapshots of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfSnapshotConfig {
    /// Where the snapshots go, each into a directory of its own that is named by its number, from 1 on.
    pub directory: PathBuf,
    /// How many there may be, in all lives of this process's machine.
    pub count: u32,
    /// How long it takes at least from one request that was granted to the next.
    pub interval: Duration,
    /// How long the guest may take to stand still.
    pub quiesce: Duration,
}

/// One that was taken at the guest's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfSnapshot {
    /// The name of its directory.
    pub number: u32,
    /// What the guest called it.
    pub tag: u32,
}

/// What writing a snapshot took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotCreated {
    /// How long the state and the memory took to be copied, while the vCPUs stood still.
    pub standstill: Duration,
    /// How long everything took, syncing and renaming included.
    pub total: Duration,
    /// How many bytes of guest memory were written.
    pub memory_bytes: u64,
    /// How the guest took part, if it was asked to.
    pub cooperation: Option<Cooperation>,
}

/// How a guest took part in its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperation {
    /// How the snapshot was taken.
    pub how: How,
    /// Why the guest did not take part.
    pub why_plain: Option<&'static str>,
    /// From the request to the answer of the guest's driver.
    pub heard_after: Option<Duration>,
    /// From the request to the standstill of all CPUs.
    pub stopped_after: Option<Duration>,
    /// Who was waited for.
    pub waited_for: WaitedFor,
}

/// How a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// At the fork point, and the guest's agent had made its programs quiet.
    ForkPoint,
    /// At the fork point, by the guest's kernel alone.
    KernelOnly,
    /// Without the guest.
    Plain,
}

/// Who was waited for before the guest stood still, by the guest's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitedFor {
    /// The agent.
    pub agent: bool,
    /// Its quiesce hooks.
    pub hooks: bool,
    /// The programs that it froze.
    pub frozen: bool,
    /// The programs that take part by themselves, and parked.
    pub parked: bool,
}

/// Why a command was refused or failed: the message for the client, which says what was wrong and what to do.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct CommandError(pub String);

/// The answer to one command.
pub type CommandResult = Result<Reply, CommandError>;

/// A command and where its answer goes.
#[derive(Debug)]
pub struct Envelope {
    /// The command.
    pub command: Command,
    /// Where the answer goes. A client that no longer waits is no error.
    pub answer: oneshot::Sender<CommandResult>,
    /// Its place among those that wait.
    pub place: OwnedSemaphorePermit,
}

/// Sends commands to the controller and wakes its event loop.
#[derive(Debug)]
pub struct ControllerHandle {
    sender: Sender<Envelope>,
    /// A client that comes, types and leaves does not fill the memory while the event loop is at work.
    places: Arc<Semaphore>,
    wake: EventFd,
    reports: watch::Receiver<DriverReport>,
    console: Arc<ConsoleHistory>,
    readiness: Arc<Readiness>,
}

impl ControllerHandle {
    /// Makes a handle and the receiving end; `wake` becomes readable when a command has been sent, `reports` has what the guest's
    /// driver reports, and `console` what the guest says.
    pub fn new(
        wake: EventFd,
        reports: watch::Receiver<DriverReport>,
        console: Arc<ConsoleHistory>,
    ) -> (Self, Receiver<Envelope>) {
        let (sender, receiver) = channel();
        let handle = Self {
            sender,
            places: Arc::new(Semaphore::new(MAX_WAITING)),
            wake,
            reports,
            console,
            readiness: Arc::default(),
        };
        (handle, receiver)
    }

    /// The reports of the guest's driver, without a detour over the controller. They end with it.
    pub fn reports(&self) -> watch::Receiver<DriverReport> {
        self.reports.clone()
    }

    /// Another handle to the same controller.
    ///
    /// # Errors
    /// There are no more file descriptors.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            sender: self.sender.clone(),
            places: Arc::clone(&self.places),
            wake: self.wake.try_clone()?,
            reports: self.reports.clone(),
            console: Arc::clone(&self.console),
            readiness: Arc::clone(&self.readiness),
        })
    }

    /// With this in place of what is never ready.
    pub fn with_readiness(mut self, readiness: Arc<Readiness>) -> Self {
        self.readiness = readiness;
        self
    }

    /// How far the guest has come, without a detour over the controller.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What the guest says on its console, without a detour over the controller.
    pub fn console(&self) -> &Arc<ConsoleHistory> {
        &self.console
    }

    /// Sends one command and waits for its answer.
    pub async fn call(&self, command: Command) -> CommandResult {
        let (answer, answered) = oneshot::channel();
        let gone = || CommandError("the microVM is shutting down".to_owned());
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| gone())?;
        let envelope = Envelope {
            command,
            answer,
            place,
        };
        self.sender.send(envelope).map_err(|_| gone())?;
        self.wake.write(1).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// The same for a client that may go meanwhile: the controller then sees that nobody waits for the answer.
    pub async fn call_for(
        &self,
        command: Command,
        client_goes: impl Future<Output = ()>,
    ) -> CommandResult {
        tokio::select! {
            result = self.call(command) => result,
            () = client_goes => {
                // The loop is woken, to look. Where that fails it has ended.
                let _ = self.wake.write(1);
                Err(CommandError("the client has gone".to_owned()))
            }
        }
    }
}
