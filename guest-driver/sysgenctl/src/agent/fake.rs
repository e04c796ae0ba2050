//! A watcher for tests that keeps to what the driver does: up to date from the beginning, and told of what came
//! later.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::pipe::pipe;
use sysgenid::{
    AcknowledgeError, ForkPoint, ForkPointError, ForkRequest, IdentityError, Outcome, Parked,
    ParkedError, Prepared, ReadyError, Reason, RefuseError, RequestError, RoleError, WaitError,
    WatchersError,
};

use super::source::Source;

pub(super) const TICKET: NonZeroU32 = NonZeroU32::MIN;

/// What the host has the machine do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// Takes the snapshot; this is the original.
    Original,
    /// Takes the snapshot; this is the clone, in the generation of this counter.
    Clone(u32),
    /// Gives up while the CPUs stand.
    Cancels,
    /// Does not answer.
    Hangs,
}

pub(super) struct Fake {
    /// Readable while the watcher is outdated: a pipe with a byte in it.
    readable: OwnedFd,
    full: OwnedFd,
    pub(super) current: Cell<u32>,
    pub(super) acknowledged: Cell<u32>,
    /// What the host was told.
    pub(super) told: RefCell<Vec<u32>>,
    /// Generations that begin before the next acknowledgements are looked at.
    pub(super) in_between: RefCell<Vec<u32>>,
    /// One that begins at a time.
    pub(super) later: Cell<Option<(Instant, u32)>>,
    /// With the acknowledgement of this one the agent gets SIGTERM.
    last: u32,
    /// The host's request, while it stands.
    pub(super) request: Cell<Option<ForkRequest>>,
    /// When it is withdrawn.
    pub(super) withdrawn: Cell<Option<Instant>>,
    pub(super) host: Cell<Host>,
    /// How often another one is the agent.
    pub(super) others: Cell<u32>,
    pub(super) unparked: Cell<bool>,
    /// Some that need not park do not.
    pub(super) only_required: Cell<bool>,
    /// How often it turns out at the fork point that somebody who had parked has gone on.
    pub(super) gone_on: Cell<u32>,
    /// How often the agent has waited for participants with success.
    pub(super) parkings: Cell<u32>,
    /// How often the kernel is not through with the generation.
    pub(super) unfinished: Cell<u32>,
    pub(super) prepared: Cell<Option<Prepared>>,
    pub(super) refused: RefCell<Vec<Reason>>,
    pub(super) identities: RefCell<Vec<u32>>,
    /// What is noted when the CPUs stand, by those who look at the machine then.
    pub(super) at_fork: RefCell<Option<Box<dyn Fn()>>>,
    /// What the kernel does before it takes the word that the identity is a new one.
    pub(super) at_identity: RefCell<Option<Box<dyn Fn()>>>,
}

impl Fake {
    pub(super) fn new(current: u32, last: u32) -> Self {
        let (readable, full) = pipe().unwrap();
        Self {
            readable,
            full,
            current: Cell::new(current),
            acknowledged: Cell::new(current),
            told: RefCell::default(),
            in_between: RefCell::default(),
            later: Cell::new(None),
            last,
            request: Cell::new(None),
            withdrawn: Cell::new(None),
            host: Cell::new(Host::Original),
            others: Cell::new(0),
            unparked: Cell::new(false),
            only_required: Cell::new(false),
            gone_on: Cell::new(0),
            parkings: Cell::new(0),
            unfinished: Cell::new(0),
            prepared: Cell::new(None),
            refused: RefCell::default(),
            identities: RefCell::default(),
            at_fork: RefCell::default(),
            at_identity: RefCell::default(),
        }
    }

    /// The host asks, and does that when the CPUs stand.
    pub(super) fn asked(self, limit: Duration, host: Host) -> Self {
        self.request.set(Some(ForkRequest::new(TICKET, limit)));
        self.host.set(host);
        self
    }

    pub(super) fn begin(&self, generation: u32) {
        if self.current.replace(generation) == self.acknowledged.get() {
            rustix::io::write(&self.full, &[0]).unwrap();
        }
    }

    /// Takes one of what is counted down.
    fn take(counter: &Cell<u32>) -> bool {
        let left = counter.get();
        counter.set(left.saturating_sub(1));
        left > 0
    }

    /// The agent gets SIGTERM.
    pub(super) fn end(&self) {
        // SAFETY: the call takes an integer; the agent has the signal blocked in this thread.
        unsafe { libc::raise(libc::SIGTERM) };
    }
}

impl AsFd for Fake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl Source for Fake {
    fn current(&self) -> Result<u32, WaitError> {
        if let Some((when, generation)) = self.later.get()
            && when <= Instant::now()
        {
            self.later.set(None);
            self.begin(generation);
        }
        Ok(self.current.get())
    }

    fn try_next(&self) -> Result<Option<u32>, WaitError> {
        let current = self.current.get();
        Ok((current != self.acknowledged.get()).then_some(current))
    }

    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError> {
        if let Some(next) = self.in_between.borrow_mut().pop() {
            self.begin(next);
        }
        if generation != self.current.get() {
            return Err(AcknowledgeError::Stale(generation));
        }
        if self.acknowledged.replace(generation) != generation {
            rustix::io::read(&self.readable, &mut [0]).unwrap();
        }
        if generation == self.last {
            self.end();
        }
        Ok(())
    }

    fn wait_for_watchers(&self, _: Duration) -> Result<(), WatchersError> {
        Ok(())
    }

    fn ready(&self, generation: u32) -> Result<(), ReadyError> {
        if generation != self.current.get() {
            return Err(ReadyError::Stale(generation));
        }
        if Self::take(&self.unfinished) {
            return Err(ReadyError::Unfinished(generation));
        }
        self.told.borrow_mut().push(generation);
        Ok(())
    }

    fn identity(&self, generation: u32) -> Result<(), IdentityError> {
        if generation != self.current.get() {
            return Err(IdentityError::Stale(generation));
        }
        if Self::take(&self.unfinished) {
            return Err(IdentityError::Unfinished(generation));
        }
        if let Some(wait) = &*self.at_identity.borrow() {
            wait();
        }
        self.identities.borrow_mut().push(generation);
        Ok(())
    }

    fn be_agent(&self) -> Result<(), RoleError> {
        match self.request.get() {
            Some(_) if self.others.get() > 0 => {
                self.others.set(self.others.get() - 1);
                Err(RoleError::Busy)
            }
            Some(_) => Ok(()),
            // As a driver that knows no fork points.
            None => Err(RoleError::Unsupported),
        }
    }

    fn request(&self) -> Result<Option<ForkRequest>, RequestError> {
        if self
            .withdrawn
            .get()
            .is_some_and(|when| when <= Instant::now())
        {
            self.request.set(None);
        }
        Ok(self.request.get())
    }

    fn wait_parked(&self, limit: Duration) -> Result<Parked, ParkedError> {
        if self.unparked.get() {
            std::thread::sleep(limit);
            return Err(ParkedError::TimedOut(limit));
        }
        self.parkings.set(self.parkings.get() + 1);
        if self.only_required.get() {
            std::thread::sleep(limit);
            return Ok(Parked::Required);
        }
        Ok(Parked::All)
    }

    fn fork_point(
        &self,
        ticket: NonZeroU32,
        prepared: Prepared,
        _: Duration,
    ) -> Result<ForkPoint, ForkPointError> {
        if self.request.get().map(|request| request.ticket) != Some(ticket) {
            return Err(ForkPointError::Stale);
        }
        if prepared | Prepared::PARKED == prepared && Self::take(&self.gone_on) {
            return Err(ForkPointError::Busy);
        }
        self.request.set(None);
        self.prepared.set(Some(prepared));
        if let Some(look) = &*self.at_fork.borrow() {
            look();
        }
        let outcome = match self.host.get() {
            Host::Original => Outcome::Original,
            Host::Clone(generation) => {
                self.begin(generation);
                Outcome::Clone
            }
            Host::Cancels => return Err(ForkPointError::Cancelled),
            Host::Hangs => return Err(ForkPointError::TimedOut),
        };
        let now = SystemTime::now();
        Ok(ForkPoint::new(outcome, self.current.get(), now))
    }

    fn refuse(&self, ticket: NonZeroU32, reason: Reason) -> Result<(), RefuseError> {
        if self.request.take().map(|request| request.ticket) != Some(ticket) {
            return Err(RefuseError::Stale);
        }
        self.refused.borrow_mut().push(reason);
        Ok(())
    }
}
