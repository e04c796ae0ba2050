//! A net under a clone whose programs are frozen: another thread thaws them, if the agent does not in time.
//!
//! The agent may sleep in the kernel where nothing wakes it: in a call of the driver, or at a hook's file
//! on a file system that hangs.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::freezer::Freezer;
use super::machine::Agent;
use super::source::Source;
use crate::output::{Log, report};

/// How much later than the hooks' time is over: the end of one that does not die takes 5 s.
const SLACK: Duration = Duration::from_secs(8);

/// Is there until it is dropped; then nothing is thawed any more.
#[derive(Debug)]
pub(super) struct Net(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Shared {
    fn over(&self) -> MutexGuard<'_, bool> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Net {
    /// Has `freezer` thaw what it has frozen, in `limit`.
    ///
    /// # Errors
    /// When there can be no other thread.
    fn spread(freezer: Freezer, log: Log, limit: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let other = Arc::clone(&shared);
        let wait = move || {
            let waited = other
                .changed
                .wait_timeout_while(other.over(), limit, |over| !*over);
            // Held until all are thawed: who drops the net freezes nothing meanwhile.
            let (over, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if *over {
                return;
            }
            let (groups, text) = match freezer.thaw() {
                Ok(groups) => (
                    groups,
                    "the agent hangs: programs are thawed without it".into(),
                ),
                Err(error) => (0, format!("the agent hangs: {}", report(&error))),
            };
            log.say("hangs", [("groups", groups.into())], &text);
        };
        thread::Builder::new().name("net".into()).spawn(wait)?;
        Ok(Self(shared))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        *self.0.over() = true;
        self.0.changed.notify_all();
    }
}

impl<S: Source> Agent<'_, S> {
    /// Over the programs of this clone, from its beginning on.
    pub(super) fn spread_net(&self) -> Option<Net> {
        let freezer = self.freezer.as_ref().ok()?.clone();
        let limit = self.args.frozen_limit.saturating_add(SLACK);
        let spread = Net::spread(freezer, self.log, limit);
        let told = |error: &io::Error| {
            let text = format!("nobody thaws programs if this agent hangs: {error}");
            self.log
                .say("no-net", [("error", error.to_string().into())], &text);
        };
        spread.inspect_err(told).ok()
    }
}
