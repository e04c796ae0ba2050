//! Learn that this machine has been cloned or restored.
//!
//! A virtual machine that is restored from a snapshot goes on with yesterday's random numbers,
//! identifiers, session keys and counters; restored twice, two machines share them. The device
//! `/dev/sysgenid` keeps a *generation counter*, which moves whenever the machine's life stops
//! being unique. This crate reads it.
//!
//! | what you are | what you use |
//! |---|---|
//! | a thread that can sleep | [`Watcher::wait`], [`Watcher::acknowledge`] |
//! | an event loop | [`Watcher`] as [`AsFd`](std::os::fd::AsFd), [`Watcher::try_next`], [`Watcher::acknowledge`] |
//! | a library on a hot path | [`Counter::changed`] |
//! | who decides that the machine may work again | [`Watcher::wait_for_watchers`] |
//! | who must have nothing in flight when the machine is cloned | [`Watcher::park`] |
//! | the machine's agent | [`Watcher::request`], [`Watcher::fork_point`], [`Watcher::ready`] |
//! | a program that clones its machine | [`Watcher::fork_self`] |
//!
//! # What is safe
//! **Nothing here makes a machine safe that is snapshotted at any time.** A program can
//! check the counter, make a key, and be snapshotted with the key in a socket's buffer. What is safe is
//! a cycle: *quiesce* (everything comes to rest), *snapshot*, *restore*, *adapt* (everyone
//! acknowledges), *un-quiesce*. Where the host asks first, [`Watcher::park`] and [`Watcher::fork_point`]
//! are the first two steps of it. The documentation of each call says which race it closes and
//! which it does not.
//!
//! The driver that this crate is made with looks at the hypervisor's page in every system call, so none
//! answers for the old generation, even when the interrupt has not arrived. Mapped memory is that
//! prompt on vmgenie alone. Older drivers know of a generation only after its interrupt.
//!
//! # Example
//! ```no_run
//! use sysgenid::{AcknowledgeError, Watcher};
//!
//! # fn adapt() {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let watcher = Watcher::open()?;
//! loop {
//!     let generation = watcher.wait()?;
//!     adapt();
//!     match watcher.acknowledge(generation) {
//!         // Another generation has begun: the next wait returns at once.
//!         Ok(()) | Err(AcknowledgeError::Stale(_)) => {}
//!         Err(error) => return Err(error.into()),
//!     }
//! }
//! # }
//! ```
//!
//! # Numberings
//! There are two incompatible numberings of the device's calls, see [`Abi`]. Opening finds out which
//! one a device has, without changing anything.

mod abi;
mod counter;
mod error;
mod fork;
mod watcher;

pub use abi::Abi;
pub use counter::Counter;
pub use error::{
    AcknowledgeError, ForkPointError, IdentityError, OpenError, ParkError, ParkedError, ReadyError,
    RefuseError, RequestError, RoleError, TrackingError, TriggerError, WaitError, WatchersError,
};
pub use fork::{ForkPoint, ForkRequest, Outcome, Parked, Prepared, Reason, Role};
pub use watcher::{Options, Watcher};

/// The program in the README, which has to compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Where the device is.
pub const DEVICE: &str = "/dev/sysgenid";
