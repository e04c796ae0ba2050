//! `sysgenctl agent`: in every new generation it runs hooks, then acknowledges.
//!
//! To the driver, opening is an acknowledgement: a watcher is up to date from `open` on. Two things
//! follow. A generation that began before is found by comparing the counter with what the
//! last agent acknowledged (`--state`), or with the counter as it was before `open`; no read tells of it.
//! And while the hooks of such a generation run or are retried, nobody waits for the agent: who must not
//! go on before them waits for its word to the service manager, which comes after them.

mod hooks;
mod notify;
mod runner;
mod signals;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use serde_json::Value;
use sysgenid::{AcknowledgeError, Counter, WaitError, Watcher};

use crate::args::{AgentArgs, Cli};
use crate::output::{Log, report};
use hooks::Finding;
use runner::{HookError, Runner};
use signals::Signals;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AgentError {
    #[error(transparent)]
    Open(#[from] sysgenid::OpenError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    Acknowledge(#[from] AcknowledgeError),
    #[error(transparent)]
    Hooks(#[from] hooks::HooksError),
    #[error("could not take signals from a file")]
    Signals(#[source] io::Error),
    #[error("could not wait for a generation or a signal")]
    Poll(#[source] io::Error),
    #[error("could not read the state file {0}")]
    ReadState(PathBuf, #[source] io::Error),
    #[error("the state file {0} holds no counter")]
    BadState(PathBuf),
    #[error("could not write the state file {0}")]
    WriteState(PathBuf, #[source] io::Error),
}

/// How a round of hooks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Succeeded,
    Failed,
    /// A signal asked the agent to end.
    Stopped,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(cli: &Cli, args: &AgentArgs) -> Result<(), AgentError> {
    let signals = Signals::block().map_err(AgentError::Signals)?;
    let log = Log { json: cli.json };
    // Looked at before the watcher is opened, which counts as an acknowledgement.
    let old = match &args.state {
        Some(path) => load_state(path)?,
        None => None,
    };
    let old = match old {
        Some(old) => old,
        None => Counter::open_at(&cli.device)?.get(),
    };
    let watcher = cli.open(true)?;
    hooks::find(&args.hooks)?;
    let mut agent = Agent {
        args,
        log,
        signals,
        watcher,
        old,
        caught_up: false,
    };
    log.say(
        "started",
        [("generation", old.into())],
        &format!(
            "watching from generation {old} on, hooks in {}",
            args.hooks.display()
        ),
    );
    let ended = agent.follow();
    notify::stopping();
    ended
}

/// What the agent needs of a watcher.
trait Source: AsFd {
    fn current(&self) -> Result<u32, WaitError>;
    fn try_next(&self) -> Result<Option<u32>, WaitError>;
    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError>;
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
}

struct Agent<'a, S> {
    args: &'a AgentArgs,
    log: Log,
    signals: Signals,
    watcher: S,
    /// The counter that was acknowledged last.
    old: u32,
    /// No generation from before the watcher was opened is left to be handled.
    caught_up: bool,
}

impl<S: Source> Agent<'_, S> {
    /// Every generation, first one that began before the watcher was opened, until a signal.
    fn follow(&mut self) -> Result<(), AgentError> {
        // Whoever is ended before it has caught up finds at its next start from where on.
        self.save(self.old)?;
        loop {
            let pause = match self.due()? {
                Some(new) => self.handle(new)?,
                None => {
                    self.catch_up();
                    None
                }
            };
            self.sleep(pause)?;
            if let Some(signal) = self.signals.pending() {
                self.log.say(
                    "ended",
                    [("signal", signal.into())],
                    &format!("ending on signal {signal}"),
                );
                return Ok(());
            }
        }
    }

    /// The generation that hooks have to be run for, if there is one.
    ///
    /// The driver tells of those alone that began since the watcher was opened. Until the first one
    /// is acknowledged, or there turns out to be none, the counter says it.
    fn due(&self) -> Result<Option<u32>, AgentError> {
        let told = self.watcher.try_next()?;
        if told.is_some() || self.caught_up {
            return Ok(told);
        }
        let current = self.watcher.current()?;
        Ok((current != self.old).then_some(current))
    }

    /// What began before the watcher was opened has been handled.
    fn catch_up(&mut self) {
        if !self.caught_up {
            self.caught_up = true;
            notify::ready();
        }
    }

    /// Sleeps until the watcher is outdated; for `pause` whether it is or not. Signals end both.
    fn sleep(&self, pause: Option<Duration>) -> Result<(), AgentError> {
        let limit = pause.map(|pause| Timespec::try_from(pause).unwrap_or_default());
        let mut files = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if pause.is_none() {
            files.push(PollFd::new(&self.watcher, PollFlags::IN));
        }
        match poll(&mut files, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(AgentError::Poll(errno.into())),
        }
    }

    /// Runs the hooks for `new` and acknowledges it. Returns how long to pause before another attempt.
    fn handle(&mut self, new: u32) -> Result<Option<Duration>, AgentError> {
        let start = Instant::now();
        let round = self.round(new);
        let retry = match round {
            Round::Stopped => return Ok(None),
            Round::Failed if self.args.require_success => Some(self.args.retry),
            _ => None,
        };
        let fields = || {
            [
                ("old", self.old.into()),
                ("new", new.into()),
                ("milliseconds", milliseconds(start.elapsed())),
            ]
        };
        if retry.is_some() {
            let text = format!("generation {new}: not acknowledged, as a hook failed");
            self.log.say("not-acknowledged", fields(), &text);
            return Ok(retry);
        }
        match self.watcher.acknowledge(new) {
            Ok(()) => {
                let took = start.elapsed().as_millis();
                let text = format!("generation {new}: acknowledged after {took} ms");
                self.log.say("acknowledged", fields(), &text);
                self.old = new;
                self.save(new)?;
                self.catch_up();
            }
            Err(AcknowledgeError::Stale(_)) => {
                let text = format!("generation {new}: another one began, another round follows");
                self.log.say("stale", fields(), &text);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }

    fn round(&self, new: u32) -> Round {
        let (old, log) = (self.old, self.log);
        let text = format!("generation {new}: begun, {old} was acknowledged last");
        log.say(
            "generation",
            [("old", old.into()), ("new", new.into())],
            &text,
        );
        let found = match hooks::find(&self.args.hooks) {
            Ok(found) => found,
            Err(error) => {
                let error = report(&error);
                let text = format!("generation {new}: {error}");
                log.say(
                    "no-hooks",
                    [("new", new.into()), ("error", error.into())],
                    &text,
                );
                return Round::Failed;
            }
        };
        let runner = Runner {
            old,
            new,
            limit: self.args.limit,
            signals: &self.signals,
        };
        let mut round = Round::Succeeded;
        for finding in found {
            match self.hook(&runner, finding) {
                Round::Stopped => return Round::Stopped,
                Round::Failed => round = Round::Failed,
                Round::Succeeded => {}
            }
        }
        round
    }

    /// Runs one hook if it may be run, and says how that ended.
    fn hook(&self, runner: &Runner<'_>, finding: Finding) -> Round {
        let start = Instant::now();
        let (name, event, error) = match finding {
            Finding::Skipped(_) => return Round::Succeeded,
            Finding::Refused { path, reason } => (path, "hook-refused", Some(reason.to_string())),
            Finding::Hook(path) => match runner.run(&path) {
                Ok(()) => (path, "hook-done", None),
                Err(HookError::Stopped) => return Round::Stopped,
                Err(error) => (path, "hook-failed", Some(report(&error))),
            },
        };
        let round = error.as_ref().map_or(Round::Succeeded, |_| Round::Failed);
        let (new, took) = (runner.new, start.elapsed());
        let hook = name
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = match &error {
            None => format!(
                "generation {new}: hook {hook}: done in {} ms",
                took.as_millis()
            ),
            Some(error) => format!("generation {new}: hook {hook}: {error}"),
        };
        let fields = [
            ("new", new.into()),
            ("hook", hook.into()),
            ("milliseconds", milliseconds(took)),
            ("error", error.into()),
        ];
        self.log.say(event, fields, &text);
        round
    }

    fn save(&self, generation: u32) -> Result<(), AgentError> {
        match &self.args.state {
            Some(path) => save_state(path, generation),
            None => Ok(()),
        }
    }
}

fn milliseconds(duration: Duration) -> Value {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .into()
}

/// The counter in the state file; nothing if there is no file yet.
fn load_state(path: &Path) -> Result<Option<u32>, AgentError> {
    match fs::read_to_string(path) {
        Ok(text) => match text.trim().parse() {
            Ok(generation) => Ok(Some(generation)),
            Err(_) => Err(AgentError::BadState(path.into())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::ReadState(path.into(), error)),
    }
}

/// Replaces the state file in one step.
fn save_state(path: &Path, generation: u32) -> Result<(), AgentError> {
    let mut beside = path.to_path_buf().into_os_string();
    beside.push(".new");
    fs::write(&beside, format!("{generation}\n"))
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| AgentError::WriteState(path.into(), error))
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
