//! The hooks and the contracts of one stage, one after another.

use std::time::{Duration, Instant};

use sysgenid::Reason;

use super::contracts::{Contract, ContractError, Turn};
use super::cycle::{Answer, Resumed};
use super::hooks::{Finding, HooksError};
use super::machine::{Agent, milliseconds};
use super::runner::{HookError, Runner};
use super::source::Source;
use super::stages::Stage;
use crate::output::report;

impl<S: Source> Agent<'_, S> {
    /// Runs the hooks of the runner's stage and has the contracts take part in it, and says how that ended.
    /// What fails ends the stage only before a snapshot: there, nothing comes of it any more.
    pub(super) fn round(&self, runner: &Runner<'_>) -> Answer {
        let outcome = match (runner.stage, runner.outcome) {
            (Stage::Quiesce, _) => {
                let before = |contract: &dyn Contract, turn: &Turn<'_>| contract.before(turn);
                return match self.contracts(runner, self.contracts.iter().rev(), before) {
                    Answer::Done => self.hooks(runner),
                    ended => ended,
                };
            }
            (Stage::Service, _) => {
                self.contracts
                    .iter()
                    .for_each(|contract| contract.adapting(runner.new));
                Resumed::Clone
            }
            (Stage::Resume, Some(outcome @ (Resumed::Original | Resumed::CalledOff))) => outcome,
            // The contracts of a clone have let their programs go on in the stage before.
            (Stage::Identity | Stage::Resume, _) => return self.hooks(runner),
        };
        let hooks = self.hooks(runner);
        if !matches!(hooks, Answer::Done | Answer::Failed(_)) {
            return hooks;
        }
        let after = |contract: &dyn Contract, turn: &Turn<'_>| contract.after(outcome, turn);
        match self.contracts(runner, self.contracts.iter(), after) {
            Answer::Done => hooks,
            contracts => contracts,
        }
    }

    /// Calls these contracts.
    fn contracts<'c>(
        &self,
        runner: &Runner<'_>,
        contracts: impl Iterator<Item = &'c Box<dyn Contract>>,
        call: impl Fn(&dyn Contract, &Turn<'_>) -> Result<(), ContractError>,
    ) -> Answer {
        let mut round = Answer::Done;
        for contract in contracts {
            let start = Instant::now();
            let called = Turn::of(runner).and_then(|turn| call(&**contract, &turn));
            let (event, answer, error) = match called {
                Ok(()) => ("contract-done", Answer::Done, None),
                Err(error) => ("contract-failed", error.answer(), Some(report(&error))),
            };
            self.say(
                runner,
                event,
                ("contract", contract.name()),
                start.elapsed(),
                error,
            );
            match answer {
                Answer::Done => {}
                failed @ Answer::Failed(_) if runner.stage != Stage::Quiesce => round = failed,
                ended => return ended,
            }
        }
        round
    }

    /// Tells the contracts that the agent ends.
    pub(super) fn end_contracts(&self) {
        for contract in self.contracts.iter().rev() {
            let turn = Turn::within(self.old, self.args.limit);
            if let Err(error) = contract.end(&turn) {
                let (name, error) = (contract.name(), report(&error));
                let text = format!("contract {name}, at the end: {error}");
                let fields = [("contract", name.into()), ("error", error.into())];
                self.log.say("contract-failed", fields, &text);
            }
        }
    }

    /// The agent's own hooks and those of others.
    fn hooks(&self, runner: &Runner<'_>) -> Answer {
        let own = || self.each(runner, runner.stage.find(self.args), &[]);
        match runner.stage {
            Stage::Quiesce => match own() {
                Answer::Done => self.hold(runner),
                ended => ended,
            },
            Stage::Service => own(),
            Stage::Identity | Stage::Resume => {
                let held = self.let_go(runner);
                if !matches!(held, Answer::Done | Answer::Failed(_)) {
                    return held;
                }
                match own() {
                    Answer::Done => held,
                    ended => ended,
                }
            }
        }
    }

    /// Runs these hooks with these arguments.
    pub(super) fn each(
        &self,
        runner: &Runner<'_>,
        found: Result<Vec<Finding>, HooksError>,
        arguments: &[&str],
    ) -> Answer {
        let stage = runner.stage;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let text = format!("{}: {}", stage.name(), report(&error));
                let fields = [
                    ("stage", stage.name().into()),
                    ("new", runner.new.into()),
                    ("error", report(&error).into()),
                ];
                self.log.say("no-hooks", fields, &text);
                return Answer::Failed(Reason::HookFailed);
            }
        };
        let mut round = Answer::Done;
        for finding in found {
            match self.hook(runner, finding, arguments) {
                Answer::Done => {}
                failed @ Answer::Failed(_) if stage != Stage::Quiesce => round = failed,
                ended => return ended,
            }
        }
        round
    }

    /// Runs one hook if it may be run, and says how that ended.
    fn hook(&self, runner: &Runner<'_>, finding: Finding, arguments: &[&str]) -> Answer {
        let start = Instant::now();
        let failed = Answer::Failed(Reason::HookFailed);
        let (path, event, answer, error) = match finding {
            Finding::Skipped(_) => return Answer::Done,
            Finding::Refused { path, reason } => {
                (path, "hook-refused", failed, Some(reason.to_string()))
            }
            Finding::Hook(path) => match runner.run(&path, arguments) {
                Ok(()) => (path, "hook-done", Answer::Done, None),
                Err(error) => {
                    let answer = match &error {
                        HookError::TimedOut(_) | HookError::Stuck(_) | HookError::NoTime => {
                            Answer::Failed(Reason::HookHung)
                        }
                        HookError::Stopped => Answer::Stopped,
                        HookError::Overtaken => Answer::Overtaken,
                        HookError::Withdrawn => Answer::Withdrawn,
                        _ => failed,
                    };
                    (path, "hook-failed", answer, Some(report(&error)))
                }
            },
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let said = [&[&*name], arguments].concat().join(" ");
        self.say(runner, event, ("hook", &said), start.elapsed(), error);
        answer
    }

    /// How a hook or a contract ended, which `who` names.
    fn say(
        &self,
        runner: &Runner<'_>,
        event: &str,
        (kind, name): (&'static str, &str),
        took: Duration,
        error: Option<String>,
    ) {
        let (new, stage) = (runner.new, runner.stage.name());
        let ended = match &error {
            None => format!("done in {} ms", took.as_millis()),
            Some(error) => error.clone(),
        };
        let fields = [
            ("new", new.into()),
            ("stage", stage.into()),
            (kind, name.into()),
            ("milliseconds", milliseconds(took)),
            ("error", error.into()),
        ];
        let text = format!("generation {new}: {stage} {kind} {name}: {ended}");
        self.log.say(event, fields, &text);
    }
}
