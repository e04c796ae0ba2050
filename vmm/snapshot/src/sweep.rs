//! Removing what crashed creates have left, and finishing the one that had got past its commit.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::target::{StagedName, Target, Targets};
use super::{HEADER_LENGTH, Header, SnapshotId};

/// How long a sweep waits for one who publishes.
const SWEEP_PATIENCE: Duration = Duration::from_millis(100);

/// Tidies up beside the two files of a snapshot, as far as this is permitted and nobody keeps
/// publishing there: removes what crashed creates for the same two paths have left, and
/// finishes the renaming of one that was interrupted in it.
///
/// Creating does this by itself. A restore has no time for it: call it when the guest runs.
pub fn sweep(state: &Path, memory: &Path) {
    sweep_within(state, memory, SWEEP_PATIENCE);
}

/// The same, waiting no longer than `patience` for somebody who publishes.
pub(super) fn sweep_within(state: &Path, memory: &Path, patience: Duration) {
    let swept = || {
        let targets = Targets::resolve(state, memory).map_err(io::Error::other)?;
        // Most often there is nothing, and nobody needs to wait or to write.
        if !targets.has_left_overs()? {
            return Ok(());
        }
        let _lock = targets.lock(patience).map_err(io::Error::other)?;
        sweep_locked(&targets)
    };
    if let Err(error) = swept() {
        tracing::debug!(?state, ?memory, %error, "left-overs of creates were not removed");
    }
}

/// Calls `then` with the ID of the snapshot that is current in this place, while nobody can publish
/// another one there. Not at all if there is none, it cannot be read, or somebody keeps publishing.
pub fn with_current(state: &Path, memory: &Path, then: impl FnOnce(SnapshotId)) {
    let found = Targets::resolve(state, memory)
        .map_err(io::Error::other)
        .and_then(|targets| {
            let lock = targets.lock(SWEEP_PATIENCE).map_err(io::Error::other)?;
            Ok((lock, targets))
        });
    match found {
        Ok((_lock, targets)) => {
            if let Current::Snapshot(id) = current(&targets.state) {
                then(id);
            }
        }
        Err(error) => tracing::debug!(?state, %error, "could not see which snapshot is current"),
    }
}

/// What the target of the state file holds.
#[derive(Debug, PartialEq, Eq)]
enum Current {
    /// Nothing: no staged memory is anybody's.
    Nothing,
    /// The state of this snapshot, whose memory may still be staged.
    Snapshot(SnapshotId),
    /// Something that cannot be read now. A newer vmgenie might.
    Unknown,
}

/// Does what [`sweep`] says. The caller holds the lock on both directories, so nobody is between
/// the two renames.
pub(super) fn sweep_locked(targets: &Targets) -> io::Result<()> {
    let current = current(&targets.state);
    let memory = targets.memory.staged()?.into_iter().map(|staged| {
        if current == Current::Snapshot(staged.id) {
            roll_forward(&targets.memory, &staged)
        } else if current != Current::Unknown && targets.owns(&staged) {
            remove_dead(&targets.memory, &staged)
        } else {
            Ok(())
        }
    });
    let state = targets.state.staged()?.into_iter().map(|staged| {
        if targets.owns(&staged) {
            remove_dead(&targets.state, &staged)
        } else {
            Ok(())
        }
    });
    // What cannot be removed does not keep the rest from being removed.
    memory.chain(state).fold(Ok(()), io::Result::and)
}

fn current(state: &Target) -> Current {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat(state.directory(), state.name(), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Current::Nothing,
        Err(_) => return Current::Unknown,
    };
    let mut header = Vec::with_capacity(HEADER_LENGTH);
    match file.take(HEADER_LENGTH as u64).read_to_end(&mut header) {
        Ok(_) => Header::peek(&header).map_or(Current::Unknown, |h| Current::Snapshot(h.id)),
        Err(_) => Current::Unknown,
    }
}

/// Finishes a create that died between its two renames.
fn roll_forward(memory: &Target, staged: &StagedName) -> io::Result<()> {
    if memory.is_replaceable()? && lock_dead(memory, staged)?.is_some() {
        memory.replace_by(&staged.name)?;
        memory.sync_directory()?;
    }
    Ok(())
}

/// Removes a staged file unless a living process writes it.
fn remove_dead(target: &Target, staged: &StagedName) -> io::Result<()> {
    if lock_dead(target, staged)?.is_some() {
        rustix::fs::unlinkat(target.directory(), &staged.name, AtFlags::empty())?;
    }
    Ok(())
}

/// Opens and locks a staged file; `None` if a living process holds it, or it is none of ours.
fn lock_dead(target: &Target, staged: &StagedName) -> io::Result<Option<File>> {
    // Writable, because some network file systems lock exclusively only then.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match rustix::fs::openat(target.directory(), &staged.name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
