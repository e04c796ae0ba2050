//! What the process does that reads an image.
//!
//! What the file system says of itself is not believed where it is known that much memory would be taken for it. The rest is in the bounds of the process.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use crc::{Algorithm, Crc};
use ext4_view::{Ext4, Ext4Error, Ext4Read, PathBuf};
use thiserror::Error;

use super::{INCOMPATIBLE, RECOVERY, REFUSED, SUPERBLOCK, SUPERBLOCK_LEN, confine};

/// Where the superblock tells the features that only a writer must know, and where its checksum is.
const READ_ONLY_COMPATIBLE: usize = 0x64;
const CHECKSUM: usize = 0x3fc;
/// The second byte of those features: there are checksums.
const METADATA_CHECKSUMS: u8 = 4;
/// CRC-32C as ext4 has it: not inverted at the end.
const CRC32C: Crc<u32> = Crc::<u32>::new(&Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: u32::MAX,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0x1cf9_6d7c,
    residue: 0xb798_b438,
});
/// The largest block size that Linux mounts is 64 KiB: 1024 shifted by this.
const MAX_LOG_BLOCK_SIZE: u32 = 6;
/// A bound for the memory that the list of block groups takes. Groups of 128 MiB, which is usual, make 128 TiB.
const MAX_GROUPS: u64 = 1 << 20;
/// The longest link that is followed, in bytes, and how many of them in one path: what Linux follows.
const MAX_LINK: u64 = 4096;
const MAX_LINKS: usize = 40;
/// How many names in `/boot` are looked at.
const MAX_NAMES: usize = 4096;

/// Where kernels are, in this order. Not compressed ones first: they start sooner.
const KERNELS: [&str; 4] = ["/vmlinux", "/vmlinuz", "/boot/vmlinux", "/boot/vmlinuz"];
/// How kernels with a version are called in `/boot`.
const PREFIXES: [&str; 2] = ["vmlinux-", "vmlinuz-"];

/// Why an image has nothing to boot.
#[derive(Debug, Error)]
enum FileSystemError {
    /// The image could not be read.
    #[error("could not read it")]
    Read(#[source] io::Error),
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
    #[error("{path} in it has {len} bytes: there is guest memory for {limit}")]
    TooLarge {
        /// The file.
        path: String,
        /// Its length in bytes.
        len: u64,
        /// How many it may have.
        limit: u64,
    },
    /// The contents could not be written.
    #[error("could not copy {0}")]
    Write(String, #[source] io::Error),
}

/// Reads the image that is standard input: writes its kernel to standard output and its initrd to standard error, or, for a limit of
/// zero, looks for a kernel only. A refusal is told on standard output.
pub fn reader_main(limit: Option<u64>) -> ExitCode {
    let Some(limit) = limit else {
        return ExitCode::from(super::BAD_LIMIT);
    };
    if confine(limit).is_err() {
        return ExitCode::from(super::NOT_CONFINED);
    }
    let Err(error) = read(limit) else {
        return ExitCode::SUCCESS;
    };
    let reason = crate::report::report(&error);
    let told = own(stdout().as_fd()).and_then(|mut to| {
        to.set_len(0)?;
        to.rewind()?;
        to.write_all(reason.as_bytes())
    });
    match told {
        Ok(()) => ExitCode::from(REFUSED),
        Err(_) => ExitCode::from(super::NOT_TOLD),
    }
}

fn read(limit: u64) -> Result<(), FileSystemError> {
    let image = own(stdin().as_fd()).map_err(FileSystemError::Read)?;
    let image = Image::new(image)?;
    if limit == 0 {
        return Ok(());
    }
    let to = |fd| own(fd).map_err(|error| FileSystemError::Write("it".to_owned(), error));
    let (kernel, initrd) = (stdout(), stderr());
    image.kernel(to(kernel.as_fd())?, limit)?;
    image.initrd(to(initrd.as_fd())?, limit)
}

fn own(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

/// An image with the superblock that was checked, whatever is in the file by now.
struct Checked {
    file: File,
    superblock: [u8; SUPERBLOCK_LEN],
}

impl Checked {
    fn new(mut file: File) -> Result<Self, FileSystemError> {
        let len = file.seek(SeekFrom::End(0)).map_err(FileSystemError::Read)?;
        let mut superblock = [0; SUPERBLOCK_LEN];
        file.read_exact_at(&mut superblock, SUPERBLOCK as u64)
            .map_err(FileSystemError::Read)?;
        check(&superblock, len)?;
        leave_journal(&mut superblock);
        Ok(Self { file, superblock })
    }
}

/// An image that was not unmounted is read without its journal, as boot loaders read it.
fn leave_journal(superblock: &mut [u8; SUPERBLOCK_LEN]) {
    let sum = |superblock: &[u8]| CRC32C.checksum(&superblock[..CHECKSUM]).to_le_bytes();
    let checked = superblock[READ_ONLY_COMPATIBLE + 1] & METADATA_CHECKSUMS != 0;
    // A wrong checksum stays wrong.
    let right = superblock[CHECKSUM..] == sum(superblock);
    superblock[INCOMPATIBLE] &= !RECOVERY;
    if checked && right {
        let sum = sum(superblock);
        superblock[CHECKSUM..].copy_from_slice(&sum);
    }
}

impl Ext4Read for Checked {
    fn read(
        &mut self,
        start: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if start == SUPERBLOCK as u64 && to.len() == SUPERBLOCK_LEN {
            to.copy_from_slice(&self.superblock);
            return Ok(());
        }
        Ok(self.file.read_exact_at(to, start)?)
    }
}

/// What the reader of the file system would believe: the sizes that it takes memory for.
fn check(superblock: &[u8], len: u64) -> Result<(), FileSystemError> {
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
        return Err(FileSystemError::Superblock("blocks of more than 64 KiB"));
    }
    let fits = (1024_u64 << log_block_size)
        .checked_mul(blocks)
        .is_some_and(|bytes| bytes <= len);
    if !fits {
        return Err(FileSystemError::Superblock(
            "the image is shorter than its file system",
        ));
    }
    if per_group == 0 || blocks / u64::from(per_group) >= MAX_GROUPS {
        return Err(FileSystemError::Superblock("too many block groups"));
    }
    Ok(())
}

/// An image in which a kernel was found.
struct Image {
    image: Ext4,
    kernel: String,
    initrd: Option<String>,
}

impl Image {
    /// Finds the kernel and its initrd.
    fn new(file: File) -> Result<Self, FileSystemError> {
        let image = Checked::new(file)?;
        let image = Ext4::load(Box::new(image)).map_err(|source| at("/", source))?;
        let kernel = find_kernel(&image)?.ok_or(FileSystemError::NoKernel)?;
        let initrd = find_initrd(&image, &kernel)?;
        Ok(Self {
            image,
            kernel,
            initrd,
        })
    }

    /// Copies the kernel.
    fn kernel(&self, to: File, limit: u64) -> Result<(), FileSystemError> {
        copy(&self.image, &self.kernel, to, limit)
    }

    /// Copies the initrd, if there is one.
    fn initrd(&self, to: File, limit: u64) -> Result<(), FileSystemError> {
        match &self.initrd {
            Some(path) => copy(&self.image, path, to, limit),
            None => Ok(()),
        }
    }
}

fn at(path: &str, source: Ext4Error) -> FileSystemError {
    FileSystemError::FileSystem {
        path: path.to_owned(),
        source,
    }
}

/// The first of [`KERNELS`] that is there, with all links followed, or else the newest kernel in `/boot`.
fn find_kernel(image: &Ext4) -> Result<Option<String>, FileSystemError> {
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
fn find_initrd(image: &Ext4, kernel: &str) -> Result<Option<String>, FileSystemError> {
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

/// An absolute path with all links followed, as Linux follows them. `Ext4::canonicalize` makes room for a link as long as
/// the image says.
fn follow(image: &Ext4, path: &str) -> Result<PathBuf, Ext4Error> {
    let mut real = vec![PathBuf::new("/")];
    let mut ahead = components(path.as_bytes());
    let mut links = 0;
    while let (Some(component), Some(dir)) = (ahead.pop(), real.last()) {
        if component == b"." {
            continue;
        }
        if component == b".." {
            real.truncate(real.len().max(2) - 1);
            continue;
        }
        let next = dir.join(&component);
        let metadata = image.symlink_metadata(&next)?;
        if !metadata.file_type().is_symlink() {
            real.push(next);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Ext4Error::TooManySymlinks);
        }
        if metadata.len() > MAX_LINK {
            return Err(Ext4Error::PathTooLong);
        }
        let target = image.read_link(&next)?;
        if target.is_absolute() {
            real.truncate(1);
        }
        ahead.extend(components(target.as_ref()));
    }
    Ok(real.pop().unwrap_or_else(|| PathBuf::new("/")))
}

/// What is between the slashes of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').rev();
    parts
        .filter(|part| !part.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// The path of a regular file behind all links; `None` if there is none.
fn file(image: &Ext4, path: &str) -> Result<Option<String>, FileSystemError> {
    let real = match follow(image, path) {
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

/// Copies a file of at most `limit` bytes.
fn copy(image: &Ext4, path: &str, mut to: File, limit: u64) -> Result<(), FileSystemError> {
    let mut from = image.open(path).map_err(|error| at(path, error))?;
    let len = from.metadata().len();
    if len > limit {
        return Err(FileSystemError::TooLarge {
            path: path.to_owned(),
            len,
            limit,
        });
    }
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
        to.write_all(&buffer[..filled])
            .map_err(|error| FileSystemError::Write(path.to_owned(), error))?;
        left = left.saturating_sub(filled as u64);
    }
    Ok(())
}

#[cfg(test)]
#[path = "file_system_test.rs"]
mod tests;
