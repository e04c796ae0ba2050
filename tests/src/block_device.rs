//! A block device of the host for a test: the emulated host has a disk for that, any other gets a loop device. Needs the rights of root.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;

/// The emulated host's disk is known by this serial number.
const SCRATCH: &str = "vmgenie-scratch";
/// The size in bytes: that of the emulated host's disk.
const LEN: u64 = 24 << 20;
/// linux/loop.h
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_SET_FD: libc::c_ulong = 0x4c00;
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
/// How often somebody else may take the loop device that was free.
const ATTEMPTS: u32 = 20;

/// A block device, for one test alone.
#[derive(Debug)]
pub struct BlockDevice {
    path: PathBuf,
    /// Of a loop device: itself, and what it is over.
    on_loop: Option<(File, NamedTempFile)>,
    /// Held: nobody else uses the disk.
    _lock: Option<File>,
}

impl BlockDevice {
    /// A device that is full of `byte`.
    pub fn filled_with(byte: u8) -> Self {
        let device = match scratch_disk() {
            Some(path) => {
                let lock = lock();
                Self {
                    path,
                    on_loop: None,
                    _lock: Some(lock),
                }
            }
            None => loop_device(),
        };
        let mut file = open(&device.path).expect("the block device");
        let size = file.seek(io::SeekFrom::End(0)).expect("a size");
        assert_eq!(size, LEN, "{}", device.path.display());
        file.rewind().expect("the block device's beginning");
        file.write_all(&vec![byte; LEN as usize])
            .and_then(|()| file.sync_all())
            .expect("room for all bytes");
        device
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in sectors.
    pub fn sectors(&self) -> u64 {
        LEN / 512
    }

    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        open(&self.path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .expect("the block device");
        bytes
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        if let Some((device, _)) = &self.on_loop {
            // SAFETY: takes no argument.
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _, 0) };
        }
    }
}

fn scratch_disk() -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?;
    let disk = disks.flatten().find(|disk| {
        let serial = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        serial.trim() == SCRATCH
    })?;
    Some(Path::new("/dev").join(disk.file_name()))
}

/// Waits until no other test uses the disk. Not by a lock of the disk: that is the VMM's.
fn lock() -> File {
    let path = std::env::temp_dir().with_file_name("vmgenie-scratch.lock");
    let file = File::create(&path).expect("a file to lock");
    loop {
        match file.try_lock() {
            Ok(()) => return file,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            Err(TryLockError::Error(error)) => panic!("{}: {error}", path.display()),
        }
    }
}

fn loop_device() -> BlockDevice {
    let backing = NamedTempFile::new().expect("a temporary file");
    backing.as_file().set_len(LEN).expect("a temporary file");
    for _ in 0..ATTEMPTS {
        let control = open(Path::new("/dev/loop-control")).expect("the module `loop`");
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        assert!(
            number >= 0,
            "no loop device: {}",
            io::Error::last_os_error()
        );
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path).expect("the loop device");
        let file = backing.as_file().as_raw_fd();
        // SAFETY: takes a descriptor, which is open.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD as _, file) } == 0 {
            return BlockDevice {
                path,
                on_loop: Some((device, backing)),
                _lock: None,
            };
        }
    }
    panic!("no loop device: {}", io::Error::last_os_error());
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
