//! A disk that can be taken away and given back: the device mapper's, over another block device. Needs the rights of root, and the module `dm-mod`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::block_device::BlockDevice;

/// linux/dm-ioctl.h
const HEADER: usize = 312;
const SPEC: usize = 40;
const DEV_CREATE: u32 = 3;
const DEV_REMOVE: u32 = 4;
const DEV_SUSPEND: u32 = 6;
const TABLE_LOAD: u32 = 9;
const SUSPEND: u32 = 1 << 1;
const SKIP_LOCKFS: u32 = 1 << 10;
const NOFLUSH: u32 = 1 << 11;
/// Where the fields of the header are.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEV: usize = 40;
const NAME: usize = 48;

/// A disk of 24 MiB.
#[derive(Debug)]
pub struct FailingDisk {
    below: BlockDevice,
    control: File,
    name: String,
    path: PathBuf,
}

impl FailingDisk {
    /// A disk full of `byte`, which works.
    pub fn filled_with(byte: u8) -> Self {
        let below = BlockDevice::filled_with(byte);
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/mapper/control")
            .expect("the module `dm-mod`");
        let mut disk = Self {
            below,
            control,
            name: format!("vmgenie-{}", std::process::id()),
            path: PathBuf::new(),
        };
        let header = disk.call(DEV_CREATE, 0, None).expect("a new device");
        let number = u64::from_ne_bytes(header[DEV..DEV + 8].try_into().expect("8 bytes"));
        disk.path = PathBuf::from(format!("/dev/dm-{}", number & 0xff));
        disk.mend();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !disk.path.exists() {
            assert!(Instant::now() < deadline, "{}", disk.path.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        disk
    }

    /// The disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that is asked of it fails from now on.
    pub fn fail(&self) {
        self.become_a("error", "");
    }

    /// It works, again.
    pub fn mend(&self) {
        self.become_a("linear", &format!("{} 0", self.below.path().display()));
    }

    /// What it would have after a crash of the host: what has reached the disk below.
    pub fn durable_bytes(&self) -> Vec<u8> {
        // What is in memory of the disk below was written to it, but may be older than the disk.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.below.path())
            .expect("the disk below");
        let len = self.below.sectors() as usize * 512;
        let mut bytes = vec![0; len + 4096];
        // `O_DIRECT` wants whole pages.
        let first = bytes.as_ptr().align_offset(4096);
        file.read_exact(&mut bytes[first..first + len])
            .expect("all that is on the disk below");
        bytes[first..first + len].to_vec()
    }

    fn become_a(&self, kind: &str, parameters: &str) {
        let table = Some((kind, parameters));
        let changed = self
            .call(TABLE_LOAD, 0, table)
            .and_then(|_| self.call(DEV_SUSPEND, SUSPEND | SKIP_LOCKFS | NOFLUSH, None))
            .and_then(|_| self.call(DEV_SUSPEND, 0, None));
        changed.unwrap_or_else(|error| panic!("{kind} {parameters}: {error}"));
    }

    /// Asks the device mapper, with a table of one target; returns its answer.
    fn call(&self, command: u32, flags: u32, table: Option<(&str, &str)>) -> io::Result<Vec<u8>> {
        let mut request = vec![0; HEADER];
        let mut put = |at: usize, value: u32| {
            request[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        put(0, 4); // version
        put(DATA_START, HEADER as u32);
        put(FLAGS, flags);
        put(TARGET_COUNT, u32::from(table.is_some()));
        request[NAME..NAME + self.name.len()].copy_from_slice(self.name.as_bytes());
        if let Some((kind, parameters)) = table {
            let mut spec = vec![0; SPEC];
            spec[8..16].copy_from_slice(&self.below.sectors().to_ne_bytes());
            spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            spec.extend_from_slice(parameters.as_bytes());
            spec.resize((spec.len() + 8) & !7, 0);
            request.extend_from_slice(&spec);
        }
        let size = request.len();
        request[DATA_SIZE..DATA_SIZE + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        let number = 3 << 30 | (HEADER as u32) << 16 | 0xfd << 8 | command;
        // SAFETY: the request has as many bytes as its header says, and the kernel writes no more than those.
        let done =
            unsafe { libc::ioctl(self.control.as_raw_fd(), number as _, request.as_mut_ptr()) };
        match done {
            0 => Ok(request),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // Who still has it open may end with errors.
        for _ in 0..100 {
            if self.call(DEV_REMOVE, 0, None).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A file system on a disk that can be taken away, which only the thread that made it and the processes that it starts from then on can see.
#[derive(Debug)]
pub struct FailingFileSystem {
    dir: TempDir,
    disk: FailingDisk,
}

impl FailingFileSystem {
    /// An empty one. It has no journal: what is not synced is not there after a crash.
    pub fn new() -> Self {
        let disk = FailingDisk::filled_with(0);
        let made = Command::new("mke2fs")
            .args(["-b", "4096"])
            .arg(disk.path())
            .output();
        let made = made.expect("the program mke2fs");
        assert!(made.status.success(), "{made:?}");
        let dir = tempfile::tempdir().expect("a temporary directory");
        // SAFETY: gives this thread mount points of its own; takes no pointer.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(unshared, 0, "this test needs root");
        let system = Self { dir, disk };
        mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
        system.mount();
        system
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The host crashes and comes back. Nobody has a file on it open.
    pub fn crash(&self) {
        self.disk.fail();
        let path = CString::new(self.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: a terminated string.
        let done = unsafe { libc::umount2(path.as_ptr(), 0) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        self.disk.mend();
        self.mount();
    }

    fn mount(&self) {
        mount(Some(self.disk.path()), self.path(), 0);
    }
}

impl Default for FailingFileSystem {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FailingFileSystem {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.path().as_os_str().as_bytes()) {
            // SAFETY: a terminated string.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn mount(what: Option<&Path>, dir: &Path, flags: libc::c_ulong) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("a path");
    let (what, dir) = (what.map(text), text(dir));
    let source = what.as_ref().map_or(ptr::null(), |what| what.as_ptr());
    let kind = what.as_ref().map_or(ptr::null(), |_| c"ext4".as_ptr());
    // SAFETY: all are terminated strings that live through the call, or null where the kernel does not look.
    let done = unsafe { libc::mount(source, dir.as_ptr(), kind, flags, ptr::null()) };
    assert_eq!(done, 0, "{dir:?}: {}", io::Error::last_os_error());
}
