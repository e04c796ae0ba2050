//! The QEMU that guests of the tests run on, beside vmgenie: as much of the emulator's own QEMU as an x86
//! machine with a serial console needs, in a directory, and on a disk for the emulated host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vm_agent::QEMU_PROGRAM;

use crate::cache::Cache;
use crate::emulator::Emulator;
use crate::image::make_disk;
use crate::initramfs::copy_or_link;
use crate::libraries::libraries;

/// What QEMU loads into such a machine: the BIOS, the option ROMs that enter an ELF or a Linux kernel, and
/// the one that it has for every local APIC.
const FIRMWARE: &[&str] = &[
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
];

/// Starts the program through the loader beside it, wherever the directory is: the emulated host has no
/// libraries, and other machines have other ones.
const START: &str = "#!/bin/sh
dir=${0%/*}
exec \"$dir/bin/loader\" --library-path \"$dir/lib\" \"$dir/bin/qemu-system-x86_64\" -L \"$dir/share\" \"$@\"
";

/// A QEMU that can be moved.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    dir: PathBuf,
}

impl Peer {
    fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// What starts it.
    pub(crate) fn program(&self) -> PathBuf {
        self.tree().join(QEMU_PROGRAM)
    }

    /// A disk image with the same directory.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("qemu.ext4")
    }
}

/// The QEMU for guests, collected if it is not there.
pub(crate) fn peer(cache: &Cache, emulator: &Emulator) -> Result<Peer> {
    let recipe = format!("{}; {FIRMWARE:?}; 1", emulator.dir().display());
    let dir = cache.place("qemu", &recipe);
    if !dir.exists() {
        cache
            .make(&dir, |inside| collect(inside, emulator))
            .context("could not collect the QEMU that guests run on")?;
    }
    Ok(Peer { dir })
}

fn collect(inside: &Path, emulator: &Emulator) -> Result<()> {
    let peer = Peer {
        dir: inside.to_owned(),
    };
    let tree = peer.tree();
    let put = |from: &Path, to: &str| -> Result<()> {
        let to = tree.join(to);
        let dir = to.parent().unwrap_or(&tree);
        fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
        copy_or_link(from, &to)
    };
    put(&emulator.program(), "bin/qemu-system-x86_64")?;
    put(&emulator.loader(), "bin/loader")?;
    for library in needed(emulator)? {
        let name = library.file_name().context("a library is a file")?;
        let name = name.to_string_lossy();
        put(&library, &format!("lib/{name}"))?;
    }
    for file in FIRMWARE {
        put(&emulator.firmware(file)?, &format!("share/{file}"))?;
    }
    fs::write(peer.program(), START)
        .and_then(|()| fs::set_permissions(peer.program(), fs::Permissions::from_mode(0o755)))
        .context("could not write what starts QEMU")?;
    make_disk(&peer.disk(), &tree, 0)
}

/// The libraries that the emulator's program needs, as its own loader finds them.
fn needed(emulator: &Emulator) -> Result<Vec<PathBuf>> {
    let mut command = Command::new(emulator.loader());
    command
        .arg("--library-path")
        .arg(emulator.library_path())
        .arg("--list")
        .arg(emulator.program());
    let output = command
        .output()
        .context("could not run the emulator's loader")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("not found"),
        "the emulator's libraries are not all there: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The loader names itself too, by a path of the machine.
    Ok(libraries(&text)
        .into_iter()
        .map(PathBuf::from)
        .filter(|path| path.starts_with(emulator.dir()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_from_wherever_its_directory_is() {
        let dir = tempfile::tempdir().unwrap();
        let executable = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        executable("a b/bin/loader", "#!/bin/sh\nprintf '%s\\n' \"$@\"\n");
        let start = executable("a b/qemu", START);
        // Written by this process, so that a child of another test may still have it open.
        let output = Command::new("sh").arg(&start).args(["-x", "y z"]).output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        let tree = dir.path().join("a b");
        let tree = tree.display();
        assert_eq!(
            said,
            format!(
                "--library-path\n{tree}/lib\n{tree}/bin/qemu-system-x86_64\n-L\n{tree}/share\n-x\ny z\n"
            )
        );
    }
}
