//! A file that this process has made, and may have to remove.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that was made at a path. Whatever has that path later may be somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl MadeFile {
    /// The open `file`, which was made at `path`.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn of(path: &Path, file: &File) -> io::Result<Self> {
        Ok(Self::new(path, &file.metadata()?))
    }

    /// The file at `path`, of which the caller knows that it was made.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::new(path, &fs::symlink_metadata(path)?))
    }

    fn new(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device_and_inode: (metadata.dev(), metadata.ino()),
        }
    }

    /// Whether this is it.
    pub fn is(&self, found: &Metadata) -> bool {
        (found.dev(), found.ino()) == self.device_and_inode
    }

    /// Removes it, unless something else has its path.
    pub fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| self.is(&found)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_was_made_is_removed_and_no_other_that_has_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let file = File::create_new(&path).unwrap();
        let made = MadeFile::of(&path, &file).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        fs::write(&path, "another").unwrap();
        made.remove();
        assert_eq!(fs::read(&path).unwrap(), b"another");
        fs::rename(dir.path().join("moved"), &path).unwrap();
        made.remove();
        made.remove();
        assert!(!path.exists());
    }
}
