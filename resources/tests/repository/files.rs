//! The files of the repository.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The directory of the workspace.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_path_buf()
}

/// The text of a file of the repository.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files with the extension below the directory `from` of the repository, without what is
/// built and what is hidden, in the order of their names. Paths are relative to the repository.
pub(crate) fn with_extension(from: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&root().join(from), &mut found).unwrap();
    found.retain(|path| path.extension().is_some_and(|found| found == extension));
    found.sort();
    found
        .iter()
        .map(|path| path.strip_prefix(root()).unwrap().to_path_buf())
        .collect()
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let left_out = name == "target" || name.as_encoded_bytes().starts_with(b".");
        match entry.file_type()?.is_dir() {
            true if !left_out => walk(&entry.path(), found)?,
            true => {}
            false => found.push(entry.path()),
        }
    }
    Ok(())
}

#[test]
fn the_repository_s_own_files_are_found_and_what_is_built_is_not() {
    let found = with_extension("", "md");
    assert!(found.contains(&PathBuf::from("README.md")));
    assert!(found.contains(&PathBuf::from("guest-driver/README.md")));
    assert!(!found.iter().any(|path| path.starts_with("target")));
}
