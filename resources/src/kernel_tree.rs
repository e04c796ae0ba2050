//! A kernel's source and build tree, for what is built against them.

use std::path::{Path, PathBuf};

/// Where source and build tree are mounted in the root; the build tree knows these paths.
pub(crate) const SOURCE_DIR: &str = "/mnt/linux";
/// See [`SOURCE_DIR`].
pub(crate) const BUILD_DIR: &str = "/mnt/build";

/// A kernel whose build tree is complete enough for modules.
#[derive(Debug, Clone)]
pub(crate) struct Target<'a> {
    /// The kernel's name, for people and the cache.
    pub(crate) name: &'a str,
    /// The kernel's source.
    pub(crate) source: &'a Path,
    /// Its build tree, which a recipe made: its name changes when its contents do.
    pub(crate) tree: PathBuf,
    /// The variables that the tree was made with, as words of a shell.
    pub(crate) variables: String,
}
