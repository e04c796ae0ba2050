//! Why the agent cannot go on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use sysgenid::{AcknowledgeError, IdentityError, ReadyError, RequestError, WaitError};

use super::hooks::HooksError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AgentError {
    #[error(transparent)]
    Open(#[from] sysgenid::OpenError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    Acknowledge(#[from] AcknowledgeError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Ready(#[from] ReadyError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Hooks(#[from] HooksError),
    #[error("could not serve the runtime API at {0}")]
    Lambda(SocketAddr, #[source] io::Error),
    #[error("could not make a client for the MicroVM hooks")]
    Microvm(#[source] io::Error),
    #[error("could not mount {0}, which takes root's rights and FUSE")]
    ForkpointFile(PathBuf, #[source] io::Error),
    #[error("could not take signals from a file")]
    Signals(#[source] io::Error),
    #[error("could not wait for a generation or a signal")]
    Poll(#[source] io::Error),
    #[error("could not read the state file {0}")]
    ReadState(PathBuf, #[source] io::Error),
    #[error("the state file {0} holds no counter")]
    BadState(PathBuf),
    #[error("could not write the state file {0}")]
    WriteState(PathBuf, #[source] io::Error),
}
