//! Files in memory: read once, so that what is made of them is what its recipe says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{build, cache};

/// Files, by their places: what is in each, and its mode.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files(Vec<(PathBuf, Vec<u8>, u32)>);

impl Files {
    /// Files of the workspace, and their places. A directory stands for all that is in it.
    pub(crate) fn of_workspace(wanted: &[(&str, &str)]) -> Result<Self> {
        let mut files = Self::default();
        for (from, to) in wanted {
            files.add(&build::workspace().join(from), Path::new(to))?;
        }
        Ok(files)
    }

    /// One file more.
    pub(crate) fn push(&mut self, place: impl Into<PathBuf>, contents: Vec<u8>, mode: u32) {
        self.0.push((place.into(), contents, mode));
    }

    /// The place, the contents and the mode of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &[u8], u32)> {
        self.0
            .iter()
            .map(|(place, contents, mode)| (place.as_path(), contents.as_slice(), *mode))
    }

    fn add(&mut self, from: &Path, to: &Path) -> Result<()> {
        let at = || format!("could not read {}", from.display());
        let metadata = fs::metadata(from).with_context(at)?;
        if !metadata.is_dir() {
            // What else the umask of the checkout has taken is no part of the recipe.
            let mode = match metadata.permissions().mode() & 0o111 {
                0 => 0o644,
                _ => 0o755,
            };
            let contents = fs::read(from).with_context(at)?;
            self.0.push((to.to_owned(), contents, mode));
            return Ok(());
        }
        let entries: std::io::Result<Vec<_>> = fs::read_dir(from).with_context(at)?.collect();
        let mut names: Vec<_> = entries
            .with_context(at)?
            .iter()
            .map(fs::DirEntry::file_name)
            .collect();
        names.sort();
        names
            .iter()
            .try_for_each(|name| self.add(&from.join(name), &to.join(name)))
    }

    /// Another place, content or mode is another digest.
    pub(crate) fn digest(&self) -> String {
        let mut all = Sha256::new();
        for (path, contents, mode) in &self.0 {
            all.update(format!("{} {mode:o} {}\n", path.display(), contents.len()));
            all.update(contents);
        }
        cache::hex(&all.finalize())
    }

    /// Writes all of them below `dir`.
    pub(crate) fn write_to(&self, dir: &Path) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|(path, contents, mode)| put(&dir.join(path), contents, *mode))
    }
}

/// Writes a file, and the directories above it.
pub(crate) fn put(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, contents)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_or_mode_is_another_digest() {
        let files = |contents: &str, mode| Files(vec![("a".into(), contents.into(), mode)]);
        let digest = files("x", 0o644).digest();
        assert_eq!(digest, files("x", 0o644).digest());
        assert_ne!(digest, files("y", 0o644).digest());
        assert_ne!(digest, files("x", 0o755).digest());
    }
}
