//! A directory that was made, or found to be trustworthy, and is held open.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{TrustError, check_way, is_trusted_owner, others_may_change};

/// A directory in which files of ours are safe.
#[derive(Debug)]
pub struct OwnDir {
    file: File,
    path: PathBuf,
    made: bool,
}

impl OwnDir {
    /// Makes the directory, for its owner alone, or takes one that is there if it is trusted. What is missing above it is
    /// made as well.
    ///
    /// # Errors
    /// It cannot be made, or is not trusted.
    pub fn make(path: &Path) -> Result<Self, TrustError> {
        // Without a slash at the end, behind which a link would be followed.
        let path: PathBuf = path.components().collect();
        let failed = |error| TrustError::Make(path.clone(), error);
        // Before anything is made. It is looked at again when all is there.
        check_way(&path)?;
        if let Some(parent) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(failed)?;
        }
        let made = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            made,
            ..Self::open(&path)?
        })
    }

    /// Makes a directory that must not be there yet, for its owner alone.
    ///
    /// # Errors
    /// It cannot be made, or somebody else can exchange what is above it.
    pub fn make_new(path: &Path) -> Result<Self, TrustError> {
        check_way(path)?;
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|error| TrustError::Make(path.to_owned(), error))?;
        Ok(Self {
            made: true,
            ..Self::open(path)?
        })
    }

    /// Opens a directory, which must be trusted and no link. The way to it must be trusted as well.
    ///
    /// # Errors
    /// It is not there, or not trusted.
    pub fn open(path: &Path) -> Result<Self, TrustError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let is_link = fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
                return Err(match is_link {
                    true => TrustError::Link(path.to_owned()),
                    false => TrustError::NotADirectory(path.to_owned()),
                });
            }
            Err(error) => return Err(TrustError::Look(path.to_owned(), error.into())),
        };
        check(&file, path)?;
        check_way(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            made: false,
        })
    }

    /// The path under which it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Opens a file of ours in it to append to, for its owner alone; makes it if it is not there. True if it was made.
    ///
    /// # Errors
    /// What is there is a link, no regular file, or somebody else's.
    pub fn append(&self, name: &OsStr) -> io::Result<(File, bool)> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What waits for a reader (a named pipe) is refused at once.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open =
            |more| rustix::fs::openat(&self.file, name, flags | more, Mode::RUSR | Mode::WUSR);
        let (file, made) = match open(OFlags::CREATE | OFlags::EXCL) {
            Ok(file) => (file, true),
            Err(Errno::EXIST) => (open(OFlags::empty())?, false),
            Err(error) => return Err(error.into()),
        };
        let file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() || !is_trusted_owner(metadata.uid()) || metadata.nlink() > 1 {
            return Err(io::Error::other(
                "what is there is not a file of this user's alone: remove it, or choose another directory",
            ));
        }
        if metadata.mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        Ok((file, made))
    }

    /// Removes what is called `name` if it is still the file with this device and inode.
    pub fn remove(&self, name: &OsStr, file: (u64, u64)) {
        let is_it = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino) == file;
        if rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_it) {
            let _ = rustix::fs::unlinkat(&self.file, name, AtFlags::empty());
        }
    }

    /// Removes the directory again, if it was made here and is empty.
    pub fn remove_if_made(&self) {
        if self.made {
            let _ = fs::remove_dir(&self.path); // only an empty one goes
        }
    }
}

/// Whether files of ours are safe in an open directory.
fn check(directory: &File, path: &Path) -> Result<(), TrustError> {
    let metadata = directory
        .metadata()
        .map_err(|error| TrustError::Look(path.to_owned(), error))?;
    let path = || path.to_owned();
    if !is_trusted_owner(metadata.uid()) {
        return Err(TrustError::Owner {
            path: path(),
            uid: metadata.uid(),
        });
    }
    if others_may_change(metadata.mode()) {
        return Err(TrustError::Writable {
            path: path(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(())
}
