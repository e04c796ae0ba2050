//! Kernel and initrd out of the image of a root file system, so that an image is all that it takes to boot it.
//!
//! The image is a file or block device with an ext4 file system (ext2 also), without a partition table. What it
//! says of itself is not believed: sizes are held against the image's own and against what a guest could
//! take, before anything is read.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use ext4_view::{Ext4, Ext4Error, PathBuf};
use rustix::fs::MemfdFlags;
use thiserror::Error;

/// Where the superblock is, in bytes.
const SUPERBLOCK: u64 = 1024;
/// How long it is.
const SUPERBLOCK_LEN: usize = 1024;
/// The superblock's magic number and where it is there.
const MAGIC: (usize, [u8; 2]) = (0x38, [0x53, 0xef]);
/// The largest block size that Linux mounts is 64 KiB: 1024 shifted by this.
const MAX_LOG_BLOCK_SIZE: u32 = 6;
/// A bound for the memory that the list of block groups takes. Groups of 128 MiB, which is usual, make 128 TiB.
const MAX_GROUPS: u64 = 1 << 20;
/// How many names in `/boot` are looked at.
const MAX_NAMES: usize = 4096;
/// The largest file that is taken for a kernel or an initrd, in bytes.
const MAX_LEN: u64 = 2 << 30;
/// What begins a GUID partition table, in the second sector.
const GPT: &[u8] = b"EFI PART";

/// Where kernels are, in this order. Not compressed ones first: they start sooner.
const KERNELS: [&str; 4] = ["/vmlinux", "/vmlinuz", "/boot/vmlinux", "/boot/vmlinuz"];
/// How kernels with a version are called in `/boot`.
const PREFIXES: [&str; 2] = ["vmlinux-", "vmlinuz-"];

/// Why an image has nothing to boot.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The image could not be read.
    #[error("could not read it")]
    Read(#[source] io::Error),
    /// There is a partition table.
    #[error(
        "it has a partition table: only a file system as a whole can be booted from; give --kernel and --initrd"
    )]
    Partitions,
    /// The superblock contradicts the image, or Linux.
    #[error("its ext4 superblock is damaged: {0}")]
    Superblock(&'static str),
    /// The file system could not be read.
    #[error("could not read {path} in its file system")]
    FileSystem {
        /// The file or directory.
        path: String,
        /// Why.
        #[source]
        source: Ext4Error,
    },
    /// There is no kernel.
    #[error(
        "it has no kernel: /vmlinux, /vmlinuz, or one of these with or without a version in /boot; give --kernel"
    )]
    NoKernel,
    /// A file is too large.
    #[error("{path} in it has {len} bytes: that is no kernel and no initrd")]
    TooLarge {
        /// The file.
        path: String,
        /// Its length in bytes.
        len: u64,
    },
    /// The contents could not be held.
    #[error("could not hold {0} in memory")]
    Memory(String, #[source] io::Error),
}

/// Whether a regular file or block device is an image. `None` if neither an ext4 file system nor a partition table is
/// in it; the file is at its beginning again.
pub(super) fn in_file(file: &mut File) -> Result<Option<Superblock>, ImageError> {
    // Of a block device only the seek tells the length.
    let len = file.seek(SeekFrom::End(0)).map_err(ImageError::Read)?;
    file.rewind().map_err(ImageError::Read)?;
    let mut head = [0; SUPERBLOCK as usize + SUPERBLOCK_LEN];
    if len < head.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut head, 0).map_err(ImageError::Read)?;
    if head[512..].starts_with(GPT) {
        return Err(ImageError::Partitions);
    }
    let superblock = &head[SUPERBLOCK as usize..];
    if !superblock[MAGIC.0..].starts_with(&MAGIC.1) {
        return Ok(None);
    }
    check(superblock, len)?;
    Ok(Some(Superblock))
}

/// The proof that a file has a superblock that can be believed as far as memory is taken for what it says.
#[derive(Debug)]
pub(super) struct Superblock;

/// What the reader of the file system would believe: the sizes that it takes memory for.
fn check(superblock: &[u8], len: u64) -> Result<(), ImageError> {
    let number = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&superblock[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    let (blocks, log_block_size, per_group) = (number(0x4), number(0x18), number(0x20));
    let high = match number(0x60) & 0x80 {
        0 => 0,
        // INCOMPAT_64BIT
        _ => number(0x150),
    };
    let blocks = u64::from(high) << 32 | u64::from(blocks);
    if log_block_size > MAX_LOG_BLOCK_SIZE {
        return Err(ImageError::Superblock("blocks of more than 64 KiB"));
    }
    let fits = (SUPERBLOCK << log_block_size)
        .checked_mul(blocks)
        .is_some_and(|bytes| bytes <= len);
    if !fits {
        return Err(ImageError::Superblock(
            "the image is shorter than its file system",
        ));
    }
    if per_group == 0 || blocks / u64::from(per_group) >= MAX_GROUPS {
        return Err(ImageError::Superblock("too many block groups"));
    }
    Ok(())
}

/// An image in which a kernel was found.
pub(super) struct Image {
    image: Ext4,
    kernel: String,
    initrd: Option<String>,
}

impl Image {
    /// Finds the kernel and its initrd.
    pub(super) fn new(file: File, _: Superblock) -> Result<Self, ImageError> {
        let image = Ext4::load(Box::new(file)).map_err(|source| at("/", source))?;
        let kernel = find_kernel(&image)?.ok_or(ImageError::NoKernel)?;
        let initrd = find_initrd(&image, &kernel)?;
        Ok(Self {
            image,
            kernel,
            initrd,
        })
    }

    /// Copies the kernel into memory.
    pub(super) fn kernel(&self) -> Result<File, ImageError> {
        copy(&self.image, &self.kernel)
    }

    /// Copies the initrd into memory, if there is one.
    pub(super) fn initrd(&self) -> Result<Option<File>, ImageError> {
        let initrd = self.initrd.as_deref();
        initrd.map(|path| copy(&self.image, path)).transpose()
    }
}

fn at(path: &str, source: Ext4Error) -> ImageError {
    ImageError::FileSystem {
        path: path.to_owned(),
        source,
    }
}

/// The first of [`KERNELS`] that is there, with all links followed, or else the newest kernel in `/boot`.
fn find_kernel(image: &Ext4) -> Result<Option<String>, ImageError> {
    for path in KERNELS {
        if let Some(found) = file(image, path)? {
            return Ok(Some(found));
        }
    }
    let entries = match image.read_dir("/boot") {
        Ok(entries) => entries,
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
        Err(error) => return Err(at("/boot", error)),
    };
    let mut found = Vec::new();
    for entry in entries.take(MAX_NAMES) {
        let entry = entry.map_err(|error| at("/boot", error))?;
        // A name that is no UTF-8 is no kernel's.
        if let Ok(name) = entry.file_name().as_str()
            && let Some(version) = version(name)
        {
            found.push((numbers(version), name.to_owned()));
        }
    }
    // Of two kernels of one version the one that is not compressed: its name is less.
    found.sort_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(&other.1)));
    for (_, name) in found {
        if let Some(path) = file(image, &format!("/boot/{name}"))? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The initrd beside a kernel, as Debian, Fedora and others call it.
fn find_initrd(image: &Ext4, kernel: &str) -> Result<Option<String>, ImageError> {
    let (dir, name) = kernel.rsplit_once('/').unwrap_or(("", kernel));
    let names = match version(name) {
        Some(version) => vec![
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
        ],
        None => ["initrd.img", "initramfs.img", "initrd"]
            .map(str::to_owned)
            .into(),
    };
    for name in names {
        if let Some(path) = file(image, &format!("{dir}/{name}"))? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The path of a regular file behind all links; `None` if there is none.
fn file(image: &Ext4, path: &str) -> Result<Option<String>, ImageError> {
    let real: PathBuf = match image.canonicalize(path) {
        Ok(real) => real,
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
        Err(error) => return Err(at(path, error)),
    };
    let metadata = image.metadata(&real).map_err(|error| at(path, error))?;
    if !metadata.file_type().is_regular_file() {
        return Ok(None);
    }
    Ok(real.to_str().ok().map(str::to_owned))
}

/// The version in a kernel's name.
fn version(name: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// The numbers in a version: as such they are in order, as text they are not.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Copies a file into memory.
fn copy(image: &Ext4, path: &str) -> Result<File, ImageError> {
    let mut from = image.open(path).map_err(|error| at(path, error))?;
    let len = from.metadata().len();
    if len > MAX_LEN {
        return Err(ImageError::TooLarge {
            path: path.to_owned(),
            len,
        });
    }
    let memory = |error: io::Error| ImageError::Memory(path.to_owned(), error);
    let to = rustix::fs::memfd_create("vmgenie-boot", MemfdFlags::CLOEXEC)
        .map_err(|error| memory(error.into()))?;
    let mut to = File::from(to);
    let mut buffer = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let mut filled = 0;
        // The reader hands out no more than a block at a time; a write of each would be a system call.
        while filled < buffer.len() {
            match from.read_bytes(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) => return Err(at(path, error)),
            }
        }
        if filled == 0 {
            break;
        }
        to.write_all(&buffer[..filled]).map_err(memory)?;
        left = left.saturating_sub(filled as u64);
    }
    to.rewind().map_err(memory)?;
    Ok(to)
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
