//! PUT `/generation/wait`: waits until the guest has adapted to its generation.
//!
//! What the guest's driver reports comes here straight from its device, so that a wait costs the
//! controller two short questions, and other requests nothing. A wait ends with an answer, at its
//! deadline, with the machine, or when its client is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{Semaphore, TryAcquireError};
use vmgenie_api::limits::MAX_WAITS;
use vmgenie_api::wire::{GenerationWait, GenerationWaited};

use super::convert::{Checked, missing, waited};
use super::fault::ApiFault;
use crate::controller::command::{Command, ControllerHandle, Reply, VmState};

/// How often to look whether the client is still there.
const CLIENT_CHECK: Duration = Duration::from_millis(100);

/// The connection that a request came over.
#[derive(Debug, Clone)]
pub(super) struct Peer(Arc<OwnedFd>);

impl Peer {
    /// The peer of `connection`; none if there are no more file descriptors, so that nobody can tell when it goes.
    pub(super) fn of(connection: impl AsFd) -> Option<Self> {
        let fd = connection.as_fd().try_clone_to_owned().ok()?;
        Some(Self(Arc::new(fd)))
    }

    /// Whether the peer has closed its end. One that has only said that it will send no more still waits for its answer.
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&*self.0, PollFlags::empty())];
        let looked = poll(&mut fds, Some(&Timespec::default()));
        looked.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

/// Returns when the client has gone.
pub(super) async fn gone(peer: Option<&Peer>) {
    loop {
        tokio::time::sleep(CLIENT_CHECK).await;
        if peer.is_some_and(Peer::is_gone) {
            return;
        }
    }
}

/// Waits for what `wanted` says. `places` are the waits that there may be.
pub(super) async fn wait(
    handle: &ControllerHandle,
    places: &Semaphore,
    wanted: &GenerationWait,
    peer: Option<&Peer>,
) -> Result<GenerationWaited, ApiFault> {
    let begun = Instant::now();
    let timeout: Duration = wanted.checked()?;
    let _place = places.try_acquire().map_err(|refused| match refused {
        TryAcquireError::NoPermits | TryAcquireError::Closed => ApiFault::TooManyWaits(MAX_WAITS),
    })?;
    let mut reports = handle.reports();
    let Reply::Generation(generation) = handle.call(Command::Generation).await? else {
        return Err(ApiFault::UnexpectedReply("the question for the generation"));
    };
    if !missing(wanted, &generation.driver).is_empty()
        && handle.call(Command::State).await? == Reply::State(VmState::Paused)
    {
        return Err(ApiFault::WaitWhilePaused);
    }
    let deadline = tokio::time::sleep_until((begun + timeout).into());
    tokio::select! {
        found = reports.wait_for(|report| missing(wanted, report).is_empty()) => match found {
            Ok(report) => Ok(waited(wanted, *report, begun.elapsed())),
            Err(_) => Err(ApiFault::MachineGone),
        },
        () = deadline => {
            let report = *handle.reports().borrow();
            Ok(waited(wanted, report, begun.elapsed()))
        }
        () = gone(peer) => Err(ApiFault::ClientGone),
    }
}

#[cfg(test)]
#[path = "wait_test.rs"]
mod tests;
