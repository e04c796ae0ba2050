//! How a process ends.

use std::io;
use std::time::Duration;

use thiserror::Error;
use vmgenie_machine::HostError;
use vmgenie_machine::events::MachineEvent;
use vmgenie_machine::memory_loss::MemoryLoss;

use super::StartError;
use super::command::CommandError;

/// How a process ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest rebooted, and that ends the process.
    Rebooted,
    /// The user ended it: Ctrl-A x, SIGTERM, SIGINT or SIGHUP.
    Quit,
}

/// How a process ended badly.
#[derive(Debug, Error)]
pub enum RunError {
    /// KVM.
    #[error("this host cannot run microVMs")]
    Host(#[from] HostError),
    /// eventfd, signalfd, epoll.
    #[error("could not set up the event loop")]
    Setup(#[from] io::Error),
    /// epoll.
    #[error("the event loop failed")]
    EventLoop(#[source] event_manager::Error),
    /// The first start.
    #[error("could not start the microVM")]
    Start(#[source] StartError),
    /// The configuration or the snapshot named on the command line.
    #[error("could not start the microVM")]
    Command(#[source] CommandError),
    /// A start after a reboot.
    #[error("could not start the microVM again after its reboot")]
    Restart(#[source] StartError),
    /// The guest or KVM failed.
    #[error("the microVM has crashed: {0}")]
    Guest(MachineEvent),
    /// The guest has not adapted to its generation, and its gate says that the machine ends then.
    #[error(
        "the guest has not adapted to its generation within {limit:?}, and its gate has the machine end then; it lacks: {missing}"
    )]
    NotAdapted {
        /// How long it had.
        limit: Duration,
        /// What it lacks.
        missing: String,
    },
    /// The guest failed, and its memory has gone.
    #[error("the microVM cannot go on ({0})")]
    Memory(MachineEvent, #[source] Box<MemoryLoss>),
}

impl RunError {
    /// The process's exit status: 3 for a crashed guest, 4 for a host without a usable KVM, 5 for a guest that has not adapted in time, 1
    /// for all else.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Guest(_) => 3,
            Self::Host(_) => 4,
            Self::NotAdapted { .. } => 5,
            _ => 1,
        }
    }
}
