//! The snapshot of itself that a guest asks for, where its host lets it.
//!
//! The guest writes a tag to ASK and reads it until the host has decided. A host that agrees makes a
//! request as any other: its ticket is in REQUEST while ASK still reads 1. A request of somebody else's
//! turns ASK to 2, so that nobody takes that for an answer. Nothing of it is in a snapshot: who was
//! cloned has asked nothing.

use std::time::Duration;

use super::fork::AskError;
use super::{FEATURE_SELF, SysGen};

/// What ASK reads.
const NOTHING: u32 = 0;
const ASKED: u32 = 1;
const REFUSED: u32 = 2;

/// What has become of what the guest asked for last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    /// It has not asked, or it is over.
    #[default]
    Nothing,
    /// The host has not decided; the tag.
    Waits(u32),
    /// The present request is what it asked for.
    Granted,
    /// The host does not agree.
    Refused,
}

/// The register ASK.
#[derive(Debug, Default)]
pub(super) struct OwnSnapshot {
    allowed: bool,
    asked: Asked,
}

impl OwnSnapshot {
    /// What it adds to FEATURES.
    pub(super) fn features(&self) -> u32 {
        match self.allowed {
            true => FEATURE_SELF,
            false => 0,
        }
    }

    /// ASK, where FEATURES has it; `open` is whether a request is under way.
    pub(super) fn read(&self, open: bool) -> Option<u32> {
        self.allowed.then_some(match self.asked {
            Asked::Waits(_) => ASKED,
            Asked::Granted if open => ASKED,
            Asked::Refused => REFUSED,
            Asked::Nothing | Asked::Granted => NOTHING,
        })
    }

    /// The guest asks, or not any more. True if the host has something to decide that it had not before.
    fn write(&mut self, tag: u32, open: bool) -> bool {
        let waited = matches!(self.asked, Asked::Waits(_));
        self.asked = match (tag, self.asked) {
            // It is the host's request by now.
            (0, Asked::Granted) => Asked::Granted,
            (0, _) => Asked::Nothing,
            (tag, _) if self.allowed && !open => Asked::Waits(tag),
            _ => Asked::Refused,
        };
        !waited && matches!(self.asked, Asked::Waits(_))
    }

    /// A request begins that is none of the guest's own.
    pub(super) fn other_asked(&mut self) {
        self.asked = match self.asked {
            Asked::Waits(_) | Asked::Refused => Asked::Refused,
            Asked::Nothing | Asked::Granted => Asked::Nothing,
        };
    }

    /// Who asked has gone.
    pub(super) fn forget(&mut self) {
        self.asked = Asked::Nothing;
    }
}

impl SysGen {
    /// Lets the guest ask for snapshots of itself, or no more. A device that was made or restored does
    /// not. The driver looks at FEATURES before each use, so this may change at any time.
    pub fn allow_self_fork(&mut self, allowed: bool) {
        self.own.allowed = allowed;
        if !allowed {
            self.refuse_self_fork();
        }
    }

    /// The tag under which the guest asks for a snapshot of itself, if it waits for the host's decision.
    pub fn self_asked(&self) -> Option<u32> {
        match self.own.asked {
            Asked::Waits(tag) => Some(tag),
            _ => None,
        }
    }

    /// Agrees: asks the guest for a fork point as [`Self::ask_for_fork`] does. *Afterwards:* the driver is
    /// notified.
    ///
    /// # Errors
    /// [`AskError`]: the guest does not ask any more, or cannot be asked.
    pub fn grant_self_fork(&mut self, ticket: u32, limit: Duration) -> Result<(), AskError> {
        if self.self_asked().is_none() {
            return Err(AskError::NotWanted);
        }
        self.ask_for_fork(ticket, limit)?;
        self.own.asked = Asked::Granted;
        Ok(())
    }

    /// Refuses; false if the guest does not ask. *Afterwards:* the driver is notified.
    pub fn refuse_self_fork(&mut self) -> bool {
        let asked = self.self_asked().is_some();
        if asked {
            self.own.asked = Asked::Refused;
        }
        asked
    }

    /// A write to ASK.
    pub(super) fn write_ask(&mut self, tag: u32) {
        let open = self.fork.is_open();
        if self.own.write(tag, open) {
            self.tell_of_fork();
        }
    }
}

#[cfg(test)]
#[path = "own_test.rs"]
mod tests;
