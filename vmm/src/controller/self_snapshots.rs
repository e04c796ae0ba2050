//! Snapshots that the guest asks for. Whether, how often and where is the host's: the guest says a tag, which is shown and used for nothing.

use std::io;
use std::path::{self, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmgenie_devices::throttle::Throttle;
use vmgenie_machine::request::{CreateSnapshot, MEMORY_FILE, STATE_FILE};
use vmgenie_snapshot::own_files::{OwnDir, TrustError};

use super::command::{CommandResult, Reply, SelfSnapshot, SelfSnapshotConfig};
use super::{Controller, refused};

/// What the host lets its guest have, and what the guest has had of it.
#[derive(Debug)]
pub(super) struct SelfSnapshots {
    config: SelfSnapshotConfig,
    taken: Vec<SelfSnapshot>,
    /// The directory of the one that is being taken.
    place: Option<OwnDir>,
    granted: Option<Instant>,
    complaints: Throttle,
}

/// Why a guest gets no snapshot of itself.
#[derive(Debug, Error)]
pub(super) enum NoSelfSnapshot {
    #[error("it has had its {0} already")]
    TooMany(u32),
    #[error("it has asked too soon: the next one may be in {0:?}")]
    TooSoon(Duration),
    #[error("there is no place for it")]
    Place(#[source] TrustError),
}

/// Why the host's rules are none.
#[derive(Debug, Error)]
enum ConfigRefused {
    #[error("could not tell where {0:?} is, where snapshots that the guest asks for shall go")]
    Absolute(PathBuf, #[source] io::Error),
    #[error("snapshots that the guest asks for cannot go into {0:?}")]
    Directory(PathBuf, #[source] TrustError),
}

impl SelfSnapshots {
    fn new(config: SelfSnapshotConfig) -> Result<Self, ConfigRefused> {
        let directory = path::absolute(&config.directory);
        let directory =
            directory.map_err(|error| ConfigRefused::Absolute(config.directory.clone(), error))?;
        OwnDir::make(&directory)
            .map_err(|error| ConfigRefused::Directory(directory.clone(), error))?;
        Ok(Self {
            config: SelfSnapshotConfig {
                directory,
                ..config
            },
            taken: Vec::new(),
            place: None,
            granted: None,
            complaints: Throttle::default(),
        })
    }

    /// The number of the one that the guest may have now.
    pub(super) fn grant(&mut self, now: Instant) -> Result<u32, NoSelfSnapshot> {
        let Self { config, taken, .. } = &*self;
        let number = u32::try_from(taken.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        if number > config.count {
            return Err(NoSelfSnapshot::TooMany(config.count));
        }
        let since = |then| now.saturating_duration_since(then);
        match config
            .interval
            .checked_sub(self.granted.map_or(Duration::MAX, since))
        {
            Some(left) if !left.is_zero() => Err(NoSelfSnapshot::TooSoon(left)),
            _ => {
                self.granted = Some(now);
                Ok(number)
            }
        }
    }

    /// How long the guest may take for it.
    pub(super) fn quiesce(&self) -> Duration {
        self.config.quiesce
    }

    /// What is written for it. The drives are copied: the guest goes on with its own.
    pub(super) fn request(&self, number: u32) -> CreateSnapshot {
        let place = self.place(number);
        CreateSnapshot {
            state: place.join(STATE_FILE),
            memory: place.join(MEMORY_FILE),
            resume: true,
            pause: false,
            copy_drives: true,
            cooperative: None,
        }
    }

    /// Makes the directory for it, which is nobody else's.
    pub(super) fn make_place(&mut self, number: u32) -> Result<(), NoSelfSnapshot> {
        let made = OwnDir::make_new(&self.place(number));
        self.place = Some(made.map_err(NoSelfSnapshot::Place)?);
        Ok(())
    }

    /// It is there, or nothing came of it and its directory goes.
    pub(super) fn end(&mut self, snapshot: SelfSnapshot, there: bool) {
        let place = self.place.take();
        if there {
            self.taken.push(snapshot);
        } else if let Some(place) = place {
            place.remove_if_made();
        }
    }

    /// Tells of a refusal, but not of each one of a guest that asks all the time.
    pub(super) fn complain(&mut self, tag: u32, why: &(dyn std::error::Error + 'static)) {
        if let Some(more) = self.complaints.allows(Instant::now()) {
            let why = vmgenie_machine::report::report(why);
            tracing::warn!(tag, why, more, "the guest gets no snapshot of itself");
        }
    }

    fn place(&self, number: u32) -> PathBuf {
        self.config.directory.join(number.to_string())
    }
}

impl Controller {
    pub(super) fn set_self_snapshot(&mut self, config: SelfSnapshotConfig) -> CommandResult {
        self.before_start("what the guest may have of snapshots of itself")?;
        self.self_snapshots = Some(SelfSnapshots::new(config).map_err(refused)?);
        Ok(Reply::Done)
    }

    pub(super) fn show_self_snapshots(&self) -> Reply {
        let rules = self.self_snapshots.as_ref();
        Reply::SelfSnapshots(
            rules.map(|rules| rules.config.clone()),
            rules.map_or_else(Vec::new, |rules| rules.taken.clone()),
        )
    }
}

#[cfg(test)]
#[path = "self_snapshots_test.rs"]
mod tests;
