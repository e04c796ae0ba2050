//! What the agent needs of a watcher: a trait, so that its tests can be one.

use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::time::Duration;

use sysgenid::{
    AcknowledgeError, ForkPoint, ForkPointError, ForkRequest, IdentityError, Parked, ParkedError,
    Prepared, ReadyError, Reason, RefuseError, RequestError, Role, RoleError, WaitError, Watcher,
    WatchersError,
};

pub(super) trait Source: AsFd {
    fn current(&self) -> Result<u32, WaitError>;
    fn try_next(&self) -> Result<Option<u32>, WaitError>;
    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError>;
    fn wait_for_watchers(&self, limit: Duration) -> Result<(), WatchersError>;
    fn ready(&self, generation: u32) -> Result<(), ReadyError>;
    fn identity(&self, generation: u32) -> Result<(), IdentityError>;
    /// Takes the role of the agent.
    fn be_agent(&self) -> Result<(), RoleError>;
    fn request(&self) -> Result<Option<ForkRequest>, RequestError>;
    fn wait_parked(&self, limit: Duration) -> Result<Parked, ParkedError>;
    fn fork_point(
        &self,
        ticket: NonZeroU32,
        prepared: Prepared,
        limit: Duration,
    ) -> Result<ForkPoint, ForkPointError>;
    fn refuse(&self, ticket: NonZeroU32, reason: Reason) -> Result<(), RefuseError>;
}

impl Source for Watcher {
    fn current(&self) -> Result<u32, WaitError> {
        self.current()
    }

    fn try_next(&self) -> Result<Option<u32>, WaitError> {
        self.try_next()
    }

    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError> {
        self.acknowledge(generation)
    }

    fn wait_for_watchers(&self, limit: Duration) -> Result<(), WatchersError> {
        self.wait_for_watchers(Some(limit))
    }

    fn ready(&self, generation: u32) -> Result<(), ReadyError> {
        self.ready(generation)
    }

    fn identity(&self, generation: u32) -> Result<(), IdentityError> {
        self.identity(generation)
    }

    fn be_agent(&self) -> Result<(), RoleError> {
        self.set_role(Role::Agent)
    }

    fn request(&self) -> Result<Option<ForkRequest>, RequestError> {
        self.request()
    }

    fn wait_parked(&self, limit: Duration) -> Result<Parked, ParkedError> {
        self.wait_parked(limit)
    }

    fn fork_point(
        &self,
        ticket: NonZeroU32,
        prepared: Prepared,
        limit: Duration,
    ) -> Result<ForkPoint, ForkPointError> {
        self.fork_point(ticket, prepared, Some(limit))
    }

    fn refuse(&self, ticket: NonZeroU32, reason: Reason) -> Result<(), RefuseError> {
        self.refuse(ticket, reason)
    }
}
