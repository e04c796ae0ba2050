//! The agent's loop: what there is to do, one thing after another, until a signal.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sysgenid::Reason;

use super::cycle::{Cycle, Next};
use super::error::AgentError;
use super::machine::{Agent, Asked, Part};
use super::notify;
use super::runner::LOOK;
use super::source::Source;

impl<S: Source> Agent<'_, S> {
    /// Every generation, first one that began before the watcher was opened, and every request of the host,
    /// until a signal.
    pub(super) fn follow(&mut self) -> Result<(), AgentError> {
        // Whoever is ended before it has caught up finds at its next start from where on.
        if self.nothing_missed {
            self.save(self.old)?;
        }
        loop {
            match self.turn()? {
                Turn::Worked => {}
                Turn::Idle => self.sleep()?,
                Turn::Failed(generation) => self.pause(self.args.retry, generation)?,
            }
            if let Some(signal) = self.signals.pending() {
                let text = format!("ending on signal {signal}");
                self.log.say("ended", [("signal", signal.into())], &text);
                self.end_contracts();
                return Ok(());
            }
        }
    }

    /// As `follow`, but does not wait for more to do; nor for a failure to go away, more than a few times.
    #[cfg(test)]
    pub(super) fn until_idle(&mut self) -> Result<(), AgentError> {
        for _ in 0..5 {
            let idle = matches!(self.turn()?, Turn::Idle);
            if idle || self.signals.pending().is_some() {
                break;
            }
        }
        Ok(())
    }

    /// One thing of what there is to do: a generation before a request.
    fn turn(&mut self) -> Result<Turn, AgentError> {
        if matches!(self.part, Part::Wanted | Part::Busy) {
            self.take_role();
        }
        let success = self.args.require_success;
        if let Some(new) = self.due()? {
            let quiesced = self.left_quiesced().is_some();
            let next = self.cycle(Cycle::generation(success, quiesced), None)?;
            return self.worked(next, new);
        }
        // Or a former agent was ended before it could.
        if let Some(resumed) = self.left_quiesced() {
            let new = self.watcher.current()?;
            let next = self.cycle(Cycle::left_quiesced(resumed, !self.nothing_missed), None)?;
            if next != Next::Over {
                return self.worked(next, new);
            }
        }
        self.catch_up()?;
        match self.asked()? {
            Some(asked) => {
                let cycle = Cycle::asked(self.args.freeze, success);
                let next = self.cycle(cycle, Some(asked))?;
                self.worked(next, self.watcher.current()?)
            }
            None => Ok(Turn::Idle),
        }
    }

    /// What a cycle came to that ended in the generation `new`. A machine that is not whole is not cloned.
    fn worked(&mut self, next: Next, new: u32) -> Result<Turn, AgentError> {
        if !matches!(next, Next::Retry | Next::Quiesced) {
            return Ok(Turn::Worked);
        }
        if let Some(asked) = self.asked()? {
            self.refuse(&asked, Reason::Busy);
        }
        Ok(Turn::Failed(new))
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

    /// The host's request, if there is one that was not answered.
    fn asked(&self) -> Result<Option<Asked>, AgentError> {
        if self.part != Part::Taken {
            return Ok(None);
        }
        let request = self.watcher.request()?;
        let new = request.filter(|request| Some(request.ticket) != self.answered);
        Ok(new.map(Asked::new))
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

    /// Sleeps until the watcher is outdated, the host asks for something, or a signal comes.
    fn sleep(&self) -> Result<(), AgentError> {
        let ways = match self.part {
            Part::Taken => PollFlags::IN | PollFlags::PRI,
            _ => PollFlags::IN,
        };
        // Nobody tells when another agent has ended.
        let limit = (self.part == Part::Busy).then_some(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let mut files = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.watcher, ways),
        ];
        match poll(&mut files, limit.as_ref()) {
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
}

/// What a turn of the loop came to.
enum Turn {
    Worked,
    /// There was nothing to do.
    Idle,
    /// The hooks of this generation are to be run again after a pause.
    Failed(u32),
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
