//! Finding and opening a snapshot, also one whose creator died in the middle of publishing it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sweep::sweep_within;
use super::target::Targets;
use super::trust::{self, Distrust};
use super::{MemoryFileError, SnapshotId, StateError, StateReader, memory_file};

/// How often a pair of files that does not match is looked at again, in case somebody is
/// publishing: each look after the first one means that another snapshot was published meanwhile.
const ATTEMPTS: usize = 100;

/// Why a snapshot could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The state file was refused.
    #[error("state file {path:?} was refused")]
    State {
        /// Path of the state file.
        path: PathBuf,
        /// Why it was refused.
        source: StateError,
    },
    /// The memory file was refused.
    #[error("memory file {path:?} was refused")]
    Memory {
        /// Path of the memory file.
        path: PathBuf,
        /// Why it was refused.
        source: MemoryFileError,
    },
}

/// A snapshot whose two files belong together.
#[derive(Debug)]
pub struct LoadedSnapshot {
    /// The snapshot's identifier.
    pub id: SnapshotId,
    /// The verified state, not yet decoded.
    pub reader: StateReader,
    /// The memory file, open for reading, to be mapped privately.
    pub memory: File,
    /// Bytes of guest memory in the memory file, from offset 0 on.
    pub memory_length: u64,
    /// Why it may be somebody else's; none as well if [`open_snapshot`] has not looked.
    pub distrust: Option<Distrust>,
}

/// Opens the snapshot that consists of the files `state` and `memory`.
///
/// The state file is verified whole, of the memory file the length and the trailer. When the
/// snapshot's creator died after its commit, the memory is taken from where it was left and, if
/// that is permitted, moved to its place.
///
/// # Errors
/// Says which file was refused and why.
pub fn open_snapshot(state: &Path, memory: &Path) -> Result<LoadedSnapshot, LoadError> {
    open_with(state, memory, || Ok((StateReader::open(state)?, None)))
}

/// Opens a snapshot as [`open_snapshot`] does, and looks whether it may be somebody else's.
///
/// # Errors
/// Says which file was refused and why.
pub fn open_judged(state: &Path, memory: &Path) -> Result<LoadedSnapshot, LoadError> {
    let mut loaded = open_with(state, memory, || trust::open_state(state))?;
    let of_memory = trust::judge_memory(memory, &loaded.memory);
    let of_memory = of_memory.map_err(|error| LoadError::Memory {
        path: memory.to_owned(),
        source: MemoryFileError::Read(error),
    })?;
    loaded.distrust = loaded.distrust.or(of_memory);
    Ok(loaded)
}

fn open_with(
    state: &Path,
    memory: &Path,
    open_state: impl Fn() -> Result<(StateReader, Option<Distrust>), StateError>,
) -> Result<LoadedSnapshot, LoadError> {
    let mut seen = None;
    let mut attempt = 0;
    loop {
        let (reader, distrust) = open_state().map_err(|source| LoadError::State {
            path: state.to_owned(),
            source,
        })?;
        let (id, memory_length) = (reader.header().id, reader.header().memory_length);
        let opened = memory_file::open(memory, &id, memory_length)
            .or_else(|refused| open_staged(state, memory, id, memory_length).ok_or(refused));
        let refused = match opened {
            Ok(memory) => {
                return Ok(LoadedSnapshot {
                    id,
                    reader,
                    memory,
                    memory_length,
                    distrust,
                });
            }
            Err(refused) => refused,
        };
        // Somebody may have published between the two opens. If nothing moves, nobody has.
        let now = (id, refused.found());
        attempt += 1;
        if seen.replace(now) == Some(now) || attempt == ATTEMPTS {
            return Err(LoadError::Memory {
                path: memory.to_owned(),
                source: refused,
            });
        }
    }
}

/// The memory of snapshot `id` under the name that its creator left it with, moved to its place if
/// possible.
fn open_staged(state: &Path, memory: &Path, id: SnapshotId, memory_length: u64) -> Option<File> {
    let targets = Targets::resolve(state, memory).ok()?;
    let staged = targets.memory.staged().ok()?;
    let file = staged
        .iter()
        .filter(|staged| staged.id == id)
        .map(|staged| targets.memory.sibling(&staged.name))
        .find_map(|path| memory_file::open(&path, &id, memory_length).ok())?;
    // A restore waits for nobody: the memory is open, under whatever name.
    sweep_within(state, memory, Duration::ZERO);
    Some(file)
}
