//! What goes wrong, one type for each thing that is asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened. `NotFound`: the module is not loaded.
    #[error("could not open {path}")]
    Open {
        /// The device.
        path: PathBuf,
        /// What the OS said.
        source: io::Error,
    },
    /// The file did not answer like any version of the driver.
    #[error("{path} does not answer like a system generation ID device")]
    Unknown {
        /// The device.
        path: PathBuf,
        /// What it answered to a write of one byte; nothing if it took the byte.
        source: Option<io::Error>,
    },
    /// The counter could not be mapped.
    #[error("could not map the counter of {path}")]
    Map {
        /// The device.
        path: PathBuf,
        /// What the OS said.
        source: io::Error,
    },
    /// A file, not a device, with no room for a counter.
    #[error("could not map the counter of {path}: the file has {len} bytes, a counter needs 4")]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// Tracking could not be set as the options ask.
    #[error("could not set the tracking of {path}")]
    Tracking {
        /// The device.
        path: PathBuf,
        /// Why.
        source: TrackingError,
    },
}

/// Why a new generation could not be waited for or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// A signal handler ran. Whoever has none may wait again at once.
    #[error("a signal interrupted the wait for a new generation")]
    Interrupted,
    /// The device could not be polled.
    #[error("could not wait for a new generation")]
    Poll(#[source] io::Error),
    /// The device could not be read.
    #[error("could not read the new generation")]
    Read(#[source] io::Error),
    /// The device gave fewer than four bytes, which the driver never does.
    #[error("read {0} bytes of a generation of 4 bytes")]
    Short(usize),
}

/// Why a generation could not be acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcknowledgeError {
    /// It is not the current generation. Most likely another one began meanwhile: adapt again.
    #[error("generation {0} is not the current one")]
    Stale(u32),
    /// The device could not be written.
    #[error("could not acknowledge generation {generation}")]
    Write {
        /// The generation.
        generation: u32,
        /// What the OS said.
        source: io::Error,
    },
}

/// Why an agent's word that it has finished was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// It is not the current generation. Most likely another one began meanwhile: adapt again.
    #[error("generation {0} is not the current one")]
    Stale(u32),
    /// The process has neither `CAP_CHECKPOINT_RESTORE` nor `CAP_SYS_ADMIN` in the initial user
    /// namespace.
    #[error(
        "only who has CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace speaks \
         for the machine"
    )]
    NotPermitted,
    /// The driver is an older one, to which agents are watchers like others.
    #[error("this driver does not know agents")]
    Unsupported,
    /// Anything else.
    #[error("could not tell that this agent is ready for generation {generation}")]
    Os {
        /// The generation.
        generation: u32,
        /// What the OS said.
        source: io::Error,
    },
}

/// Why waiting for the other watchers ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchersError {
    /// The caller is itself outdated, or became so while it waited: adapt, acknowledge, wait again.
    #[error("this watcher is outdated itself: it has to adapt first")]
    Outdated,
    /// The time is over and some watcher is still outdated.
    #[error("some watcher was still outdated after {0:?}")]
    TimedOut(Duration),
    /// A signal handler ran. Without a limit only one that was not installed with `SA_RESTART`.
    #[error("a signal interrupted the wait for the watchers")]
    Interrupted,
    /// Anything else.
    #[error("could not wait for the watchers")]
    Os(#[source] io::Error),
}

/// Why a new generation could not be begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// The process has neither `CAP_CHECKPOINT_RESTORE` nor `CAP_SYS_ADMIN` in the initial user
    /// namespace.
    #[error(
        "a new generation may be begun only with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the \
         initial user namespace"
    )]
    NotPermitted,
    /// The counter is 2^32-1, and a request never makes it go backwards.
    #[error("the generation counter is at its end")]
    Exhausted,
    /// Anything else.
    #[error("could not begin a new generation")]
    Os(#[source] io::Error),
}

/// Why tracking could not be switched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackingError {
    /// The driver is the original version 5, which has no switch: every file is tracked.
    #[error("this driver cannot switch the tracking of a watcher")]
    Unsupported,
    /// Anything else.
    #[error("could not switch the tracking of this watcher")]
    Os(#[source] io::Error),
}
