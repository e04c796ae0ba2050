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
    /// The kernel has not done yet what it does late in a generation, or a signal handler ran: say it
    /// again soon.
    #[error("the kernel is not through with generation {0} yet")]
    Unfinished(u32),
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

/// Why a file did not get its role at a fork point.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoleError {
    /// The driver is an older one, which knows no fork points.
    #[error("this driver knows no fork points")]
    Unsupported,
    /// Another open file is the machine's agent.
    #[error("there is an agent already")]
    Busy,
    /// The process has neither `CAP_CHECKPOINT_RESTORE` nor `CAP_SYS_ADMIN` in the initial user
    /// namespace, which an agent needs.
    #[error(
        "only who has CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace may be \
         the agent"
    )]
    NotPermitted,
    /// Anything else.
    #[error("could not take a role at fork points")]
    Os(#[source] io::Error),
}

/// Why the host's request could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The file is not the agent's: [`Watcher::set_role`](crate::Watcher::set_role).
    #[error("this file is not the agent's")]
    NotAgent,
    /// The driver is an older one, which knows no fork points.
    #[error("this driver knows no fork points")]
    Unsupported,
    /// Anything else.
    #[error("could not look whether the host asks for a snapshot")]
    Os(#[source] io::Error),
}

/// Why a participant is not parked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParkError {
    /// A signal handler ran. Nobody waits for this file now: park again, or go on.
    #[error("a signal interrupted the parking")]
    Interrupted,
    /// The file is not a participant's: [`Watcher::set_role`](crate::Watcher::set_role).
    #[error("this file is not a participant's")]
    NotParticipant,
    /// The driver is an older one, which knows no fork points.
    #[error("this driver knows no fork points")]
    Unsupported,
    /// Anything else.
    #[error("could not park")]
    Os(#[source] io::Error),
}

/// Why waiting for the participants ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParkedError {
    /// The time is over and some participant has not parked.
    #[error("some participant had not parked after {0:?}")]
    TimedOut(Duration),
    /// The request was withdrawn meanwhile, or there was none.
    #[error("there is no request")]
    NoRequest,
    /// A signal handler ran.
    #[error("a signal interrupted the wait for the participants")]
    Interrupted,
    /// The file is not the agent's: [`Watcher::set_role`](crate::Watcher::set_role).
    #[error("this file is not the agent's")]
    NotAgent,
    /// The driver is an older one, which knows no fork points.
    #[error("this driver knows no fork points")]
    Unsupported,
    /// Anything else.
    #[error("could not wait for the participants")]
    Os(#[source] io::Error),
}

/// Why there was no fork point. Whatever it is: the machine is the same, and no snapshot was taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForkPointError {
    /// The request was withdrawn, or is another one by now.
    #[error("the host's request is another one by now, or over")]
    Stale,
    /// The host gave up while the CPUs stood.
    #[error("the host has called it off")]
    Cancelled,
    /// The host did not answer in time.
    #[error("the host did not answer while the CPUs stood still")]
    TimedOut,
    /// Another one is under way, or some participant that was said to be parked is not.
    #[error("another fork point is under way, or some participant has not parked")]
    Busy,
    /// The kernel's random number generator is not ready yet, or cannot be reseeded.
    #[error("the kernel's random number generator is not ready, or cannot be reseeded")]
    NotReady,
    /// The kernel (`PREEMPT_RT`), the hypervisor or the driver has no fork points; or the hypervisor lets
    /// nobody ask for one.
    #[error(
        "this kernel, hypervisor or driver has no fork points, or none that a program may ask for"
    )]
    Unsupported,
    /// The host does not want the snapshot that this program asks for.
    #[error("the host refuses: there were too many snapshots, or one too short a time ago")]
    Refused,
    /// The file is not the agent's, or the process has lost its capability.
    #[error("this file is not the agent's, or the process lacks the capability")]
    NotPermitted,
    /// Anything else.
    #[error("could not have the CPUs stand still")]
    Os(#[source] io::Error),
}

/// Why the word that the identity is a new one was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It is not the current generation. Most likely another one began meanwhile: adapt again.
    #[error("generation {0} is not the current one")]
    Stale(u32),
    /// The file is not the agent's, or the process has lost its capability.
    #[error("this file is not the agent's, or the process lacks the capability")]
    NotPermitted,
    /// The driver is an older one, which tells no host of it.
    #[error("this driver does not know the identity stage")]
    Unsupported,
    /// The kernel has not done yet what it does late in a generation, or a signal handler ran: say it
    /// again soon.
    #[error("the kernel is not through with generation {0} yet")]
    Unfinished(u32),
    /// Anything else.
    #[error("could not tell that generation {generation} has an identity of its own")]
    Os {
        /// The generation.
        generation: u32,
        /// What the OS said.
        source: io::Error,
    },
}

/// Why a refusal was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefuseError {
    /// The request was withdrawn, or is another one by now.
    #[error("the host's request is another one by now, or over")]
    Stale,
    /// The file is not the agent's: [`Watcher::set_role`](crate::Watcher::set_role).
    #[error("this file is not the agent's")]
    NotAgent,
    /// The driver is an older one, which knows no fork points.
    #[error("this driver knows no fork points")]
    Unsupported,
    /// Anything else.
    #[error("could not refuse the host's request")]
    Os(#[source] io::Error),
}
