//! What the tests of several files of this module need.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;

/// Bytes in a page, for tests that count pages.
pub(super) const PAGE: usize = 4096;
/// Pages of the snapshots that [`create`] makes.
const PAGES: usize = 16;

/// A private mapping that stands for guest memory.
pub(super) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

impl Mapping {
    pub(super) fn anonymous(length: usize) -> Self {
        Self::new(length, libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)
    }

    /// A clone's memory: a private mapping of a memory file.
    pub(super) fn of(file: &File, length: usize) -> Self {
        Self::new(length, libc::MAP_NORESERVE, file.as_raw_fd())
    }

    fn new(length: usize, flags: i32, fd: i32) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | flags;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        // Else the kernel may hand out 512 pages where one is touched.
        // SAFETY: advice on the new mapping, which does not change what is in it.
        unsafe { libc::madvise(address, length, libc::MADV_NOHUGEPAGE) };
        Self {
            address: NonNull::new(address.cast()).unwrap(),
            length,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self`, and only `page` writes to it.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }

    pub(super) fn page(&mut self, number: usize) -> &mut [u8] {
        assert!((number + 1) * PAGE <= self.length);
        // SAFETY: within the mapping, which lives as long as `self` and is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr().add(number * PAGE), PAGE) }
    }

    pub(super) fn source(&self, file_offset: u64) -> MemorySource<'_> {
        // SAFETY: the mapping lives as long as the borrow of `self`, which forbids writes.
        unsafe { MemorySource::new(self.address, self.length, file_offset) }.unwrap()
    }

    /// Pages that are in memory, whether changed or not.
    pub(super) fn resident(&self) -> usize {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut entries = vec![0; self.length / PAGE * 8];
        let offset = (self.address.addr().get() / PAGE * 8) as u64;
        pagemap.read_exact_at(&mut entries, offset).unwrap();
        entries
            .chunks(8)
            .filter(|entry| entry[7] & 0xc0 != 0)
            .count()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and every borrow of it has ended.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}

/// What the state of a test's snapshot says, so that it can be compared with the memory.
#[derive(Serialize, Deserialize)]
pub(super) struct Label(pub(super) u8);

impl Part for Label {
    const TAG: &'static str = "label";
    const VERSION: u16 = 1;
}

/// Two directories, or twice the same, and a snapshot's two paths in them.
pub(super) struct Place {
    pub(super) directories: Vec<TempDir>,
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
}

impl Place {
    pub(super) fn new(apart: bool) -> Self {
        Self::in_directories(apart, || TempDir::new().unwrap())
    }

    /// In memory, if that is possible: for tests that sync a thousand times and pull no plug.
    pub(super) fn quick(apart: bool) -> Self {
        let directory = || TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
        Self::in_directories(apart, || directory().unwrap())
    }

    fn in_directories(apart: bool, directory: impl Fn() -> TempDir) -> Self {
        let directories: Vec<_> = (0..=usize::from(apart)).map(|_| directory()).collect();
        let state = directories[0].path().join("vm.state");
        let memory = directories[usize::from(apart)].path().join("vm.memory");
        Self {
            directories,
            state,
            memory,
        }
    }

    /// Names of all files there, sorted.
    pub(super) fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .directories
            .iter()
            .flat_map(|dir| names(dir.path()))
            .collect();
        names.sort();
        names
    }

    pub(super) fn assert_only_snapshot(&self) {
        assert_eq!(self.files(), ["vm.memory", "vm.state"]);
    }
}

/// Names in a directory, hidden ones too.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Creates a snapshot whose memory consists of `label`, and whose state says so.
pub(super) fn create(state: &Path, memory: &Path, label: u8) -> Result<SnapshotId, CreateError> {
    create_sized(state, memory, label, PAGES, 0)
}

/// The same with `pages` of memory and a state that is `padding` bytes longer.
pub(super) fn create_sized(
    state: &Path,
    memory: &Path,
    label: u8,
    pages: usize,
    padding: usize,
) -> Result<SnapshotId, CreateError> {
    let mut mapping = Mapping::anonymous(pages * PAGE);
    (0..pages).for_each(|page| mapping.page(page).fill(label));
    let mut staging = Staging::new(state, memory)?;
    let id = staging.id();
    let written = staging.write_memory(&[mapping.source(0)])?;
    let mut writer = StateWriter::new(id, written.memory_length);
    writer
        .part(&Label(label))
        .unwrap()
        .part(&Padding(vec![label; padding]))
        .unwrap();
    staging.write_state(&writer.finish().unwrap())?;
    staging.sync()?;
    staging.publish()?;
    Ok(id)
}

#[derive(Serialize, Deserialize)]
struct Padding(Vec<u8>);

impl Part for Padding {
    const TAG: &'static str = "padding";
    const VERSION: u16 = 1;
}

/// Opens a snapshot of [`create`]'s, checks that both files belong together byte for byte, and
/// returns its label.
pub(super) fn load(state: &Path, memory: &Path) -> Result<u8, LoadError> {
    let mut snapshot = open_snapshot(state, memory)?;
    let Label(label) = snapshot.reader.take().unwrap();
    snapshot.reader.take::<Padding>().unwrap();
    snapshot.reader.finish().unwrap();
    let mut bytes = vec![0; snapshot.memory_length as usize];
    snapshot.memory.read_exact_at(&mut bytes, 0).unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == label),
        "memory is not that of the state"
    );
    Ok(label)
}

/// Runs a test of this module in a process of its own. The test is marked as ignored, so that it
/// runs only here.
pub(super) fn process(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        test,
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
}
