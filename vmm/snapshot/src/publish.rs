//! Creating a snapshot: written unseen, made durable, and only then given its names.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::staged::StagedFile;
use super::sweep::sweep_locked;
use super::target::{Target, Targets};
use super::write_memory::{copy_bases, total_length, write_changed};
use super::{
    Header, HeaderError, MemorySource, SnapshotId, TargetError, WriteMemoryError, Written, fault,
    memory_file,
};
use crate::end_request;
use crate::own_files::LockError;

/// How long a create waits for others that publish in the same directories. They need a few syncs.
/// It waits in the thread that serves the guest's devices: not long.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Why a snapshot could not be created. Unless the message says otherwise, what was there before is
/// untouched and nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A path cannot be the target of a snapshot.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The operating system has no random bytes.
    #[error("could not draw a snapshot ID")]
    Random(#[source] io::Error),
    /// A method was called before the one that must come first.
    #[error("{0} comes before the snapshot can go on")]
    OutOfOrder(&'static str),
    /// The file could not be created.
    #[error("could not create a file beside {path:?}")]
    Create {
        /// The target.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Guest memory could not be written.
    #[error("could not write the memory file {path:?}")]
    WriteMemory {
        /// The target.
        path: PathBuf,
        /// What failed.
        source: WriteMemoryError,
    },
    /// A file could not be written or made durable.
    #[error("could not write {path:?}")]
    Write {
        /// The target.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The state is not a state file.
    #[error("the state that is to become {path:?} was refused")]
    BadState {
        /// The target.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The state is that of another snapshot or another memory.
    #[error("the state that is to become {0:?} belongs to another snapshot or memory size")]
    ForeignState(PathBuf),
    /// Another process keeps publishing there, or locks are refused.
    #[error("could not lock the directory of {path:?} against other snapshots")]
    Lock {
        /// The target.
        path: PathBuf,
        /// Who holds the lock, or what is wrong with it.
        source: LockError,
    },
    /// A file could not be given its name.
    #[error("could not publish {path:?}")]
    Publish {
        /// The target.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The state file is in its place and the memory file could not be moved to its own.
    #[error(
        "the snapshot was created and can be restored; moving its memory from {staged:?} to {path:?} \
         for good failed"
    )]
    Unfinished {
        /// Where the memory is.
        staged: PathBuf,
        /// Where it should be.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// How far the memory file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Empty,
    BaseCopied,
    /// Bytes of guest memory.
    Written(u64),
    /// A write failed; what is in the file is anybody's guess.
    Failed,
}

/// A snapshot that is being created. Nothing of it can be seen until [`publish`](Self::publish),
/// and dropping it leaves nothing.
///
/// The calls come in this order: [`copy_base`](Self::copy_base) (a clone only; the machine may
/// run), [`write_memory`](Self::write_memory) (the machine stands still),
/// [`write_state`](Self::write_state), [`sync`](Self::sync), `publish` (the machine may run again).
#[derive(Debug)]
pub struct Staging {
    id: SnapshotId,
    targets: Targets,
    memory_file: StagedFile,
    state_file: StagedFile,
    memory: Memory,
    state_written: bool,
    synced: bool,
}

impl Staging {
    /// Begins a snapshot that is to become the files `state` and `memory`, which may exist; they
    /// stay as they are until the snapshot is published. Symbolic links are followed. What earlier
    /// creates for the same two files left when they crashed is removed first.
    ///
    /// # Errors
    /// The two paths lead to different places, in directories that exist, where there are regular
    /// files or nothing.
    pub fn new(state: &Path, memory: &Path) -> Result<Self, CreateError> {
        let targets = Targets::resolve(state, memory)?;
        let id = SnapshotId::generate().map_err(CreateError::Random)?;
        // Best effort, but early: a dead writer's memory may be what fills the disk.
        if let (Ok(true), Ok(_lock)) = (targets.has_left_overs(), targets.lock(Duration::ZERO)) {
            let _ = sweep_locked(&targets);
        }
        let create = |target: &Target| {
            let name = targets.staged_name(target, id);
            StagedFile::create(target, name).map_err(|source| CreateError::Create {
                path: target.path(),
                source,
            })
        };
        let mut memory_file = create(&targets.memory)?;
        let state_file =
            create(&targets.state).inspect_err(|_| memory_file.discard(&targets.memory))?;
        let memory = Memory::Empty;
        let staging = Self {
            id,
            targets,
            memory_file,
            state_file,
            memory,
            state_written: false,
            synced: false,
        };
        staging.pass("staging-created", |staging| &staging.targets.state)?;
        Ok(staging)
    }

    /// The identifier of the snapshot, for [`StateWriter::new`](super::StateWriter::new).
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Where the state file will be: not the link that may lead there.
    pub fn state_path(&self) -> PathBuf {
        self.targets.state.path()
    }

    /// Copies what the bases of `sources` hold, so that this is not done while the machine stands
    /// still. Reads no guest memory. [`write_memory`](Self::write_memory) then gets the same
    /// sources.
    ///
    /// # Errors
    /// Fails if the sources are not contiguous, a base is too short, or the disk is full.
    pub fn copy_base(&mut self, sources: &[MemorySource<'_>]) -> Result<(), CreateError> {
        if self.memory != Memory::Empty {
            return Err(CreateError::OutOfOrder(
                "copy_base, once and before write_memory,",
            ));
        }
        self.memory = Memory::Failed;
        self.copy(sources)
            .map_err(|source| self.memory_error(source))?;
        self.memory = Memory::BaseCopied;
        Ok(())
    }

    /// Writes guest memory: the pages that exist, of those the ones that are not zero. The
    /// machine stands still meanwhile (see [`MemorySource::new`]); nothing is synced here.
    ///
    /// # Errors
    /// Fails if the sources are not contiguous, a base is too short, or the disk is full.
    pub fn write_memory(&mut self, sources: &[MemorySource<'_>]) -> Result<Written, CreateError> {
        let before = std::mem::replace(&mut self.memory, Memory::Failed);
        let copied = match before {
            Memory::Empty => self.copy(sources),
            Memory::BaseCopied => Ok(()),
            Memory::Written(_) | Memory::Failed => {
                return Err(CreateError::OutOfOrder("write_memory, once,"));
            }
        };
        let written = copied
            .and_then(|()| write_changed(self.memory_file.file(), sources))
            .map_err(|source| self.memory_error(source))?;
        let length = written.memory_length;
        memory_file::write_trailer(self.memory_file.file(), &self.id, length)
            .map_err(|source| self.write_error(&self.targets.memory, source))?;
        self.memory = Memory::Written(length);
        self.pass("memory-written", |staging| &staging.targets.memory)?;
        Ok(written)
    }

    /// Writes the state file, made by a [`StateWriter`](super::StateWriter) for this snapshot's
    /// [`id`](Self::id) and the length of the memory that was written.
    ///
    /// # Errors
    /// Fails if it is not that, or the disk is full.
    pub fn write_state(&mut self, bytes: &[u8]) -> Result<(), CreateError> {
        let Memory::Written(memory_length) = self.memory else {
            return Err(CreateError::OutOfOrder("write_memory"));
        };
        let path = || self.targets.state.path();
        let header = Header::peek(bytes).map_err(|source| CreateError::BadState {
            path: path(),
            source,
        })?;
        if header.id != self.id || header.memory_length != memory_length {
            return Err(CreateError::ForeignState(path()));
        }
        let file = self.state_file.file();
        file.set_len(0)
            .and_then(|()| file.write_all_at(bytes, 0))
            .map_err(|source| self.write_error(&self.targets.state, source))?;
        self.state_written = true;
        self.synced = false;
        self.pass("state-written", |staging| &staging.targets.state)
    }

    /// Makes both files durable. This takes as long as the disk does; the machine may run.
    ///
    /// # Errors
    /// Fails if the disk does, some file systems tell only here that it is full.
    pub fn sync(&mut self) -> Result<(), CreateError> {
        if !self.state_written {
            return Err(CreateError::OutOfOrder("write_state"));
        }
        self.memory_file
            .file()
            .sync_all()
            .map_err(|source| self.write_error(&self.targets.memory, source))?;
        self.pass("memory-synced", |staging| &staging.targets.memory)?;
        end_request::check().map_err(|source| self.write_error(&self.targets.state, source))?;
        self.state_file
            .file()
            .sync_all()
            .map_err(|source| self.write_error(&self.targets.state, source))?;
        self.synced = true;
        self.pass("synced", |staging| &staging.targets.state)
    }

    /// Gives both files their names, replacing what has them. When this returns, the snapshot
    /// survives a crash of the host.
    ///
    /// # Errors
    /// With [`CreateError::Unfinished`] the snapshot is there and can be restored. With any other
    /// error what was there before is whole.
    pub fn publish(mut self) -> Result<(), CreateError> {
        if !self.synced {
            return Err(CreateError::OutOfOrder("sync"));
        }
        let _lock = self
            .targets
            .lock(LOCK_PATIENCE)
            .map_err(|source| CreateError::Lock {
                path: self.targets.state.path(),
                source,
            })?;
        self.stage_and_commit()
            .map_err(|(path, source)| CreateError::Publish { path, source })?;
        self.move_memory()
            .map_err(|source| CreateError::Unfinished {
                staged: self.targets.memory.sibling(self.memory_file.name()),
                path: self.targets.memory.path(),
                source,
            })
    }

    /// Everything up to the rename of the state file, which makes this snapshot the current one.
    fn stage_and_commit(&mut self) -> Result<(), (PathBuf, io::Error)> {
        let (state, memory) = (&self.targets.state, &self.targets.memory);
        let of_state = |error: io::Error| (state.path(), error);
        let of_memory = |error: io::Error| (memory.path(), error);
        fault::pass("locked").map_err(of_state)?;
        // The last look: what follows is short, but for what has been synced already.
        end_request::check().map_err(of_state)?;
        // A create that died between its renames must be finished first: its memory is the only
        // memory of the snapshot that is current until ours is.
        let _ = sweep_locked(&self.targets);
        // After the commit it would be too late to find out that the memory cannot be renamed.
        if !memory.is_replaceable().map_err(of_memory)? {
            return Err(of_memory(io::Error::other(
                "it is no longer a regular file",
            )));
        }
        self.memory_file.stage(memory).map_err(of_memory)?;
        fault::pass("memory-staged").map_err(of_memory)?;
        self.state_file.stage(state).map_err(of_state)?;
        fault::pass("state-staged").map_err(of_state)?;
        // The commit must not become durable before the name does that it relies on. Some file
        // systems promise that for a file that is new in its directory only if it is synced too.
        self.memory_file.file().sync_all().map_err(of_memory)?;
        self.state_file.file().sync_all().map_err(of_state)?;
        memory.sync_directory().map_err(of_memory)?;
        fault::pass("staged-names-synced").map_err(of_state)?;
        state.replace_by(self.state_file.name()).map_err(of_state)?;
        // From here on the staged memory is the current snapshot's.
        self.state_file.keep();
        self.memory_file.keep();
        Ok(())
    }

    /// The rest after the commit. The new state must be durable before the old memory goes.
    fn move_memory(&mut self) -> io::Result<()> {
        let Targets { state, memory, .. } = &self.targets;
        fault::pass("state-renamed")?;
        state.sync_directory()?;
        fault::pass("state-rename-synced")?;
        memory.replace_by(self.memory_file.name())?;
        fault::pass("memory-renamed")?;
        memory.sync_directory()?;
        fault::pass("memory-rename-synced")
    }

    fn copy(&self, sources: &[MemorySource<'_>]) -> Result<(), WriteMemoryError> {
        let file = self.memory_file.file();
        let length = total_length(sources)?.saturating_add(memory_file::TRAILER_LENGTH);
        file.set_len(length)
            .map_err(|source| WriteMemoryError::Resize { length, source })?;
        copy_bases(file, sources)
    }

    fn memory_error(&self, source: WriteMemoryError) -> CreateError {
        CreateError::WriteMemory {
            path: self.targets.memory.path(),
            source,
        }
    }

    fn write_error(&self, target: &Target, source: io::Error) -> CreateError {
        CreateError::Write {
            path: target.path(),
            source,
        }
    }

    /// Passes a fault injection point; an injected error is one of writing the target.
    fn pass(
        &self,
        point: &'static str,
        target: impl FnOnce(&Self) -> &Target,
    ) -> Result<(), CreateError> {
        fault::pass(point).map_err(|source| self.write_error(target(self), source))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.memory_file.discard(&self.targets.memory);
        self.state_file.discard(&self.targets.state);
    }
}

#[cfg(test)]
#[path = "publish_test.rs"]
mod tests;

#[cfg(test)]
#[path = "crash_test.rs"]
mod crash_tests;
