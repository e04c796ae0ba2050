//! Snapshots on disk: the two files, how they are written, published and found again.
//!
//! A snapshot is a *state file* (everything that is not memory: [`StateWriter`], [`StateReader`])
//! and a *memory file* (guest memory and a trailer: [`memory_file`]). Both carry one
//! [`SnapshotId`]. No KVM in here: the states are what the [`Part`]s of the machine say.
//!
//! Creating goes through [`Staging`], which keeps what the VM has to stand still for
//! ([`Staging::write_memory`]) apart from what only the caller waits for ([`Staging::sync`],
//! [`Staging::publish`]). Loading is [`open_snapshot`].
//!
//! # What a crash leaves
//! Two files cannot be replaced in one step, so a snapshot is published in this order, all under a
//! lock on the directories, each step durable before the next one begins:
//!
//! 1. both files, complete and synced but without a name, get *staged* names in the directories of
//!    their targets;
//! 2. the state file is renamed to its target: from here on the new snapshot is the snapshot;
//! 3. the memory file is renamed to its target.
//!
//! A crash before 2 leaves the old snapshot whole. A crash between 2 and 3 leaves the new one
//! whole, its memory under its staged name, which carries the ID that the state file names:
//! [`open_snapshot`] looks there and finishes the renaming. What a crash before 2 leaves behind
//! (nothing at all before 1, where the file system can do without names) is removed by the next
//! create for the same two paths and by [`sweep`]. Files are never written in place, so machines
//! that run from an earlier snapshot keep their memory.

pub mod end_request;
pub mod fault;
mod header;
mod id;
mod load;
mod made_file;
pub mod memory_file;
mod memory_source;
mod named_file;
#[cfg(any(test, feature = "testing"))]
pub mod not_looked_at;
pub mod own_files;
mod pagemap;
mod publish;
mod staged;
mod state;
mod sweep;
mod target;
#[cfg(test)]
mod test_support;
mod trust;
mod write_memory;

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

pub use header::{FORMAT, HEADER_LENGTH, Header, HeaderError, MAX_PAYLOAD_LENGTH, OLDEST_FORMAT};
pub use id::SnapshotId;
pub use load::{LoadError, LoadedSnapshot, open_judged, open_snapshot};
pub use made_file::MadeFile;
pub use memory_file::MemoryFileError;
pub use memory_source::{MemorySource, MemorySourceError};
pub use named_file::NamedFile;
pub use publish::{CreateError, Staging};
pub use state::WriteStateError;
pub use state::{MAX_PARTS, MAX_TAG_LENGTH, Part, StateError, StateReader, StateWriter};
pub use sweep::{sweep, with_current};
pub use target::TargetError;
pub use trust::Distrust;
pub use write_memory::{WriteMemoryError, Written};

/// How a file is opened that should be a regular one: without NONBLOCK the open of a FIFO would wait for its writer.
const REGULAR: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Opens the regular file at `path` for reading; returns it with its length in bytes, or `None` if
/// something else has that name.
pub fn open_regular(path: &Path) -> io::Result<Option<(File, u64)>> {
    // Not opened before its kind is known: to open a device may do something.
    if !std::fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = File::from(rustix::fs::open(path, REGULAR, Mode::empty())?);
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata.len())))
}
