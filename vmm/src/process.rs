//! One microVM process from its beginning to its end.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use event_manager::{EventManager, SubscriberOps};
use thiserror::Error;
use vmgenie_devices::throttle::Throttle;
use vmgenie_machine::config::{BootSource, MachineConfig, OnReboot};
use vmgenie_machine::events::EventSender;
use vmgenie_machine::request::LoadSnapshot;
use vmgenie_machine::virtio::VirtioEvents;
use vmgenie_machine::virtio::kinds::DevicesConfig;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::api::{self, ApiError, ApiInfo};
use crate::controller::command::{Command, ControllerHandle};
use crate::controller::console_input::{AttachedInput, ConsoleInput};
use crate::controller::descriptors::raise_limit;
use crate::controller::event_loop::EventLoop;
use crate::controller::signals::{EndSignals, ignore_file_size_signal};
use crate::controller::{Controller, Outcome, RunError};
use crate::fatal;
use crate::registry;
use crate::terminal::{self, RawMode};

/// What one process shall do.
#[derive(Debug)]
pub struct RunOptions {
    /// Where the API listens; nowhere without.
    pub api_socket: Option<PathBuf>,
    /// The longest body of a request, in bytes.
    pub body_limit: usize,
    /// Do this before all else.
    pub first: Vec<Command>,
    /// What a reboot of the guest does.
    pub on_reboot: OnReboot,
    /// Boot this at once.
    pub machine: Option<(MachineConfig, BootSource, DevicesConfig)>,
    /// Restore this at once.
    pub restore: Option<LoadSnapshot>,
    /// Standard input is the guest's console.
    pub console_input: bool,
    /// The name that `GET /` tells.
    pub id: String,
    /// A machine that boots has a boot timer.
    pub boot_timer: bool,
    /// End when standard input ends before a byte has come from it, and remove these files and directories.
    pub lifeline: Option<Vec<PathBuf>>,
}

/// How a process ended badly.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The API.
    #[error("could not serve the API")]
    Api(#[from] ApiError),
    /// All else.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl ProcessError {
    /// The process's exit status: 3 for a crashed guest, 4 for a host without a usable KVM, 5 for a guest that has not adapted in time, 1
    /// for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Api(_) => 1,
            Self::Run(error) => error.exit_code(),
        }
    }
}

/// Runs one microVM: serves the API, boots or restores what `options` name, and returns when the process shall end.
pub fn run(options: RunOptions) -> Result<Outcome, ProcessError> {
    // Before any thread starts: all inherit the mask.
    let signals = EndSignals::block().map_err(RunError::from)?;
    ignore_file_size_signal();
    raise_limit();
    let (events, machine_events) = EventSender::new().map_err(RunError::from)?;
    let mut controller = {
        let virtio = VirtioEvents::new().map_err(RunError::from)?;
        Controller::new(events, virtio, options.id.clone()).map_err(RunError::from)?
    };
    controller.set_boot_timer(options.boot_timer);
    let command_wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(RunError::from)?;
    let (handle, commands) = ControllerHandle::new(
        command_wake.try_clone().map_err(RunError::from)?,
        controller.reports(),
        controller.console(),
    );
    let handle = handle.with_readiness(controller.readiness());
    let _api = match &options.api_socket {
        Some(path) => Some(api::spawn(path, api_info(&options), handle)?),
        None => None,
    };
    // Who waits for the socket waits for nothing else.
    fatal::install();
    let _registered = registry::register(&options.id, options.api_socket.as_deref());
    warm_up();
    start(&mut controller, &options)?;
    let stdin = io::stdin();
    let console_input = options.console_input && terminal::may_read(stdin.as_fd());
    let _raw_terminal = if console_input {
        RawMode::enter(stdin.as_fd())
    } else {
        None
    };
    let mut manager = EventManager::new().map_err(RunError::EventLoop)?;
    let id = manager.add_subscriber(EventLoop {
        controller,
        commands,
        command_wake,
        machine_events,
        signals,
        pm_timer: timer()?,
        pm_complaints: Throttle::default(),
        metrics_timer: timer()?,
        writes_metrics: false,
        input: console_input.then(ConsoleInput::stdin),
        attached: AttachedInput::default(),
        lifeline: options.lifeline,
        on_reboot: options.on_reboot,
        restarting: false,
        waits_for_start: None,
        console_behind: false,
        ended: None,
    });
    // A machine that was restored already may have a gate.
    let mut patience_ms = 0;
    loop {
        manager
            .run_with_timeout(patience_ms)
            .map_err(RunError::EventLoop)?;
        let event_loop = manager.subscriber_mut(id).map_err(RunError::EventLoop)?;
        event_loop.after_turn();
        patience_ms = event_loop.patience_ms();
        if let Some(end) = event_loop.ended.take() {
            event_loop.controller.write_metrics();
            return Ok(end?);
        }
    }
}

fn timer() -> Result<TimerFd, RunError> {
    Ok(TimerFd::new().map_err(io::Error::from)?)
}

fn start(controller: &mut Controller, options: &RunOptions) -> Result<(), RunError> {
    for command in &options.first {
        controller
            .execute(command.clone())
            .map_err(RunError::Command)?;
    }
    if let Some((config, source, devices)) = &options.machine {
        let mut commands = vec![
            Command::SetMachineConfig(*config),
            Command::SetBootSource(source.clone()),
        ];
        commands.extend(devices.iter().map(Command::SetDevice));
        for command in commands {
            controller.execute(command).map_err(RunError::Command)?;
        }
        controller.start().map_err(RunError::Start)?;
    }
    if let Some(request) = &options.restore {
        controller
            .execute(Command::LoadSnapshot(request.clone()))
            .map_err(RunError::Command)?;
        if let Some(machine) = controller.machine() {
            machine.keep_memory_out_of_core_dumps();
        }
    }
    Ok(())
}

fn api_info(options: &RunOptions) -> ApiInfo {
    ApiInfo {
        id: options.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        body_limit: options.body_limit,
    }
}

/// Has the heap grow by what a restore takes, while nobody waits: each new page of it is a fault.
fn warm_up() {
    drop(std::hint::black_box(vec![1_u8; RESTORE_HEAP]));
}

/// What a restore takes of the heap, in bytes.
const RESTORE_HEAP: usize = 20 << 10;
