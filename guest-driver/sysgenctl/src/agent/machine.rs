//! The agent itself: what it has and what it knows.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use serde_json::Value;
use sysgenid::{ForkRequest, ReadyError, RoleError};

use super::contracts::Contract;
use super::cycle::Resumed;
use super::error::AgentError;
use super::freezer::{FreezeError, Freezer};
use super::group::Groups;
use super::signals::Signals;
use super::source::Source;
use super::state::{self, Mark};
use crate::args::AgentArgs;
use crate::output::{Log, report};

/// When to say again what the kernel could not hear yet.
pub(super) const SOON: Duration = Duration::from_millis(50);

pub(super) struct Agent<'a, S> {
    pub(super) args: &'a AgentArgs,
    pub(super) log: Log,
    pub(super) signals: Signals,
    pub(super) groups: Option<Groups>,
    pub(super) freezer: Result<Freezer, FreezeError>,
    pub(super) watcher: S,
    /// What takes part beside the hooks, in the order in which programs go on.
    pub(super) contracts: Vec<Box<dyn Contract>>,
    /// Set while services are quiesced.
    pub(super) mark: Mark,
    /// Hooks that others have defined may have been told to hold something, and not yet to let go.
    pub(super) held: Cell<bool>,
    /// Whom `resume.d` was run for last, if it has not succeeded.
    pub(super) unresumed: Option<Resumed>,
    /// The counter that was acknowledged last.
    pub(super) old: u32,
    /// The hooks of that generation have succeeded, or it is the one of the boot.
    pub(super) nothing_missed: bool,
    /// No generation from before the watcher was opened is left to be handled.
    pub(super) caught_up: bool,
    /// The host was told that this machine is ready in the generation that was acknowledged last.
    pub(super) told: bool,
    /// Whether requests of the host come to this agent.
    pub(super) part: Part,
    /// The request that was answered last: it may still be there for an instant.
    pub(super) answered: Option<NonZeroU32>,
}

/// Whether an agent has the role to which the host's requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It was not asked for yet.
    Wanted,
    Taken,
    /// Another agent has it, who may end.
    Busy,
    /// It cannot be had.
    Without,
}

/// A request of the host, and until when it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) ticket: NonZeroU32,
    limit: Duration,
    deadline: Instant,
}

impl Asked {
    pub(super) fn new(request: ForkRequest) -> Self {
        // One that ends later than the clock can count never does while a machine lives.
        const LONG: Duration = Duration::from_secs(1 << 32);
        let limit = request.limit.min(LONG);
        Self {
            ticket: request.ticket,
            limit,
            deadline: Instant::now() + limit,
        }
    }

    /// What is kept of the host's time for ending a hook, freezing and the answer.
    pub(super) fn reserve(&self) -> Duration {
        (self.limit / 4).min(Duration::from_secs(2))
    }

    /// Until when hooks may run and programs may park.
    pub(super) fn quiesced_by(&self) -> Instant {
        self.deadline
            .checked_sub(self.reserve())
            .unwrap_or(self.deadline)
    }

    /// How long hooks may still run and programs may park.
    pub(super) fn left_to_quiesce(&self) -> Duration {
        self.quiesced_by().saturating_duration_since(Instant::now())
    }

    /// How long the freezing may take at most.
    pub(super) fn left_to_freeze(&self) -> Duration {
        let by = self.deadline.checked_sub(self.reserve() / 4);
        let by = by.unwrap_or(self.deadline);
        by.saturating_duration_since(Instant::now())
    }
}

impl<'a, S: Source> Agent<'a, S> {
    /// An agent that has acknowledged the generation `old` last.
    pub(super) fn new(
        args: &'a AgentArgs,
        log: Log,
        signals: Signals,
        watcher: S,
        old: u32,
        nothing_missed: bool,
    ) -> Self {
        let mark = Mark::below(&args.run);
        Self {
            held: Cell::new(mark.is_set()),
            args,
            log,
            signals,
            groups: None,
            freezer: Err(FreezeError::NoHierarchy),
            watcher,
            contracts: Vec::new(),
            mark,
            unresumed: None,
            old,
            nothing_missed,
            caught_up: false,
            told: false,
            part: Part::Wanted,
            answered: None,
        }
    }

    pub(super) fn with_groups(self, groups: Option<Groups>) -> Self {
        Self { groups, ..self }
    }

    pub(super) fn with_freezer(self, freezer: Result<Freezer, FreezeError>) -> Self {
        Self { freezer, ..self }
    }

    pub(super) fn with_contracts(self, contracts: Vec<Box<dyn Contract>>) -> Self {
        Self { contracts, ..self }
    }

    /// Takes the role to which the host's requests come. Without it, all else goes on.
    pub(super) fn take_role(&mut self) {
        let (part, error) = match self.watcher.be_agent() {
            Ok(()) => {
                self.part = Part::Taken;
                return;
            }
            // The other one may end.
            Err(error @ RoleError::Busy) => (Part::Busy, report(&error)),
            Err(error) => (Part::Without, report(&error)),
        };
        if self.part == part {
            return;
        }
        self.part = part;
        let text = format!("no snapshot that the host asks for will wait for hooks: {error}");
        self.log.say("not-asked", [("error", error.into())], &text);
    }

    /// Tells the host that all hooks for `generation` have succeeded.
    pub(super) fn tell_host(&mut self, generation: u32) -> Result<(), AgentError> {
        if self.told {
            return Ok(());
        }
        let fields = [("generation", Value::from(generation))];
        let mut said = self.watcher.ready(generation);
        while matches!(said, Err(ReadyError::Unfinished(_))) {
            if self.signals.comes_within(SOON) {
                // The next agent says it.
                return Ok(());
            }
            said = self.watcher.ready(generation);
        }
        match said {
            Ok(()) => {
                self.told = true;
                let text = format!("generation {generation}: the host was told");
                self.log.say("ready", fields, &text);
                Ok(())
            }
            // The loop finds the other generation.
            Err(ReadyError::Stale(_)) => Ok(()),
            Err(error @ (ReadyError::NotPermitted | ReadyError::Unsupported)) => {
                let text = format!("generation {generation}: the host was not told: {error}");
                self.log.say("not-ready", fields, &text);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whom `resume.d` has to be run for, if services may still be quiesced. A mark alone is a former agent's.
    pub(super) fn left_quiesced(&self) -> Option<Resumed> {
        let marked = || self.mark.is_set().then_some(Resumed::CalledOff);
        self.unresumed.or_else(marked)
    }

    pub(super) fn save(&self, generation: u32) -> Result<(), AgentError> {
        match &self.args.state {
            Some(path) => state::save(path, generation),
            None => Ok(()),
        }
    }
}

pub(super) fn milliseconds(duration: Duration) -> Value {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .into()
}
