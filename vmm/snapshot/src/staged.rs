//! A file that is being written and has not got its name yet.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::fault;
use super::target::Target;

/// Readable and writable by its owner alone: it holds the memory of a machine.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// How often a file is created anew because a sweep took it for a dead writer's.
const ATTEMPTS: usize = 16;

/// A new file in the directory of a target, locked for as long as it is open.
///
/// It has no name where the file system allows that, so that it vanishes with this process; else
/// it has its staged name from the beginning.
#[derive(Debug)]
pub(super) struct StagedFile {
    file: File,
    name: OsString,
    /// Whether `name` exists in the directory and is this file.
    linked: bool,
}

impl StagedFile {
    /// Creates a file that can be staged as `name` beside `target`.
    pub(super) fn create(target: &Target, name: OsString) -> io::Result<Self> {
        match Self::open_unnamed(target) {
            Ok(Some(file)) => {
                lock(&file)?;
                Ok(Self {
                    file,
                    name,
                    linked: false,
                })
            }
            Ok(None) => Self::create_named(target, name),
            Err(error) => Err(error),
        }
    }

    /// A file without a name, or `None` where the kernel or the file system has none.
    fn open_unnamed(target: &Target) -> io::Result<Option<File>> {
        if fault::pass(fault::UNNAMED_FILES).is_err() || !can_be_named_later() {
            return Ok(None);
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(target.directory(), ".", flags, MODE) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn create_named(target: &Target, name: OsString) -> io::Result<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let file = File::from(rustix::fs::openat(target.directory(), &name, flags, MODE)?);
            // Between the creation and the lock somebody may have swept it away.
            if lock(&file).is_ok() && is_linked(&file)? {
                return Ok(Self {
                    file,
                    name,
                    linked: true,
                });
            }
        }
        Err(io::Error::other("somebody keeps removing it"))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Gives the file its staged name, unless it has it from the beginning.
    pub(super) fn stage(&mut self, target: &Target) -> io::Result<()> {
        if self.linked {
            return Ok(());
        }
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let (directory, name) = (target.directory(), &self.name);
        rustix::fs::linkat(CWD, unnamed, directory, name, AtFlags::SYMLINK_FOLLOW)?;
        self.linked = true;
        Ok(())
    }

    /// Says that the staged name is no longer this value's to remove.
    pub(super) fn keep(&mut self) {
        self.linked = false;
    }

    /// Removes the staged name if there is one.
    pub(super) fn discard(&mut self, target: &Target) {
        if std::mem::take(&mut self.linked) {
            // What cannot be removed now is swept by the next create.
            let _ = rustix::fs::unlinkat(target.directory(), &self.name, AtFlags::empty());
        }
    }
}

/// Whether a file without a name can be given one: that goes by way of `/proc`, which a jail may lack. (The other way, by the descriptor alone, is the
/// superuser's on older kernels.)
fn can_be_named_later() -> bool {
    rustix::fs::access("/proc/self/fd", Access::EXISTS).is_ok()
}

/// Marks the file as one that a living process writes.
fn lock(file: &File) -> io::Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NOLCK) => Ok(()),
        result => Ok(result?),
    }
}

fn is_linked(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() > 0)
}
