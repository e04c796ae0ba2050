//! A file of the host that is looked at before it is opened.
//!
//! To open something may do something: a watchdog begins to count, a pipe's other end wakes up. And a name may lead elsewhere at the next look. So a
//! name is followed once, without opening what it leads to (`O_PATH`); what is found out is of that file, and it is that file which is opened.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// See the module's documentation.
#[derive(Debug)]
pub struct NamedFile {
    handle: File,
    metadata: Metadata,
    path: PathBuf,
}

impl NamedFile {
    /// What `path` leads to.
    ///
    /// # Errors
    /// There is nothing, or it may not be reached.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::find(path.to_owned(), OFlags::empty())
    }

    /// What is called `name` in the directory `dir`: not what a link of this name leads to, and nothing elsewhere.
    ///
    /// # Errors
    /// There is nothing, or the name has a way in it.
    pub fn in_directory(dir: &Path, name: &str) -> io::Result<Self> {
        let plain = Path::new(name).file_name().is_some_and(|it| it == name);
        if !plain {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // A name without a way in it leaves its directory by a link alone, and this finds the link itself.
        Self::find(dir.join(name), OFlags::NOFOLLOW)
    }

    fn find(path: PathBuf, flags: OFlags) -> io::Result<Self> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let handle = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        let metadata = handle.metadata()?;
        Ok(Self {
            handle,
            metadata,
            path,
        })
    }

    /// As it was when it was found.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it holds bytes that can be read anywhere, and opening it does nothing.
    pub fn is_file_or_block_device(&self) -> bool {
        self.metadata.is_file() || self.metadata.file_type().is_block_device()
    }

    /// The kind of its file system, one of linux/magic.h.
    pub fn file_system(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstatfs(&self.handle)?.f_type as u32)
    }

    /// Opens it, for writing as well if that is wanted.
    ///
    /// # Errors
    /// The file's; or it is gone and the host has no `/proc`.
    pub fn open(&self, write: bool) -> io::Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY;
        let handle = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        match rustix::fs::open(handle, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NOENT | Errno::NOTDIR) => self.open_by_name(flags),
            Err(error) => Err(error.into()),
        }
    }

    /// The same without `/proc`, as in a jail.
    fn open_by_name(&self, flags: OFlags) -> io::Result<File> {
        // Should it be a pipe by now, nobody waits for the other end.
        let file = rustix::fs::open(&self.path, flags | OFlags::NONBLOCK, Mode::empty())?;
        let file = File::from(file);
        let now = file.metadata()?;
        if (now.dev(), now.ino()) != (self.metadata.dev(), self.metadata.ino()) {
            return Err(io::Error::other("it was exchanged for another file"));
        }
        // A block device's requests would fail where they should wait (io_uring).
        rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_was_found_is_what_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "found").unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        let found = [
            NamedFile::at(&dir.path().join("link")).unwrap(),
            NamedFile::in_directory(dir.path(), "file").unwrap(),
        ];
        fs::write(dir.path().join("other"), "other").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        for file in found {
            assert_eq!(text(file.open(false).unwrap()), "found");
            let refused = file.open_by_name(OFlags::RDONLY).unwrap_err().to_string();
            assert!(refused.contains("exchanged"), "{refused}");
        }
        let now = NamedFile::at(&path).unwrap();
        let by_name = now.open_by_name(OFlags::RDWR).unwrap();
        let flags = rustix::fs::fcntl_getfl(&by_name).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
        assert_eq!(text(by_name), "other");
    }

    #[test]
    fn a_name_in_a_directory_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let in_directory = |name: &str| NamedFile::in_directory(dir.path(), name);
        for name in [
            "",
            ".",
            "..",
            "sub/../file",
            "./file",
            "file/",
            "/etc/passwd",
        ] {
            in_directory(name).unwrap_err();
        }
        assert!(in_directory("file").unwrap().metadata().is_file());
        let link = in_directory("link").unwrap();
        assert!(link.metadata().is_symlink() && link.open(false).is_err());
    }
}
