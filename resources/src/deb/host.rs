//! The host's package: the program, its manual and completions.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::file::Package;
use super::{COPYRIGHT, manual};
use crate::files::Files;
use crate::{lifetime, man};

/// A shell, and where its completions are.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/vmgenie"),
    ("zsh", "usr/share/zsh/vendor-completions/_vmgenie"),
    ("fish", "usr/share/fish/vendor_completions.d/vmgenie.fish"),
];

/// What the package is made of; `program` is a static vmgenie.
pub(crate) fn package(program: &Path) -> Result<Package> {
    let mut files = Files::of_workspace(&[
        ("README.md", "usr/share/doc/vmgenie/README.md"),
        ("CHANGELOG.md", "usr/share/doc/vmgenie/CHANGELOG.md"),
    ])?;
    let contents =
        fs::read(program).with_context(|| format!("could not read {}", program.display()))?;
    files.push("usr/bin/vmgenie", contents, 0o755);
    for (shell, place) in COMPLETIONS {
        files.push(*place, completions(program, shell)?, 0o644);
    }
    for (place, page) in manual::pages(|dir| man::write(dir, &["vmgenie"]))? {
        files.push(place, page, 0o644);
    }
    let copyright = "usr/share/doc/vmgenie/copyright";
    files.push(copyright, COPYRIGHT.as_bytes().to_vec(), 0o644);
    Ok(Package {
        name: "vmgenie",
        summary: "microVMs that are snapshotted and cloned, and know it",
        description:
            "A virtual machine monitor for KVM. It boots Linux, takes snapshots of running\n\
                      machines and makes clones of them, by an API on a socket or by commands.\n\
                      Each clone is told that it is one, by VMGENID and /dev/sysgenid."
                .to_owned(),
        relations: vec!["Suggests: vmgenie-guest".to_owned()],
        files,
        scripts: Vec::new(),
    })
}

fn completions(program: &Path, shell: &str) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(["completions", shell]);
    let output = lifetime::bind(&mut command)
        .output()
        .with_context(|| format!("could not run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "there are no completions for {shell}"
    );
    Ok(output.stdout)
}
