//! Contracts beside the hooks: by each of them programs take part that know nothing of this agent, in words
//! that they speak already.
//!
//! Before a snapshot the contracts come before `quiesce.d`, the last one first. In a new generation they
//! come after `adapt.d/service`, in the original after `resume.d`, the first one first.

#[cfg(test)]
mod contracts_test;
mod forkpoint_file;
mod lambda;
mod microvm;
mod uuid;

use std::time::{Duration, Instant};

use sysgenid::Reason;

use super::cycle::{Answer, Resumed};
use super::error::AgentError;
use super::runner::{Cut, LOOK, Runner};
use super::signals::Signals;
use crate::args::AgentArgs;
use crate::data;

/// The contracts that the command line asks for, in the order in which programs go on.
///
/// # Errors
/// When one cannot be kept at all.
pub(super) fn of(args: &AgentArgs) -> Result<Vec<Box<dyn Contract>>, AgentError> {
    let mut contracts: Vec<Box<dyn Contract>> = Vec::new();
    if let Some(path) = &args.contracts.forkpoint_file {
        let mounted = forkpoint_file::ForkpointFile::mount(path);
        let failed = |error| AgentError::ForkpointFile(path.clone(), error);
        contracts.push(Box::new(mounted.map_err(failed)?));
    }
    let lambda = &args.contracts.lambda;
    if let Some(address) = lambda.lambda {
        let served = lambda::Lambda::start(address, lambda, &args.run);
        contracts.push(Box::new(
            served.map_err(|error| AgentError::Lambda(address, error))?,
        ));
    }
    let microvm = &args.contracts.microvm;
    if let Some(address) = microvm.microvm_hooks {
        let client = microvm::Microvm::new(address, &microvm.microvm_enable, data::instance);
        contracts.push(Box::new(client.map_err(AgentError::Microvm)?));
    }
    Ok(contracts)
}

/// One contract. It keeps what it knows itself: all calls come from the agent's thread.
pub(super) trait Contract {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// Brings its programs to rest for a snapshot. Whatever this returns, [`Contract::after`] follows.
    ///
    /// # Errors
    /// The snapshot is refused then.
    fn before(&self, turn: &Turn<'_>) -> Result<(), ContractError>;

    /// The service stage of the generation `new` begins, before its hooks. Must not wait.
    fn adapting(&self, new: u32) {
        let _ = new;
    }

    /// Lets its programs go on. Called once more after an error; without [`Contract::before`] in a generation
    /// that nobody has announced, and when a former agent was ended between the two.
    ///
    /// # Errors
    /// A clone has not adapted then; an original is not cloned again before this succeeds.
    fn after(&self, outcome: Resumed, turn: &Turn<'_>) -> Result<(), ContractError>;

    /// The agent ends by a signal.
    ///
    /// # Errors
    /// Nobody can do anything about it any more.
    fn end(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        let _ = turn;
        Ok(())
    }
}

/// What a contract's turn may take.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    /// The counter now.
    pub(super) new: u32,
    /// How long this turn may take.
    pub(super) limit: Duration,
    start: Instant,
    signals: Option<&'a Signals>,
    cut: &'a dyn Fn() -> Option<Cut>,
}

/// Why a contract was not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ContractError {
    #[error("{0}")]
    Failed(String),
    #[error("not within {0:?}: {1}")]
    Hung(Duration, String),
    #[error("not begun, as no time was left")]
    NoTime,
    #[error("ended, as the agent is to end")]
    Stopped,
    #[error("ended, as another generation has begun")]
    Overtaken,
    #[error("ended, as the host has withdrawn its request")]
    Withdrawn,
}

impl<'a> Turn<'a> {
    /// A turn in the round of this runner.
    ///
    /// # Errors
    /// [`ContractError::NoTime`].
    pub(super) fn of(runner: &Runner<'a>) -> Result<Self, ContractError> {
        let start = Instant::now();
        let left = |deadline: Instant| deadline.saturating_duration_since(start);
        let limit = match runner.deadline.map(left) {
            Some(Duration::ZERO) => return Err(ContractError::NoTime),
            Some(left) => left.min(runner.limit),
            None => runner.limit,
        };
        Ok(Self {
            new: runner.new,
            limit,
            start,
            signals: runner.signals,
            cut: runner.cut,
        })
    }

    /// A turn in the generation `new` that nothing ends but its limit.
    pub(super) fn within(new: u32, limit: Duration) -> Self {
        Self {
            new,
            limit,
            start: Instant::now(),
            signals: None,
            cut: &|| None,
        }
    }

    /// The same with less time.
    pub(super) fn at_most(&self, limit: Duration) -> Self {
        let limit = self.limit.min(limit);
        Self { limit, ..*self }
    }

    /// What is left of the limit.
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    /// Calls `look` until it returns something. `look` waits for at most as long as it is told. `hung`
    /// says what was waited for.
    ///
    /// # Errors
    /// When the time is over, or what the turn is for has come to nothing.
    pub(super) fn wait<T>(
        &self,
        hung: &str,
        mut look: impl FnMut(Duration) -> Option<T>,
    ) -> Result<T, ContractError> {
        loop {
            let left = self.left();
            if let Some(found) = look(left.min(LOOK)) {
                return Ok(found);
            }
            if self.signals.is_some_and(Signals::has_come) {
                return Err(ContractError::Stopped);
            }
            match (self.cut)() {
                Some(Cut::Overtaken) => return Err(ContractError::Overtaken),
                Some(Cut::Withdrawn) => return Err(ContractError::Withdrawn),
                None if left.is_zero() => {
                    return Err(ContractError::Hung(self.limit, hung.to_owned()));
                }
                None => {}
            }
        }
    }
}

impl ContractError {
    /// What it means for the round.
    pub(super) fn answer(&self) -> Answer {
        match self {
            Self::Failed(_) => Answer::Failed(Reason::HookFailed),
            Self::Hung(..) | Self::NoTime => Answer::Failed(Reason::HookHung),
            Self::Stopped => Answer::Stopped,
            Self::Overtaken => Answer::Overtaken,
            Self::Withdrawn => Answer::Withdrawn,
        }
    }
}
