//! The fork point, from the host's side: the guest is asked to stand still in its kernel, and told afterwards that it goes on as itself.

use std::time::Duration;

use thiserror::Error;
use vmgenie_devices::pm::PmError;
use vmgenie_devices::random::{self, RandomError};
use vmgenie_devices::sgen::{AskError, ForkProgress, ForkStage, SysGen};

use super::Machine;
use crate::generation::tell_driver;

/// Why a guest could not be asked for a fork point. Nothing has been asked then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ForkError {
    /// Nobody who could answer, or a request is under way.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A ticket.
    #[error("could not make a ticket for the fork point")]
    Ticket(#[from] RandomError),
    /// The event.
    #[error("could not tell the guest that a fork point is asked for")]
    Event(#[from] PmError),
}

impl Machine {
    /// Asks the guest to stand still in its kernel within `limit`. The event loop is woken at each step that the guest takes:
    /// [`Self::fork_progress`]. *vCPUs:* running, or nobody answers.
    ///
    /// # Errors
    /// [`ForkError`].
    pub fn ask_for_fork(&mut self, limit: Duration) -> Result<(), ForkError> {
        self.begin_fork(limit, SysGen::ask_for_fork)
    }

    /// Lets the guest ask for snapshots of itself, or not; a machine that was built or restored does not.
    pub fn allow_self_fork(&mut self, allowed: bool) {
        self.devices.generation.sysgen().allow_self_fork(allowed);
    }

    /// The tag under which the guest asks for a snapshot of itself, if it waits for an answer. It is the guest's word, for people to read.
    pub fn self_asked(&self) -> Option<u32> {
        self.devices.generation.sysgen().self_asked()
    }

    /// Agrees to that: as [`Self::ask_for_fork`], where the program that has asked takes part for all.
    ///
    /// # Errors
    /// [`ForkError`]. The guest waits still.
    pub fn grant_self_fork(&mut self, limit: Duration) -> Result<(), ForkError> {
        self.begin_fork(limit, SysGen::grant_self_fork)
    }

    /// Refuses it; the guest is told. False if it does not ask.
    pub fn refuse_self_fork(&mut self) -> bool {
        let asked = self.devices.generation.sysgen().refuse_self_fork();
        if asked && let Err(error) = tell_driver(self.devices.shared_pm()) {
            tracing::warn!(%error, "could not tell the guest that there will be no snapshot of it");
        }
        asked
    }

    fn begin_fork(
        &mut self,
        limit: Duration,
        begin: fn(&mut SysGen, u32, Duration) -> Result<(), AskError>,
    ) -> Result<(), ForkError> {
        let ticket = {
            let mut sysgen = self.devices.generation.sysgen();
            let ticket = another_ticket(sysgen.fork_ticket())?;
            begin(&mut sysgen, ticket, limit)?;
            ticket
        };
        if let Err(error) = tell_driver(self.devices.shared_pm()) {
            self.devices.generation.sysgen().withdraw_fork();
            return Err(error.into());
        }
        tracing::info!(ticket, ?limit, "the guest was asked for a fork point");
        Ok(())
    }

    /// How far the guest has come.
    pub fn fork_progress(&self) -> ForkProgress {
        self.devices.generation.sysgen().fork_progress()
    }

    /// Calls off what was asked for; the guest is told. False if nothing was under way.
    pub fn call_fork_off(&mut self) -> bool {
        let was_open = self.devices.generation.sysgen().withdraw_fork();
        if was_open && let Err(error) = tell_driver(self.devices.shared_pm()) {
            tracing::warn!(%error, "could not tell the guest that no fork point is asked for any more");
        }
        was_open
    }

    /// Whether the guest stands still at the fork point.
    pub fn is_at_fork_point(&self) -> bool {
        self.fork_progress().stage == ForkStage::Stopped
    }

    /// Tells a guest that stands still at the fork point that it goes on as itself. False if it does not stand there any more.
    pub fn end_fork_as_original(&mut self) -> bool {
        self.devices.generation.sysgen().is_original()
    }
}

/// A ticket that is not taken for the last one, and is not 0, by its low half either.
fn another_ticket(last: u32) -> Result<u32, RandomError> {
    loop {
        let mut bytes = [0; 4];
        random::fill(&mut bytes)?;
        let ticket = u32::from_le_bytes(bytes);
        if ticket as u16 != 0 && ticket as u16 != last as u16 {
            return Ok(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_differs_from_the_last_one_by_its_low_half() {
        let mut last = 0;
        for _ in 0..1000 {
            let ticket = another_ticket(last).unwrap();
            assert!(ticket as u16 != 0 && ticket as u16 != last as u16);
            last = ticket;
        }
    }
}
