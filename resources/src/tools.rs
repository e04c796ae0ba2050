//! The programs of this machine that we use, installed where we may.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::namespaces::is_root;
use crate::progress::Progress;

/// A file that shows that a package is installed, and the package.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/share/doc/busybox-static", "busybox-static"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/bin/iasl", "acpica-tools"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    ("/usr/bin/cc", "gcc"),
    ("/usr/include/stdlib.h", "libc6-dev"),
];

/// What the tests of the packages for other languages need.
const LANGUAGE_TOOLS: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/numpy", "python3-numpy"),
    ("/usr/bin/node", "nodejs"),
    ("/usr/bin/cc", "gcc"),
    ("/usr/bin/c++", "g++"),
    ("/usr/include/stdlib.h", "libc6-dev"),
];

/// One at a time: the setup goes on beside the unit tests.
static INSTALLING: Mutex<()> = Mutex::new(());

/// What a user who is not root needs besides, for the toolchain root.
const USER_TOOLS: &[(&str, &str)] = &[("/usr/bin/newuidmap", "uidmap")];

/// Makes sure that all host tools are there.
pub(crate) fn install(cache: &Cache, progress: &Progress) -> Result<()> {
    let mut wanted = TOOLS.to_vec();
    if !is_root() {
        wanted.extend(USER_TOOLS);
    }
    install_missing("host-tools", &wanted, cache, progress)
}

/// Makes sure that Python, Node, C and C++ are there, for [`crate::languages`].
pub(crate) fn install_languages(cache: &Cache, progress: &Progress) -> Result<()> {
    install_missing("language-tools", LANGUAGE_TOOLS, cache, progress)
}

fn install_missing(
    log: &str,
    wanted: &[(&str, &'static str)],
    cache: &Cache,
    progress: &Progress,
) -> Result<()> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let missing = missing(wanted, |path| Path::new(path).exists());
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !is_root() {
        bail!(
            "these packages are missing; install them with\n    \
             sudo apt-get install --no-install-recommends {packages}"
        );
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("there is no apt-get here to install {packages} with");
    }
    let step = progress.step(&format!("packages ({packages})"));
    let log = cache.log(log)?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    step.run(apt().arg("update"), &log)?;
    let mut install = apt();
    install.args(["install", "-y", "--no-install-recommends"]);
    step.run(install.args(&missing), &log)?;
    step.done();
    Ok(())
}

fn missing<'a>(wanted: &[(&str, &'a str)], exists: impl Fn(&str) -> bool) -> Vec<&'a str> {
    wanted
        .iter()
        .filter(|(path, _)| !exists(path))
        .map(|(_, package)| *package)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_whose_file_is_missing_are_asked_for() {
        let wanted = [("/a", "pa"), ("/b", "pb")];
        assert_eq!(missing(&wanted, |path| path == "/a"), ["pb"]);
        assert!(missing(&wanted, |_| true).is_empty());
    }
}
