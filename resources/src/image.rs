//! The emulated KVM host's parts that are the same in every run: kernel, base initramfs, and a
//! disk with the guests' files.
//!
//! The disk saves seconds of every run: what lies in an initramfs is unpacked at each boot, by an
//! emulated processor; what lies on a disk is read when it is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vm_agent::{GUEST_DIR, MODULES_DIR, QEMU_DIR};

use crate::archive::Archive;
use crate::cache::Cache;
use crate::initramfs;
use crate::lifetime;
use crate::modules;
use crate::stock::Stock;

/// What the host loads. QEMU emulates the virtualization of AMD and not that of Intel. The device mapper is for tests whose disk fails, the
/// bridge for the demo of a fork.
const MODULES: &[&str] = &["bridge", "dm-mod", "kvm-amd", "tun", "virtio_blk"];

/// What the disk's file system is larger than the files on it, in bytes, for its own structures.
const DISK_SPARE: u64 = 16 << 20;

/// The emulated host's parts.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The ELF kernel; QEMU enters it by PVH, with nothing to unpack.
    pub(crate) kernel: PathBuf,
    /// The base initramfs, to which each run appends its own archive.
    pub(crate) initramfs: PathBuf,
    /// The disk with the guests' files, which is never written to.
    pub(crate) disk: PathBuf,
}

/// The parts, made if they are not there.
pub(crate) fn image(cache: &Cache, stock: &Stock, guests: &Path) -> Result<Image> {
    let busybox = initramfs::busybox()?;
    let recipe = format!(
        "{}; {}; {}; {MODULES:?}; 3",
        stock.dir().display(),
        guests.display(),
        busybox.version
    );
    let dir = cache.place("host", &recipe);
    if !dir.exists() {
        cache
            .make(&dir, |inside| write(inside, stock, guests, &busybox))
            .context("could not make the emulated host's initramfs")?;
    }
    Ok(Image {
        kernel: stock.vmlinux(),
        initramfs: dir.join("base.cpio"),
        disk: dir.join("guests.ext4"),
    })
}

fn write(inside: &Path, stock: &Stock, guests: &Path, busybox: &initramfs::Busybox) -> Result<()> {
    let path = inside.join("base.cpio");
    let file =
        fs::File::create(&path).with_context(|| format!("could not make {}", path.display()))?;
    let mut archive = Archive::new(std::io::BufWriter::new(file));
    archive.character_device("/dev/console", 5, 1)?;
    for directory in ["/proc", "/sys", "/tmp", "/root"] {
        archive.directory(directory)?;
    }
    archive.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
    archive.file("/etc/group", b"root:x:0:\ntty:x:5:\n", 0o644)?;
    archive.file("/etc/hosts", b"127.0.0.1 localhost\n", 0o644)?;
    busybox.add_to(&mut archive)?;
    let mut order = String::new();
    for module in modules::collect(&stock.modules(), MODULES)? {
        let file = format!("{}.ko", module.name);
        archive.file(&format!("{MODULES_DIR}/{file}"), &module.contents, 0o644)?;
        order += &format!("{file}\n");
    }
    archive.file(&format!("{MODULES_DIR}/order"), order.as_bytes(), 0o644)?;
    archive.directory(GUEST_DIR)?;
    archive.directory(QEMU_DIR)?;
    archive.finish()?;
    make_disk(&inside.join("guests.ext4"), guests, 0)
}

/// Makes a disk image whose file system has the contents of the directory `from` and `room` bytes more.
pub(crate) fn make_disk(path: &Path, from: &Path, room: u64) -> Result<()> {
    let size = size_of_tree(from).with_context(|| format!("could not size {}", from.display()))?;
    fs::File::create(path)
        .and_then(|file| file.set_len((size + room + DISK_SPARE).next_multiple_of(1 << 20)))
        .with_context(|| format!("could not make {}", path.display()))?;
    let mut command = Command::new("mke2fs");
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-d",
        ])
        .arg(from)
        .arg(path);
    let output = lifetime::bind(&mut command)
        .output()
        .context("could not run mke2fs")?;
    ensure!(
        output.status.success(),
        "mke2fs failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The bytes of all files below a directory.
fn size_of_tree(dir: &Path) -> std::io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += match metadata.is_dir() {
            true => size_of_tree(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_s_size_is_that_of_all_its_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), [0; 10]).unwrap();
        fs::write(dir.path().join("c"), [0; 5]).unwrap();
        assert_eq!(size_of_tree(dir.path()).unwrap(), 15);
    }
}
