//! Which file system something is on: what a snapshot costs depends on it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The type of the file system that holds `path` (`ext4`, `tmpfs`), or `an unknown file system`.
pub(crate) fn of(path: &Path) -> Result<String> {
    let device = fs::metadata(path)
        .with_context(|| format!("could not look at {}", path.display()))?
        .dev();
    let wanted = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("could not list the mounts")?;
    Ok(type_of(&mounts, &wanted).unwrap_or_else(|| "an unknown file system".to_owned()))
}

fn type_of(mounts: &str, device: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == device)
            .then(|| file_system.split(' ').next().unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_follows_the_separator() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 22 0:25 / /tmp rw - tmpfs tmpfs rw\n";
        assert_eq!(type_of(mounts, "0:25").as_deref(), Some("tmpfs"));
        assert_eq!(type_of(mounts, "254:0").as_deref(), Some("ext4"));
        assert_eq!(type_of(mounts, "1:1"), None);
    }
}
