//! Directories that may belong to a user of our user namespace: moved and removed.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::namespaces::{is_root, unshare};

/// Removes a directory and all in it, also what belongs to users of our user namespace.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    match remove_patiently(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root() => {}
        Err(error) => {
            return Err(error).with_context(|| format!("could not remove {}", dir.display()));
        }
    }
    let status = unshare().args(["rm", "-rf", "--"]).arg(dir).status();
    if !status.is_ok_and(|status| status.success()) {
        bail!("could not remove {}", dir.display());
    }
    Ok(())
}

/// Renames a directory, also one that belongs to a user of our user namespace.
pub(crate) fn move_tree(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root() => {}
        result => {
            return result
                .with_context(|| format!("could not move {} to {}", from.display(), to.display()));
        }
    }
    let mut command = unshare();
    command
        .args(["mv", "--no-target-directory", "--"])
        .arg(from)
        .arg(to);
    if !command.status().is_ok_and(|status| status.success()) {
        bail!("could not move {} to {}", from.display(), to.display());
    }
    Ok(())
}

/// Processes of a namespace that is being ended may still write for a moment.
fn remove_patiently(dir: &Path) -> io::Result<()> {
    for _ in 0..20 {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            result => return result,
        }
    }
    fs::remove_dir_all(dir)
}
