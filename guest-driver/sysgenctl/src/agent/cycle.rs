//! What follows what, from the host's request or the beginning of a generation to its end: a state machine
//! that does nothing itself. So its tests can answer each step in every way.
//!
//! Whatever the answers are, two things hold. Programs that may be frozen are thawed before the end. Where
//! hooks of `quiesce.d` may have run, those of `resume.d` run before the end, unless this is a clone
//! that has not adapted: it stays quiesced until it has. If they do not succeed, the end says so.

use sysgenid::{Prepared, Reason};

use crate::args::Freeze;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Run `quiesce.d`, the last name first.
    Quiesce,
    /// Wait until all participants are parked.
    Park,
    Freeze,
    /// Have the CPUs stand still while the snapshot is taken.
    Fork,
    Refuse(Reason),
    /// Run the hooks of the first stage, for the present generation.
    Identity,
    /// Tell the host that the first stage is over.
    TellIdentity,
    Thaw,
    /// Run the hooks of the second stage.
    Service,
    Acknowledge,
    /// Wait until all others have acknowledged.
    Watchers,
    /// Run `resume.d`.
    Resume(Resumed),
    /// Tell the host that all is done.
    Ready,
}

/// Whom the hooks of `resume.d` let go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumed {
    Original,
    Clone,
    /// There was no snapshot.
    CalledOff,
}

impl Resumed {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Clone => "clone",
            Self::CalledOff => "called-off",
        }
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It succeeded. After [`Step::Fork`]: this is the original.
    Done,
    /// After [`Step::Fork`]: this is a clone.
    Clone,
    /// After [`Step::Park`]: some that need not park have not. After [`Step::Freeze`]: some could not be
    /// frozen, and run.
    Partly,
    /// After [`Step::Fork`]: some participant that had parked has gone on. Nothing was taken.
    Unparked,
    Failed(Reason),
    /// The host has withdrawn its request.
    Withdrawn,
    /// Another generation has begun.
    Overtaken,
    /// The agent is asked to end.
    Stopped,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Step(Step),
    /// All is done that can be done.
    Over,
    /// The generation is not acknowledged: its hooks are run again, after a pause.
    Retry,
    /// Services may still be quiesced: `resume.d` is run again, after a pause.
    Quiesced,
}

/// A cycle that is under way.
#[derive(Clone, Debug)]
pub(super) struct Cycle {
    step: Step,
    freeze: Freeze,
    require_success: bool,
    /// Hooks of `quiesce.d` may have run, and those of `resume.d` have not since.
    quiesced: bool,
    parked: bool,
    /// Programs are to be frozen before the fork point.
    to_freeze: bool,
    /// Programs may be frozen.
    frozen: bool,
    /// All are.
    all_frozen: bool,
    /// Some hook of this generation has failed.
    failed: bool,
    /// What follows [`Step::Thaw`].
    after_thaw: Next,
    /// What follows [`Step::Refuse`].
    after_refusal: Next,
}

impl Cycle {
    /// The host asks for a snapshot.
    pub(super) fn asked(freeze: Freeze, require_success: bool) -> Self {
        Self {
            quiesced: true,
            ..Self::begin(Step::Quiesce, freeze, require_success)
        }
    }

    /// A generation has begun; `quiesced`: a former agent was ended between `quiesce.d` and `resume.d`.
    pub(super) fn generation(require_success: bool, quiesced: bool) -> Self {
        Self {
            quiesced,
            ..Self::begin(Step::Identity, Freeze::Off, require_success)
        }
    }

    /// No generation has begun, but `resume.d` has not succeeded, or a former agent was ended before it;
    /// `failed`: some other hook of this generation has failed.
    pub(super) fn left_quiesced(resumed: Resumed, failed: bool) -> Self {
        Self {
            quiesced: true,
            failed,
            ..Self::begin(Step::Resume(resumed), Freeze::Off, false)
        }
    }

    fn begin(step: Step, freeze: Freeze, require_success: bool) -> Self {
        Self {
            step,
            freeze,
            require_success,
            quiesced: false,
            parked: false,
            to_freeze: freeze != Freeze::Off,
            frozen: false,
            all_frozen: false,
            failed: false,
            after_thaw: Next::Over,
            after_refusal: Next::Over,
        }
    }

    /// What is to be done now.
    pub(super) fn step(&self) -> Step {
        self.step
    }

    /// Whether programs may be frozen.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Whether some hook of this generation has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// What was done before the fork point.
    pub(super) fn prepared(&self) -> Prepared {
        let when = |done, what| if done { what } else { Prepared::NOTHING };
        when(self.quiesced, Prepared::QUIESCED)
            | when(self.parked, Prepared::PARKED)
            | when(self.all_frozen, Prepared::FROZEN)
    }

    /// Takes the answer of the present step, and says what comes then.
    pub(super) fn next(&mut self, answer: Answer) -> Next {
        let next = match self.step {
            Step::Quiesce | Step::Park | Step::Freeze | Step::Fork => self.before(answer),
            Step::Refuse(_) => self.unless_overtaken(answer, self.after_refusal),
            Step::Thaw => {
                (self.frozen, self.all_frozen) = (false, false);
                self.unless_overtaken(answer, self.after_thaw)
            }
            Step::Resume(_) if answer != Answer::Done => Next::Quiesced,
            Step::Resume(resumed) => {
                self.quiesced = false;
                match resumed {
                    Resumed::Clone => self.ready(),
                    Resumed::Original | Resumed::CalledOff => Next::Over,
                }
            }
            Step::Ready => Next::Over,
            _ => self.after(answer),
        };
        if let Next::Step(step) = next {
            self.step = step;
        }
        next
    }

    /// Up to the fork point.
    fn before(&mut self, answer: Answer) -> Next {
        match (self.step, answer) {
            (_, Answer::Withdrawn) => self.call_off(None),
            (_, Answer::Stopped) => self.call_off(Some(Reason::AgentGone)),
            // Somebody has restored a snapshot of this machine as it is: a clone, in all but the way.
            (_, Answer::Overtaken) => {
                self.after_refusal = Next::Step(Step::Identity);
                Next::Step(Step::Refuse(Reason::Busy))
            }
            (Step::Fork, Answer::Clone) => Next::Step(Step::Identity),
            (Step::Fork, Answer::Done) => {
                self.thaw_then(Next::Step(Step::Resume(Resumed::Original)))
            }
            // A frozen program could not park.
            (Step::Fork, Answer::Unparked) => {
                self.to_freeze = self.frozen;
                self.thaw_then(Next::Step(Step::Park))
            }
            (Step::Park, Answer::Done | Answer::Partly) => {
                self.parked = answer == Answer::Done;
                if !self.to_freeze {
                    return Next::Step(Step::Fork);
                }
                (self.to_freeze, self.frozen) = (false, true);
                Next::Step(Step::Freeze)
            }
            (Step::Freeze, Answer::Done) => {
                self.all_frozen = true;
                Next::Step(Step::Fork)
            }
            // The freezer wakes those that have parked. Who runs again may have gone on.
            (Step::Freeze, Answer::Partly) if self.freeze != Freeze::Required => {
                Next::Step(Step::Park)
            }
            (Step::Freeze, Answer::Failed(_)) if self.freeze != Freeze::Required => {
                self.thaw_then(Next::Step(Step::Park))
            }
            (Step::Quiesce, Answer::Done) => Next::Step(Step::Park),
            (_, Answer::Failed(reason)) => self.call_off(Some(reason)),
            (Step::Freeze, Answer::Partly) => self.call_off(Some(Reason::NotFrozen)),
            _ => self.call_off(Some(Reason::Other)),
        }
    }

    /// In a new generation.
    fn after(&mut self, answer: Answer) -> Next {
        match (self.step, answer) {
            (_, Answer::Overtaken) => self.unless_overtaken(answer, Next::Over),
            (Step::Identity | Step::Service, Answer::Stopped) => self.thaw_then(Next::Over),
            (Step::Identity, Answer::Done) => Next::Step(Step::TellIdentity),
            (Step::Identity | Step::Service, answer) => {
                self.failed |= answer != Answer::Done;
                let next = match (self.step, self.failed && self.require_success) {
                    (_, true) => Next::Retry,
                    (Step::Identity, false) => Next::Step(Step::Service),
                    (_, false) => Next::Step(Step::Acknowledge),
                };
                self.thaw_then(next)
            }
            (Step::TellIdentity, Answer::Stopped) => self.thaw_then(Next::Over),
            // The kernel is slow to hear it. No program stays frozen for that.
            (Step::TellIdentity, Answer::Failed(_)) if self.frozen => {
                self.thaw_then(Next::Step(Step::TellIdentity))
            }
            (Step::TellIdentity, _) => self.thaw_then(Next::Step(Step::Service)),
            (Step::Acknowledge, Answer::Done) if self.quiesced => Next::Step(Step::Watchers),
            (Step::Acknowledge, Answer::Done) => self.ready(),
            (Step::Acknowledge, _) => Next::Retry,
            (Step::Watchers, _) => Next::Step(Step::Resume(Resumed::Clone)),
            _ => self.ready(),
        }
    }

    /// In another generation all is done anew, first of all what makes it another machine.
    fn unless_overtaken(&mut self, answer: Answer, next: Next) -> Next {
        if answer != Answer::Overtaken {
            return next;
        }
        self.failed = false;
        Next::Step(Step::Identity)
    }

    /// Nothing comes of the request. The programs go on first, then the host is told, if it does not know.
    fn call_off(&mut self, reason: Option<Reason>) -> Next {
        let resume = Next::Step(Step::Resume(Resumed::CalledOff));
        let next = match reason {
            None => resume,
            Some(reason) => {
                self.after_refusal = resume;
                Next::Step(Step::Refuse(reason))
            }
        };
        self.thaw_then(next)
    }

    fn thaw_then(&mut self, next: Next) -> Next {
        if !self.frozen {
            return next;
        }
        self.after_thaw = next;
        Next::Step(Step::Thaw)
    }

    /// The host is told only if all hooks have succeeded.
    fn ready(&self) -> Next {
        match self.failed {
            true => Next::Over,
            false => Next::Step(Step::Ready),
        }
    }
}

#[cfg(test)]
#[path = "cycle_test.rs"]
mod tests;
