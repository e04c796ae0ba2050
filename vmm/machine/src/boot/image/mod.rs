//! Kernel and initrd out of the image of a root file system, so that an image is all that it takes to boot it.
//!
//! The image is a file or block device with an ext4 file system (ext2 also), without a partition table. A guest may have written any
//! byte of it, and it is read again when the guest reboots. So a process of its own reads it ([`reader_main`]): this program once more, with bounds for
//! memory, files and time. Nothing but the two files comes back, and it may crash or hang without harm to the VMM.

mod file_system;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};
use thiserror::Error;

pub use file_system::reader_main;
use vmgenie_snapshot::end_request;

/// The first argument that makes this program read an image; the second is the length that a file in it may have, in bytes.
pub const READER: &str = "--read-image";
/// This program, also when its file has been replaced.
const PROGRAM: &str = "/proc/self/exe";
/// The exit status of a reader that has written to standard output why there is nothing to boot.
const REFUSED: u8 = 1;
/// The exit statuses of one that could not begin, or not say why.
const BAD_LIMIT: u8 = 2;
const NOT_CONFINED: u8 = 3;
const NOT_TOLD: u8 = 4;
/// How much of that is taken, in bytes.
const MAX_REASON: u64 = 4096;
/// How long a reader may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may take that only looks whether there is a kernel, when the boot source is set: the event loop waits for it.
const PATIENCE_TO_LOOK: Duration = Duration::from_secs(2);
/// The stack of a thread that only waits, in bytes.
const REAPER_STACK: usize = 64 << 10;
/// How often to look whether this process shall end meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How much processor time it may take, in seconds.
const CPU_SECONDS: u64 = 30;
/// How much address space it may take, in bytes: the list of block groups of the largest image, and room to work.
const ADDRESS_SPACE: u64 = 512 << 20;

/// Where the superblock is, in bytes.
const SUPERBLOCK: usize = 1024;
/// How long it is.
const SUPERBLOCK_LEN: usize = 1024;
/// The superblock's magic number and where it is there.
const MAGIC: (usize, [u8; 2]) = (0x38, [0x53, 0xef]);
/// Where it tells the features that a reader must know.
const INCOMPATIBLE: usize = 0x60;
/// Among those: the journal holds what is not in the file system yet.
const RECOVERY: u8 = 4;
/// What begins a GUID partition table, in the second sector.
const GPT: &[u8] = b"EFI PART";

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
    /// The process that reads it could not be run.
    #[error("could not run the process that reads its file system")]
    Process(#[source] io::Error),
    /// The file system could not be read, or has no kernel: what the process that read it says.
    #[error("{0}")]
    Refused(String),
    /// The process that read it crashed or ran into a bound.
    #[error(
        "the process that reads its file system failed ({0}): the file system is damaged, or made to do harm; \
         see e2fsck, or give --kernel and --initrd"
    )]
    Crashed(ExitStatus),
    /// There was no time to wait for it.
    #[error("the microVM was told to end while its file system was read")]
    Ended,
    /// The process that read it took too long.
    #[error("its file system could not be read within {PATIENCE:?}: give --kernel and --initrd")]
    Slow,
}

/// An ext4 file system, by its looks.
#[derive(Debug)]
pub(super) struct Image(File);

/// What an image boots.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) kernel: File,
    pub(super) initrd: Option<File>,
}

/// Whether a regular file or block device is an image. If neither an ext4 file system nor a partition table is in it, the file comes
/// back, at its beginning.
pub(super) fn in_file(mut file: File) -> Result<Result<Image, File>, ImageError> {
    // Of a block device only the seek tells the length.
    let len = file.seek(SeekFrom::End(0)).map_err(ImageError::Read)?;
    file.rewind().map_err(ImageError::Read)?;
    let mut head = [0; SUPERBLOCK + SUPERBLOCK_LEN];
    if len < head.len() as u64 {
        return Ok(Err(file));
    }
    file.read_exact_at(&mut head, 0).map_err(ImageError::Read)?;
    if head[512..].starts_with(GPT) {
        return Err(ImageError::Partitions);
    }
    let superblock = &head[SUPERBLOCK..];
    if !superblock[MAGIC.0..].starts_with(&MAGIC.1) {
        return Ok(Err(file));
    }
    if superblock[INCOMPATIBLE] & RECOVERY != 0 {
        tracing::warn!(
            "the image was not unmounted: its kernel is read as it lies there, without the journal, as boot loaders do; if it does \
             not start, run e2fsck on the image"
        );
    }
    Ok(Ok(Image(file)))
}

impl Image {
    /// Looks whether there is a kernel. What cannot be found out soon the start finds out, and waits longer for.
    pub(super) fn check(self) -> Result<(), ImageError> {
        self.look(reader(0))
    }

    fn look(self, reader: Command) -> Result<(), ImageError> {
        looked(read_by(reader, self.0, PATIENCE_TO_LOOK))
    }

    /// Copies kernel and initrd into memory; neither may have more than `limit` bytes.
    pub(super) fn contents(self, limit: u64) -> Result<Contents, ImageError> {
        // Zero means that nothing is to be copied.
        read_by(reader(limit.max(1)), self.0, PATIENCE)
    }
}

/// The process that reads an image, and takes no file with more than `limit` bytes out of it.
fn reader(limit: u64) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args([READER, &limit.to_string()]);
    command
}

/// What a look has found.
fn looked(found: Result<Contents, ImageError>) -> Result<(), ImageError> {
    match found {
        Ok(_) | Err(ImageError::Slow) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Has `command` read the image: it is standard input, and what is written to standard output and standard error is kernel and initrd.
fn read_by(mut command: Command, image: File, patience: Duration) -> Result<Contents, ImageError> {
    let (mut kernel, mut initrd) = (memory("kernel")?, memory("initrd")?);
    let copy = |file: &File| file.try_clone().map_err(ImageError::Process);
    let mut child = command
        .env_clear()
        .stdin(image)
        .stdout(copy(&kernel)?)
        .stderr(copy(&initrd)?)
        .spawn()
        .map_err(ImageError::Process)?;
    let status = wait(&mut child, patience);
    if status.is_err() {
        // What it does in its last instant goes nowhere.
        let _ = child.kill();
        reap(child);
    }
    let status = status?;
    kernel.rewind().map_err(ImageError::Process)?;
    initrd.rewind().map_err(ImageError::Process)?;
    match status.code() {
        Some(0) => {
            let there = initrd.metadata().map_err(ImageError::Process)?.len() > 0;
            Ok(Contents {
                kernel,
                initrd: there.then_some(initrd),
            })
        }
        Some(code) if code == i32::from(REFUSED) => {
            let mut reason = Vec::new();
            let read = kernel.take(MAX_REASON).read_to_end(&mut reason);
            read.map_err(ImageError::Process)?;
            // Names from the image may be in it.
            let reason = String::from_utf8_lossy(&reason);
            Err(ImageError::Refused(
                reason
                    .chars()
                    .map(|c| if c.is_control() { '?' } else { c })
                    .collect(),
            ))
        }
        None if status.signal() == Some(libc::SIGXCPU) => Err(ImageError::Slow),
        _ => Err(ImageError::Crashed(status)),
    }
}

/// Waits elsewhere for a child that was killed, so that it is no zombie: one that waits for the image's storage ends when that answers.
fn reap(mut child: Child) {
    let waiting = thread::Builder::new().name("reaper".to_owned());
    let waiting = waiting.stack_size(REAPER_STACK).spawn(move || {
        let _ = child.wait();
    });
    if let Err(error) = waiting {
        tracing::debug!(%error, "the process that read an image stays a zombie");
    }
}

/// The status of a child that ends in time.
fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus, ImageError> {
    let failed = |error: io::Error| ImageError::Process(error);
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let pidfd = pidfd.map_err(|error| failed(error.into()))?;
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let step = Timespec::try_from(left.min(LOOK)).map_err(|e| failed(io::Error::other(e)))?;
        match poll(
            &mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)],
            Some(&step),
        ) {
            Ok(0) if left.is_zero() => return Err(ImageError::Slow),
            Ok(0) if end_request::is_pending() => return Err(ImageError::Ended),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait().map_err(failed),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn memory(name: &str) -> Result<File, ImageError> {
    rustix::fs::memfd_create(format!("vmgenie-{name}"), MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| ImageError::Process(error.into()))
}

/// The bounds of the process that reads an image, which it gives itself before it looks at a byte. Those that it was started with stay if
/// they are narrower.
fn confine(limit: u64) -> io::Result<()> {
    close_all_but_three()?;
    let bound = |resource, value: u64| {
        let current = getrlimit(resource);
        let value = [current.current, current.maximum]
            .into_iter()
            .flatten()
            .fold(value, u64::min);
        let bound = Rlimit {
            current: Some(value),
            // Processor time has a signal of its own a second before the end.
            maximum: Some(current.maximum.map_or(value + 1, |max| max.min(value + 1))),
        };
        setrlimit(resource, bound)
    };
    // What it says of a refusal is longer than a file may be when it only looks.
    bound(Resource::Fsize, limit.max(MAX_REASON))?;
    bound(Resource::As, ADDRESS_SPACE)?;
    bound(Resource::Cpu, CPU_SECONDS)?;
    bound(Resource::Core, 0)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

/// Whatever the VMM forgot to keep to itself is not for the process that reads what a guest has written.
fn close_all_but_three() -> io::Result<()> {
    // SAFETY: nothing in this process has descriptors beyond the three standard ones: it has only begun.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    let error = io::Error::last_os_error();
    // Older kernels (before 5.9) have no such call, and the VMM's descriptors close by themselves.
    if closed == 0 || error.raw_os_error() == Some(libc::ENOSYS) {
        return Ok(());
    }
    Err(error)
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
