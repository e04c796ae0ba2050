//! Drives: raw files and block devices.
//!
//! The file is locked as long as it is in use ([`lock`]): by one VMM alone if the guest may write, by many if it may not. The lock is
//! advisory; what goes round it is on its own.

mod bits;
pub(super) mod copy_file;
mod durability;
mod engine;
pub(super) mod extents;
mod job;
pub(crate) mod lock;
pub(super) mod overlay;
mod overlay_error;
mod quick;
mod store;
mod threads;
mod uring;
mod vectored;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use thiserror::Error;
use vmgenie_devices::virtio::block::{BlockBackend, BlockError, SECTOR, Task};
use vmgenie_snapshot::NamedFile;
use vmgenie_snapshot::own_files::{self, uninterrupted};

use super::found::{DriveFiles, FileStamp};
use crate::config::{CacheMode, DriveConfig, IoEngine};

use copy_file::copy_file;
use durability::Durability;
use engine::Engine;
use extents::BeforeMove;
use lock::Use;
use overlay::Overlay;
pub use overlay_error::OverlayError;

/// Why a drive's file cannot be used.
#[derive(Debug, Error)]
pub enum DriveError {
    /// It cannot be opened.
    #[error("could not open {path:?} {}", if *.read_only { "for reading" } else { "for reading and writing" })]
    Open {
        /// The file.
        path: PathBuf,
        /// How it was opened.
        read_only: bool,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{0:?} is neither a regular file nor a block device")]
    Kind(PathBuf),
    /// It is locked.
    #[error(
        "{path:?} is in use by another microVM or program{}: give this microVM a file of its own (a clone a copy or an overlay), or end the other",
        if *.read_only { ", which may write to it" } else { ", and a drive that a guest may write to has one user alone" }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// It was wanted for reading only.
        read_only: bool,
    },
    /// Its overlay.
    #[error("could not use the overlay {path:?}")]
    Overlay {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OverlayError,
    },
    /// The guest knows something else.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Its size, its lock.
    #[error("could not {what} {path:?}")]
    Use {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An image or block device, open and locked.
#[derive(Debug)]
struct Image {
    file: File,
    path: PathBuf,
    read_only: bool,
    sectors: u64,
}

impl Image {
    /// Opens what was found; follows `path` if nothing was.
    fn open(path: &Path, found: Option<NamedFile>, read_only: bool) -> Result<Self, DriveError> {
        let failed = |source| DriveError::Open {
            path: path.to_owned(),
            read_only,
            source,
        };
        let found = found.map_or_else(|| NamedFile::at(path), Ok);
        let found = found.map_err(failed)?;
        if !found.is_file_or_block_device() {
            return Err(DriveError::Kind(path.to_owned()));
        }
        let file = found.open(!read_only).map_err(failed)?;
        lock(&file, path, read_only)?;
        Self::of(file, path.to_owned(), read_only)
    }

    /// The image in `file`, which is locked.
    fn of(file: File, path: PathBuf, read_only: bool) -> Result<Self, DriveError> {
        let size = match rustix::fs::seek(&file, SeekFrom::End(0)) {
            Ok(size) => size,
            Err(error) => {
                return Err(DriveError::Use {
                    what: "find out the size of",
                    path,
                    source: error.into(),
                });
            }
        };
        if !size.is_multiple_of(SECTOR) {
            tracing::warn!(
                path = %path.display(), size,
                "a drive's file is no multiple of 512 bytes long: the guest does not see its end"
            );
        }
        Ok(Self {
            file,
            path,
            read_only,
            sectors: size / SECTOR,
        })
    }
}

fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DriveError> {
    let how = match read_only {
        true => Use::Shared,
        false => Use::Exclusive,
    };
    match lock::try_lock(file, how) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DriveError::InUse {
            path: path.to_owned(),
            read_only,
        }),
        Err(error) if lock::is_unsupported(&error) => {
            tracing::warn!(path = %path.display(), "the file system has no locks: nothing keeps others from this drive");
            Ok(())
        }
        Err(source) => Err(DriveError::Use {
            what: "lock",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Opens and locks what was found of an overlay, or what is at `path`.
fn open_overlay(path: &Path, found: Option<NamedFile>, base: Image) -> Result<Overlay, DriveError> {
    let failed = |source| DriveError::Overlay {
        path: path.to_owned(),
        source,
    };
    let found = found.map_or_else(|| NamedFile::at(path), Ok);
    let found = found.map_err(|error| failed(error.into()))?;
    let before = match found.metadata().is_file() {
        true => BeforeMove::of(&found).map_err(failed)?,
        false => None,
    };
    let image = Image::open(path, Some(found), false)?;
    if let Some(before) = before {
        before.restore(&image.file).map_err(failed)?;
    }
    Overlay::open(image.file, base.file, base.sectors * SECTOR).map_err(failed)
}

/// The bytes that an overlay on this file would have below it: all whole sectors.
pub(super) fn base_len(base: &NamedFile) -> io::Result<u64> {
    if !base.is_file_or_block_device() {
        let what = "it is neither a regular file nor a block device";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let size = match base.metadata().is_file() {
        true => base.metadata().len(),
        false => rustix::fs::seek(base.open(false)?, SeekFrom::End(0))?,
    };
    Ok(size / SECTOR * SECTOR)
}

/// Makes the name of a file durable.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    // One that may not be read, or is not there any more, nobody can sync.
    let Ok(dir) = File::open(dir) else {
        return Ok(());
    };
    own_files::sync_directory(&dir)
}

/// A drive's file with what serves its requests.
pub struct Drive {
    engine: Engine,
    path: PathBuf,
    overlay_path: Option<PathBuf>,
    sectors: u64,
    read_only: bool,
    flushes: bool,
    /// What was there before the drive is durable, see [`Self::settle`].
    settled: bool,
    /// Of what is there but not the guest's to write.
    durability: Durability,
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive")
            .field("path", &self.path)
            .field("sectors", &self.sectors)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Drive {
    /// Opens and locks the file of `config`.
    ///
    /// # Errors
    /// The file is not there or not usable, or in use.
    pub fn open(config: &DriveConfig) -> Result<Self, DriveError> {
        Self::open_found(config, DriveFiles::default())
    }

    /// The same with files that were looked at before.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(crate) fn open_found(config: &DriveConfig, found: DriveFiles) -> Result<Self, DriveError> {
        let Some(overlay) = &config.overlay else {
            let image = Image::open(&config.path, found.file, config.read_only)?;
            return Self::new(image, config);
        };
        let base = Image::open(&config.path, found.file, true)?;
        let opened = open_overlay(overlay, found.overlay, base)?;
        Self::with_overlay(Arc::new(opened), overlay, config)
    }

    /// A drive in two layers. Threads serve it: a request may take several calls, which depend on each other.
    fn with_overlay(
        overlay: Arc<Overlay>,
        path: &Path,
        config: &DriveConfig,
    ) -> Result<Self, DriveError> {
        if config.io_engine == IoEngine::Async {
            tracing::info!(path = %path.display(), "threads serve a drive with an overlay");
        }
        let sectors = overlay.len() / SECTOR;
        let engine = Engine::with_overlay(overlay).map_err(|source| DriveError::Use {
            what: "serve",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::of(engine, sectors, false, config))
    }

    /// The same for a drive that is in use and gets another file, or the same one with another size.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn reopen(&self, config: &DriveConfig) -> Result<Self, DriveError> {
        if let (Some(path), Some(overlay)) = (&config.overlay, self.engine.overlay()) {
            // What is in flight on this one still changes which granules are there: both have to know. An overlay keeps its size.
            overlay.begin_anew().map_err(|source| DriveError::Use {
                what: "go on with",
                path: path.clone(),
                source,
            })?;
            return Self::with_overlay(Arc::clone(overlay), path, config);
        }
        let same = || {
            let new = fs::metadata(&config.path).ok()?;
            let old = self.file().metadata().ok()?;
            let same = (new.dev(), new.ino()) == (old.dev(), old.ino());
            // The copy shares the lock, which a second opening would not get.
            let file = self.file().try_clone().ok()?;
            (same && self.read_only == config.read_only).then_some(file)
        };
        let image = match same() {
            Some(file) => Image::of(file, config.path.clone(), self.read_only)?,
            None => Image::open(&config.path, None, config.read_only)?,
        };
        Self::new(image, config)
    }

    fn new(image: Image, config: &DriveConfig) -> Result<Self, DriveError> {
        let Image {
            file,
            path,
            read_only,
            sectors,
        } = image;
        let engine = Engine::new(file, config.io_engine).map_err(|source| DriveError::Use {
            what: "serve",
            path,
            source,
        })?;
        Ok(Self::of(engine, sectors, read_only, config))
    }

    fn of(engine: Engine, sectors: u64, read_only: bool, config: &DriveConfig) -> Self {
        Self {
            engine,
            path: config.path.clone(),
            overlay_path: config.overlay.clone(),
            sectors,
            read_only,
            flushes: config.cache == CacheMode::Writeback,
            settled: false,
            durability: Durability::default(),
        }
    }

    /// Makes durable what was there before this drive, and which a snapshot refers to as well: what others have written to a file that is only
    /// read, and the names of files, which may have been made a moment ago.
    fn settle(&self) -> io::Result<()> {
        let only_read = match self.engine.overlay() {
            Some(overlay) => Some(overlay.base()),
            None => self.read_only.then(|| self.file()),
        };
        let sync = |file| uninterrupted(|| rustix::fs::fdatasync(file));
        match only_read.map_or(Ok(()), sync) {
            // On a file system that nobody can write to.
            Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        let paths = [Some(&self.path), self.overlay_path.as_ref()];
        paths.into_iter().flatten().try_for_each(|it| sync_name(it))
    }

    /// The file that the guest's writes go to.
    fn file(&self) -> &File {
        self.engine.file()
    }

    /// The drive's file and its overlay as they are now, where they are regular files.
    pub(crate) fn stamps(&self) -> (Option<FileStamp>, Option<FileStamp>) {
        // What cannot be looked at is not compared either.
        let stamp = |file: &File| FileStamp::of(file).ok().flatten();
        match self.engine.overlay() {
            Some(overlay) => (stamp(overlay.base()), stamp(overlay.file())),
            None => (stamp(self.file()), None),
        }
    }

    /// Copies what the guest's writes have gone to, the overlay if there is one, to a place where nothing is. *Caller:* the snapshot code; nothing
    /// is in flight.
    ///
    /// # Errors
    /// The files', or it is no regular file.
    pub(crate) fn copy_to(&self, path: &Path) -> io::Result<File> {
        copy_file(
            self.file().try_clone()?,
            path,
            self.engine.overlay().is_some(),
        )
    }
}

#[cfg(test)]
impl Drive {
    /// What a guest would read at the beginning.
    pub(crate) fn first_bytes(&mut self, len: u32) -> Vec<u8> {
        test::first_bytes(self, len)
    }
}

impl BlockBackend for Drive {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn flushes(&self) -> bool {
        self.flushes
    }

    fn discards(&self) -> bool {
        // Whether the file system can is seen at the guest's first discard: to try it here would be a write, which makes another file of this
        // one for a snapshot that refers to it.
        !self.read_only
    }

    fn depth(&self) -> u16 {
        self.engine.depth()
    }

    fn turn_begins(&mut self) {
        self.engine.turn_begins();
    }

    fn start(&mut self, task: Task) {
        self.engine.start(task);
    }

    fn kick(&mut self) -> bool {
        self.engine.kick()
    }

    fn ended(&mut self) -> Option<(u16, io::Result<()>)> {
        self.engine.ended()
    }

    fn wait(&mut self) {
        self.engine.wait();
    }

    fn sync(&mut self) -> io::Result<()> {
        if !self.read_only {
            self.engine.sync()?;
        }
        if !self.settled {
            self.durability.ended(self.settle())?;
            self.settled = true;
        }
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.engine.fd())
    }
}

#[cfg(test)]
mod sync_test;
#[cfg(test)]
#[path = "drive_test.rs"]
mod test;
