//! Does what a cycle says, step for step.

use std::time::{Duration, Instant};

use serde_json::Value;
use sysgenid::{
    AcknowledgeError, ForkPointError, IdentityError, Outcome, Parked, ParkedError, Prepared,
    Reason, RefuseError, WatchersError,
};

use super::cycle::{Answer, Cycle, Next, Resumed, Step};
use super::error::AgentError;
use super::freezer::{FreezeError, Frozen};
use super::machine::{Agent, Asked, SOON, milliseconds};
use super::net::Net;
use super::runner::{Cut, GRACE, LOOK, Runner};
use super::source::Source;
use super::stages::Stage;
use crate::args::Freeze;
use crate::output::report;

/// What the steps of a cycle share.
struct Course {
    asked: Option<Asked>,
    /// The counter now.
    new: u32,
    /// When the hooks of this generation began.
    began: Instant,
    /// When this clone began, if its programs were frozen then.
    froze: Option<Instant>,
    /// What thaws them if this agent hangs.
    net: Option<Net>,
    /// Some participant that had parked went on before the fork point.
    gone_on: bool,
}

impl<S: Source> Agent<'_, S> {
    /// Goes through a cycle. After an error nothing is frozen, either.
    pub(super) fn cycle(
        &mut self,
        mut cycle: Cycle,
        asked: Option<Asked>,
    ) -> Result<Next, AgentError> {
        let mut course = Course {
            asked,
            new: self.watcher.current()?,
            began: Instant::now(),
            froze: None,
            net: None,
            gone_on: false,
        };
        loop {
            let answer = match self.perform(&cycle, &mut course) {
                Ok(answer) => answer,
                Err(error) => {
                    if cycle.is_frozen() {
                        self.thaw();
                    }
                    return Err(error);
                }
            };
            let next = cycle.next(answer);
            if matches!(next, Next::Step(_)) {
                continue;
            }
            if let Some(asked) = asked {
                self.answered = Some(asked.ticket);
            }
            if next == Next::Retry {
                let new = course.new;
                let text = format!("generation {new}: not acknowledged, as a hook failed");
                self.log
                    .say("not-acknowledged", self.fields(&course), &text);
            }
            return Ok(next);
        }
    }

    fn perform(&mut self, cycle: &Cycle, course: &mut Course) -> Result<Answer, AgentError> {
        let asked = course.asked;
        match (cycle.step(), asked) {
            (Step::Quiesce, Some(asked)) => Ok(self.quiesce(&asked, course.new)),
            (Step::Park, Some(asked)) => Ok(self.park(&asked, course)),
            (Step::Freeze, Some(asked)) => Ok(self.freeze(&asked, course.new)),
            (Step::Fork, Some(asked)) => Ok(self.fork(&asked, course, cycle.prepared())),
            (Step::Refuse(reason), Some(asked)) => {
                self.refuse(&asked, reason);
                self.still(course.new)
            }
            // A cycle that has no request never comes there.
            (Step::Quiesce | Step::Park | Step::Freeze | Step::Fork | Step::Refuse(_), None) => {
                Ok(Answer::Withdrawn)
            }
            (Step::Identity, _) => {
                course.froze = cycle.is_frozen().then(Instant::now);
                course.net = course.froze.and_then(|_| self.spread_net());
                self.identity(course)
            }
            (Step::TellIdentity, _) => self.tell_identity(course),
            (Step::Thaw, _) => {
                (course.froze, course.net) = (None, None);
                self.thaw();
                self.still(course.new)
            }
            (Step::Service, _) => Ok(self.adapt(Stage::Service, course)),
            (Step::Acknowledge, _) => self.acknowledge(course, cycle.has_failed()),
            (Step::Watchers, _) => Ok(self.wait_for_watchers()),
            (Step::Resume(resumed), _) => Ok(self.resume(resumed, course.new)),
            (Step::Ready, _) => {
                self.tell_host(course.new)?;
                Ok(Answer::Done)
            }
        }
    }

    /// Whether it is still the same generation.
    fn still(&self, new: u32) -> Result<Answer, AgentError> {
        match self.watcher.current()? == new {
            true => Ok(Answer::Done),
            false => Ok(Answer::Overtaken),
        }
    }

    /// Whether nothing can come of the request any more, and why. What cannot be asked goes on.
    fn cut(&self, asked: &Asked, new: u32) -> Option<Cut> {
        if self.watcher.current().is_ok_and(|current| current != new) {
            return Some(Cut::Overtaken);
        }
        let request = self.watcher.request();
        let there = |ticket| Some(ticket) == Some(asked.ticket);
        let withdrawn = request.is_ok_and(|now| !now.is_some_and(|now| there(now.ticket)));
        withdrawn.then_some(Cut::Withdrawn)
    }

    /// The same, and whether the agent is to end.
    fn called_off(&self, asked: &Asked, new: u32) -> Option<Answer> {
        if self.signals.has_come() {
            return Some(Answer::Stopped);
        }
        self.cut(asked, new).map(|cut| match cut {
            Cut::Overtaken => Answer::Overtaken,
            Cut::Withdrawn => Answer::Withdrawn,
        })
    }

    fn quiesce(&self, asked: &Asked, new: u32) -> Answer {
        let text = "the host asks for a snapshot: services are quiesced";
        self.log
            .say("asked", [("ticket", asked.ticket.get().into())], text);
        if let Err(error) = self.mark.set() {
            let text = format!("could not leave a mark for the next agent: {error}");
            self.log
                .say("no-mark", [("error", error.to_string().into())], &text);
            return Answer::Failed(Reason::Other);
        }
        self.round(&Runner {
            stage: Stage::Quiesce,
            outcome: None,
            old: self.old,
            new,
            limit: self.args.limit,
            deadline: Some(asked.quiesced_by()),
            grace: GRACE.min(asked.reserve() / 2),
            signals: Some(&self.signals),
            groups: self.groups.as_ref(),
            cut: &|| self.cut(asked, new),
        })
    }

    fn park(&self, asked: &Asked, course: &Course) -> Answer {
        // Who goes on again and again is waited for until the time is over, and hinders nobody then, if
        // the driver says that the fork point need not wait.
        if course.gone_on && self.signals.comes_within(LOOK.min(asked.left_to_quiesce())) {
            return Answer::Stopped;
        }
        loop {
            let left = asked.left_to_quiesce();
            let error = match self.watcher.wait_parked(left.min(LOOK)) {
                Ok(Parked::All) if !(course.gone_on && left.is_zero()) => return Answer::Done,
                Ok(_) if left.is_zero() => {
                    let text = "some programs that need not park are not parked";
                    self.log.say("not-all-parked", [], text);
                    return Answer::Partly;
                }
                Err(ParkedError::NoRequest) => return Answer::Withdrawn,
                Ok(_) | Err(ParkedError::TimedOut(_) | ParkedError::Interrupted)
                    if !left.is_zero() =>
                {
                    match self.called_off(asked, course.new) {
                        Some(answer) => return answer,
                        None => continue,
                    }
                }
                Ok(_) => continue,
                Err(error) => report(&error),
            };
            let text = format!("programs are not parked: {error}");
            self.log.say("not-parked", [("error", error.into())], &text);
            return Answer::Failed(Reason::NotParked);
        }
    }

    fn freeze(&self, asked: &Asked, new: u32) -> Answer {
        let start = Instant::now();
        let limit = self.args.freeze_limit.min(asked.left_to_freeze());
        let called_off = || self.called_off(asked, new).is_some();
        let frozen = match &self.freezer {
            Ok(freezer) => freezer.freeze(limit, &called_off).map_err(|error| {
                let called_off = matches!(error, FreezeError::CalledOff);
                (report(&error), called_off)
            }),
            Err(error) => Err((report(error), false)),
        };
        match frozen {
            Ok(frozen) if frozen.late.is_empty() => {
                let (groups, took) = (frozen.groups, start.elapsed());
                let fields = [
                    ("groups", groups.into()),
                    ("milliseconds", milliseconds(took)),
                ];
                let text = format!("{groups} control groups frozen in {} ms", took.as_millis());
                self.log.say("frozen", fields, &text);
                Answer::Done
            }
            Ok(frozen) => self.partly_frozen(&frozen, limit),
            Err((error, called_off)) => {
                let text = format!("programs are not frozen: {error}");
                self.log.say("not-frozen", [("error", error.into())], &text);
                let answer = self.called_off(asked, new).filter(|_| called_off);
                answer.unwrap_or(Answer::Failed(Reason::NotFrozen))
            }
        }
    }

    /// Some groups could not be frozen: whose they are is for the administrator to know.
    fn partly_frozen(&self, frozen: &Frozen, limit: Duration) -> Answer {
        let names: Vec<_> = frozen
            .late
            .iter()
            .map(|late| late.to_string_lossy())
            .collect();
        let fields = [
            ("groups", frozen.groups.into()),
            ("late", Value::from(names.clone())),
        ];
        let text = format!("not frozen after {limit:?}: {}", names.join(", "));
        self.log.say("not-all-frozen", fields, &text);
        match self.args.freeze {
            Freeze::Required => Answer::Failed(Reason::NotFrozen),
            Freeze::BestEffort | Freeze::Off => Answer::Partly,
        }
    }

    fn fork(&self, asked: &Asked, course: &mut Course, prepared: Prepared) -> Answer {
        let limit = self.args.standstill_limit.min(Duration::from_secs(10));
        match self.watcher.fork_point(asked.ticket, prepared, limit) {
            Ok(point) => {
                course.new = point.generation;
                let (name, answer) = match point.outcome {
                    Outcome::Original => ("original", Answer::Done),
                    Outcome::Clone => ("clone", Answer::Clone),
                };
                let fields = [
                    ("outcome", name.into()),
                    ("generation", point.generation.into()),
                ];
                let text = format!("snapshot taken: this is the {name}");
                self.log.say("fork-point", fields, &text);
                answer
            }
            Err(ForkPointError::Busy) if prepared | Prepared::PARKED == prepared => {
                course.gone_on = true;
                let text = "some program is not parked any more, or something else is under way: \
                            all are waited for again";
                self.log.say("gone-on", [], text);
                Answer::Unparked
            }
            Err(error) => {
                let told = report(&error);
                let text = format!("no snapshot was taken: {told}");
                self.log
                    .say("no-fork-point", [("error", told.into())], &text);
                match error {
                    ForkPointError::Stale
                        if self.cut(asked, course.new) == Some(Cut::Overtaken) =>
                    {
                        Answer::Overtaken
                    }
                    ForkPointError::Stale | ForkPointError::Cancelled => Answer::Withdrawn,
                    ForkPointError::Busy => Answer::Failed(Reason::Busy),
                    _ => Answer::Failed(Reason::Other),
                }
            }
        }
    }

    /// Refuses the request; where it is over anyway, nothing is left to be said.
    pub(super) fn refuse(&mut self, asked: &Asked, reason: Reason) {
        self.answered = Some(asked.ticket);
        let fields = [
            ("ticket", asked.ticket.get().into()),
            ("reason", reason.to_string().into()),
        ];
        match self.watcher.refuse(asked.ticket, reason) {
            Ok(()) => {
                let text = format!("the host's request is refused: {reason}");
                self.log.say("refused", fields, &text);
            }
            Err(RefuseError::Stale) => {
                let text = format!("the host's request was over already: {reason}");
                self.log.say("over", fields, &text);
            }
            Err(error) => {
                let text = format!("{reason}, but: {}", report(&error));
                self.log.say("not-refused", fields, &text);
            }
        }
    }

    fn identity(&mut self, course: &mut Course) -> Result<Answer, AgentError> {
        course.new = self.watcher.current()?;
        course.began = Instant::now();
        let (old, new) = (self.old, course.new);
        let text = format!("generation {new}: begun, {old} was acknowledged last");
        let fields = [("old", old.into()), ("new", new.into())];
        self.log.say("generation", fields, &text);
        Ok(self.adapt(Stage::Identity, course))
    }

    /// Runs one of the two stages in a new generation.
    fn adapt(&self, stage: Stage, course: &Course) -> Answer {
        let round = course.began.checked_add(self.args.round_limit);
        let deadline = match (round, self.frozen_until(course)) {
            (Some(round), Some(frozen)) => Some(round.min(frozen)),
            (round, frozen) => round.or(frozen),
        };
        let new = course.new;
        let overtaken = || {
            let moved = self.watcher.current().is_ok_and(|current| current != new);
            moved.then_some(Cut::Overtaken)
        };
        self.round(&Runner {
            stage,
            outcome: None,
            old: self.old,
            new,
            limit: self.args.limit,
            deadline,
            grace: GRACE,
            signals: Some(&self.signals),
            groups: self.groups.as_ref(),
            cut: &overtaken,
        })
    }

    fn tell_identity(&self, course: &Course) -> Result<Answer, AgentError> {
        let new = course.new;
        loop {
            match self.watcher.identity(new) {
                Ok(()) => {
                    let text = format!("generation {new}: the host was told of the new identity");
                    self.log.say("identity", [("new", new.into())], &text);
                    return Ok(Answer::Done);
                }
                Err(IdentityError::Stale(_)) => return Ok(Answer::Overtaken),
                // Then no host waits for it.
                Err(IdentityError::Unsupported | IdentityError::NotPermitted) => {
                    return Ok(Answer::Done);
                }
                Err(IdentityError::Unfinished(_)) => {}
                Err(error) => return Err(error.into()),
            }
            if self
                .frozen_until(course)
                .is_some_and(|end| end <= Instant::now())
            {
                return Ok(Answer::Failed(Reason::Other));
            }
            if self.signals.comes_within(SOON) {
                return Ok(Answer::Stopped);
            }
        }
    }

    /// Until when programs of this clone may be frozen, if they are.
    fn frozen_until(&self, course: &Course) -> Option<Instant> {
        course.froze?.checked_add(self.args.frozen_limit)
    }

    /// What cannot be thawed is tried again by `sysgenctl thaw`, at the latest when this agent ends.
    fn thaw(&self) {
        let Ok(freezer) = &self.freezer else { return };
        match freezer.thaw() {
            Ok(groups) => {
                let text = format!("{groups} control groups thawed");
                self.log.say("thawed", [("groups", groups.into())], &text);
            }
            Err(error) => {
                let text = report(&error);
                self.log
                    .say("not-thawed", [("error", text.clone().into())], &text);
            }
        }
    }

    fn acknowledge(&mut self, course: &Course, failed: bool) -> Result<Answer, AgentError> {
        let new = course.new;
        match self.watcher.acknowledge(new) {
            Ok(()) => {
                let took = course.began.elapsed().as_millis();
                let text = format!("generation {new}: acknowledged after {took} ms");
                self.log.say("acknowledged", self.fields(course), &text);
                (self.old, self.nothing_missed, self.told) = (new, !failed, false);
                // Hooks that have failed are run again at the next start.
                if !failed {
                    self.save(new)?;
                }
                Ok(Answer::Done)
            }
            Err(AcknowledgeError::Stale(_)) => {
                let text = format!("generation {new}: another one began, another round follows");
                self.log.say("stale", self.fields(course), &text);
                Ok(Answer::Overtaken)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn fields(&self, course: &Course) -> [(&'static str, Value); 3] {
        [
            ("old", self.old.into()),
            ("new", course.new.into()),
            ("milliseconds", milliseconds(course.began.elapsed())),
        ]
    }

    /// Whoever has not adapted by then is the host's to wait for.
    fn wait_for_watchers(&self) -> Answer {
        let start = Instant::now();
        loop {
            let left = self.args.watchers_limit.saturating_sub(start.elapsed());
            let error = match self.watcher.wait_for_watchers(left.min(LOOK)) {
                Ok(()) => return Answer::Done,
                Err(WatchersError::Outdated) => return Answer::Overtaken,
                Err(WatchersError::TimedOut(_) | WatchersError::Interrupted) if !left.is_zero() => {
                    match self.signals.has_come() {
                        true => return Answer::Stopped,
                        false => continue,
                    }
                }
                Err(error) => report(&error),
            };
            let text = format!("not all have adapted: {error}");
            self.log.say("outdated", [("error", error.into())], &text);
            return Answer::Failed(Reason::Other);
        }
    }

    /// To its end, whatever comes: services are to go on. If a hook fails they may not, and it is tried again.
    fn resume(&mut self, resumed: Resumed, new: u32) -> Answer {
        let outcome = resumed.name();
        let answer = self.round(&Runner {
            stage: Stage::Resume,
            outcome: Some(resumed),
            old: self.old,
            new,
            limit: self.args.limit,
            deadline: Instant::now().checked_add(self.args.round_limit),
            grace: GRACE,
            signals: None,
            groups: self.groups.as_ref(),
            cut: &|| None,
        });
        let (event, text) = match answer {
            Answer::Done => {
                self.mark.clear();
                ("resumed", format!("services go on: {outcome}"))
            }
            _ => ("not-resumed", format!("services may not go on: {outcome}")),
        };
        self.unresumed = (answer != Answer::Done).then_some(resumed);
        self.log.say(event, [("outcome", outcome.into())], &text);
        answer
    }
}
