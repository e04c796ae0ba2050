//! The hooks of one stage, one after another.

use std::time::{Duration, Instant};

use sysgenid::Reason;

use super::cycle::Answer;
use super::hooks::Finding;
use super::machine::{Agent, milliseconds};
use super::runner::{HookError, Runner};
use super::source::Source;
use super::stages::Stage;
use crate::output::report;

impl<S: Source> Agent<'_, S> {
    /// Runs the hooks of the runner's stage, and says how that ended. One that fails ends the stage only
    /// before a snapshot: there, nothing comes of it any more.
    pub(super) fn round(&self, runner: &Runner<'_>) -> Answer {
        let stage = runner.stage;
        let found = match stage.find(self.args) {
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
            match self.hook(runner, finding) {
                Answer::Done => {}
                failed @ Answer::Failed(_) if stage != Stage::Quiesce => round = failed,
                ended => return ended,
            }
        }
        round
    }

    /// Runs one hook if it may be run, and says how that ended.
    fn hook(&self, runner: &Runner<'_>, finding: Finding) -> Answer {
        let start = Instant::now();
        let failed = Answer::Failed(Reason::HookFailed);
        let (path, event, answer, error) = match finding {
            Finding::Skipped(_) => return Answer::Done,
            Finding::Refused { path, reason } => {
                (path, "hook-refused", failed, Some(reason.to_string()))
            }
            Finding::Hook(path) => match runner.run(&path) {
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
        let name = path.file_name().unwrap_or_default();
        self.say_hook(
            runner,
            event,
            &name.to_string_lossy(),
            start.elapsed(),
            error,
        );
        answer
    }

    fn say_hook(
        &self,
        runner: &Runner<'_>,
        event: &str,
        hook: &str,
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
            ("hook", hook.into()),
            ("milliseconds", milliseconds(took)),
            ("error", error.into()),
        ];
        let text = format!("generation {new}: {stage} hook {hook}: {ended}");
        self.log.say(event, fields, &text);
    }
}
