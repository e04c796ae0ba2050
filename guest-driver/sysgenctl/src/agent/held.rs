//! Directories of hooks that others have defined, and which are told in words what to do: those of systemd's sleep
//! and of QEMU's guest agent. They are the last before a snapshot and the first after it, also in a clone: what
//! they may have frozen is thawed before any other hook writes to it.

use std::path::PathBuf;

use sysgenid::Reason;

use super::cycle::Answer;
use super::hooks::{self, HooksError};
use super::machine::Agent;
use super::runner::Runner;
use super::source::Source;
use crate::args::AgentArgs;

/// What the hooks of one directory are called with.
struct Held {
    directory: PathBuf,
    before: &'static [&'static str],
    after: &'static [&'static str],
}

/// The directories in the order of before a snapshot.
fn held(args: &AgentArgs) -> Vec<Held> {
    let dirs = &args.contracts.directories;
    let sleep = dirs.system_sleep.iter().map(|directory| Held {
        directory: directory.clone(),
        before: &["pre", "suspend"],
        after: &["post", "suspend"],
    });
    let freeze = dirs.fsfreeze_hooks.iter().map(|directory| Held {
        directory: directory.clone(),
        before: &["freeze"],
        after: &["thaw"],
    });
    sleep.chain(freeze).collect()
}

/// Looks at all directories: what is wrong with them from the beginning is told then.
///
/// # Errors
/// When one of them is missing, cannot be read, or others could put files into it.
pub(super) fn check(args: &AgentArgs) -> Result<(), HooksError> {
    held(args)
        .iter()
        .try_for_each(|held| hooks::find(&held.directory).map(drop))
}

impl<S: Source> Agent<'_, S> {
    /// Before a snapshot, after all else.
    pub(super) fn hold(&self, runner: &Runner<'_>) -> Answer {
        self.held.set(true);
        for held in held(self.args) {
            match self.each(runner, hooks::find(&held.directory), held.before) {
                Answer::Done => {}
                ended => return ended,
            }
        }
        Answer::Done
    }

    /// After it, before all else: until it has succeeded once.
    pub(super) fn let_go(&self, runner: &Runner<'_>) -> Answer {
        if !self.held.get() {
            return Answer::Done;
        }
        let mut round = Answer::Done;
        for held in held(self.args).iter().rev() {
            match self.each(runner, hooks::find(&held.directory), held.after) {
                Answer::Done => {}
                failed @ Answer::Failed(Reason::HookFailed | Reason::HookHung) => round = failed,
                ended => return ended,
            }
        }
        self.held.set(round != Answer::Done);
        round
    }
}

#[cfg(test)]
#[path = "held_test.rs"]
mod tests;
