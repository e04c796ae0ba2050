//! `sysgenctl agent`: in every new generation it runs hooks, then acknowledges.
//!
//! To the driver, opening is an acknowledgement: a watcher is up to date from `open` on. Two things
//! follow. A generation that began before is found by comparing the counter with what the
//! last agent acknowledged (`--state`), or with the counter as it was before `open`; no read tells of it.
//! And while the hooks of such a generation run or are retried, nobody waits for the agent: who must not
//! go on before them waits for its word to the service manager, which comes after them.
//!
//! An acknowledgement is the agent's own, and is given by its end as well as by its word. So the host is
//! told by another call that it is ready, and never unless all hooks have succeeded.

mod group;
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
use sysgenid::{AcknowledgeError, Counter, ReadyError, WaitError, Watcher};

use crate::args::{AgentArgs, Cli};
use crate::output::{Log, report};
use group::Groups;
use hooks::Finding;
use runner::{HookError, LOOK, Runner};
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
    Ready(#[from] ReadyError),
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
    /// Another generation has begun.
    Overtaken,
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
    let (old, nothing_missed) = match old {
        Some(old) => (old, true),
        None => {
            let counter = Counter::open_at(&cli.device)?.get();
            (counter, counter == 0)
        }
    };
    let watcher = cli.open(true)?;
    hooks::find(&args.hooks)?;
    let mut agent = Agent {
        args,
        log,
        signals,
        groups: Groups::of_service(),
        watcher,
        old,
        nothing_missed,
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
    fn ready(&self, generation: u32) -> Result<(), ReadyError>;
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

    fn ready(&self, generation: u32) -> Result<(), ReadyError> {
        self.ready(generation)
    }
}

struct Agent<'a, S> {
    args: &'a AgentArgs,
    log: Log,
    signals: Signals,
    groups: Option<Groups>,
    watcher: S,
    /// The counter that was acknowledged last.
    old: u32,
    /// The hooks of that generation have succeeded, or it is the one of the boot.
    nothing_missed: bool,
    /// No generation from before the watcher was opened is left to be handled.
    caught_up: bool,
}

impl<S: Source> Agent<'_, S> {
    /// Every generation, first one that began before the watcher was opened, until a signal.
    fn follow(&mut self) -> Result<(), AgentError> {
        // Whoever is ended before it has caught up finds at its next start from where on.
        if self.nothing_missed {
            self.save(self.old)?;
        }
        loop {
            let pause = match self.due()? {
                Some(new) => self.handle(new)?,
                None => {
                    self.catch_up()?;
                    None
                }
            };
            match pause {
                Some((pause, failed)) => self.pause(pause, failed)?,
                None => self.sleep()?,
            }
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
    fn catch_up(&mut self) -> Result<(), AgentError> {
        if !self.caught_up {
            self.caught_up = true;
            if self.nothing_missed {
                self.tell_host(self.old)?;
            } else {
                let text = "generations may have begun before this agent started: \
                            the host is told of the next one";
                self.log
                    .say("not-ready", [("generation", self.old.into())], text);
            }
            notify::ready();
        }
        Ok(())
    }

    /// Tells the host that all hooks for `generation` have succeeded.
    fn tell_host(&self, generation: u32) -> Result<(), AgentError> {
        let fields = [("generation", Value::from(generation))];
        match self.watcher.ready(generation) {
            Ok(()) => {
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

    /// Sleeps until the watcher is outdated, or a signal comes.
    fn sleep(&self) -> Result<(), AgentError> {
        let mut files = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.watcher, PollFlags::IN),
        ];
        match poll(&mut files, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(AgentError::Poll(errno.into())),
        }
    }

    /// Sleeps for `pause`, or until another generation than `failed` has begun, or a signal comes.
    fn pause(&self, pause: Duration, failed: u32) -> Result<(), AgentError> {
        let start = Instant::now();
        loop {
            let left = pause.saturating_sub(start.elapsed());
            let slice = Timespec::try_from(left.min(LOOK)).unwrap_or_default();
            let mut files = [PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut files, Some(&slice)) {
                Ok(0) if left > LOOK && self.watcher.current()? == failed => {}
                Ok(_) | Err(Errno::INTR) => return Ok(()),
                Err(errno) => return Err(AgentError::Poll(errno.into())),
            }
        }
    }

    /// Runs the hooks for `new` and acknowledges it. Returns how long to pause before another attempt.
    fn handle(&mut self, new: u32) -> Result<Option<(Duration, u32)>, AgentError> {
        let start = Instant::now();
        let round = self.round(new);
        let retry = match round {
            Round::Stopped | Round::Overtaken => return Ok(None),
            Round::Failed if self.args.require_success => Some((self.args.retry, new)),
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
                self.acknowledged(new, round)?;
            }
            Err(AcknowledgeError::Stale(_)) => {
                let text = format!("generation {new}: another one began, another round follows");
                self.log.say("stale", fields(), &text);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }

    /// What follows an acknowledgement. Hooks that have failed are run again at the next start, and the
    /// host is not told that this machine is ready.
    fn acknowledged(&mut self, new: u32, round: Round) -> Result<(), AgentError> {
        self.old = new;
        self.nothing_missed = round == Round::Succeeded;
        if self.nothing_missed {
            self.save(new)?;
        }
        if !self.caught_up {
            return self.catch_up();
        }
        if self.nothing_missed {
            self.tell_host(new)?;
        }
        Ok(())
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
            deadline: Instant::now().checked_add(self.args.round_limit),
            signals: &self.signals,
            groups: self.groups.as_ref(),
            overtaken: &|| self.watcher.current().is_ok_and(|current| current != new),
        };
        let mut round = Round::Succeeded;
        for finding in found {
            match self.hook(&runner, finding) {
                Round::Failed => round = Round::Failed,
                Round::Succeeded => {}
                ended => return ended,
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
                Err(HookError::Overtaken) => return Round::Overtaken,
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
