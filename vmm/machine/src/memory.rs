//! Guest memory: anonymous for a machine that boots, a private mapping of the memory file for one that is restored.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use super::memory_loss::{self, MemoryLoss};
use crate::config::HugePages;

use super::layout::{RamRange, ram_ranges};

/// Guest memory as the rest of the monitor sees it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Why guest memory could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The mapping failed.
    #[error("could not map {len} bytes of guest memory at gpa {gpa:#x}")]
    Map {
        /// Where the range starts.
        gpa: u64,
        /// Its length in bytes.
        len: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// There are not enough huge pages.
    #[error(
        "the host has not enough free huge pages of 2 MiB for {len} bytes of guest memory at gpa {gpa:#x}: see HugePages_Free in \
         /proc/meminfo, and have more set aside in /proc/sys/vm/nr_hugepages"
    )]
    HugePages {
        /// Where the range starts.
        gpa: u64,
        /// Its length in bytes.
        len: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The kernel has no transparent huge pages.
    #[error("the host's kernel has no transparent huge pages")]
    Transparent(#[source] io::Error),
    /// The ranges don't fit the address space.
    #[error("the guest memory does not fit its address space")]
    Layout,
    /// KVM refused a memory slot.
    #[error("KVM refused memory slot {slot} (gpa {gpa:#x}, {len} bytes)")]
    Slot {
        /// The number of the slot.
        slot: u32,
        /// Where the range starts.
        gpa: u64,
        /// Its length in bytes.
        len: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The memory of one machine, and the file that it was restored from.
#[derive(Debug)]
pub struct Memory {
    map: GuestMemory,
    backing: Option<Arc<File>>,
}

impl Memory {
    /// Fresh memory of `bytes` bytes, all zero; a page costs nothing until it is touched.
    pub fn anonymous(bytes: u64) -> Result<Self, MemoryError> {
        Self::fresh(bytes, HugePages::None)
    }

    /// As [`Self::anonymous`], in such pages. Those of 2 MiB are set aside for this memory at once, touched or not, so that the
    /// guest cannot run out of them.
    pub fn fresh(bytes: u64, pages: HugePages) -> Result<Self, MemoryError> {
        let map = map(&ram_ranges(bytes), &Backing::Anonymous(pages))?;
        if pages == HugePages::Transparent {
            for region in map.iter() {
                // SAFETY: the range is mapped, and the advice changes nothing of what is in it.
                let advised = unsafe {
                    libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE)
                };
                if advised != 0 {
                    return Err(MemoryError::Transparent(io::Error::last_os_error()));
                }
            }
        }
        let memory = Self { map, backing: None };
        memory.keep_out_of_core_dumps();
        Ok(memory)
    }

    /// A core dump has none of it from now on. A restore does this when it has been answered: it takes a system call for each range.
    pub fn keep_out_of_core_dumps(&self) {
        for region in self.map.iter() {
            // SAFETY: the range is mapped, and the advice changes nothing of what is in it.
            let advised = unsafe {
                libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP)
            };
            if advised != 0 {
                let error = io::Error::last_os_error();
                tracing::warn!(%error, "core dumps will have guest memory in them");
            }
        }
    }

    /// Memory of `bytes` bytes that starts with what `file` holds and is read from there when it is first touched. Writes
    /// stay private.
    ///
    /// The caller has checked that the file has that many bytes; it must not be shortened while the machine lives (snapshots
    /// replace files by renaming, never in place).
    pub fn from_file(bytes: u64, file: File) -> Result<Self, MemoryError> {
        let file = Arc::new(file);
        let map = map(&ram_ranges(bytes), &Backing::File(&file))?;
        let ranges = map
            .iter()
            .map(|region| (region.as_ptr().addr(), region.size()));
        memory_loss::watch_memory(ranges, file.as_fd(), bytes);
        Ok(Self {
            map,
            backing: Some(file),
        })
    }

    /// What has become of the file that the machine was restored from, if it was shortened since: pages of it are gone.
    pub fn loss(&self) -> Option<MemoryLoss> {
        let len = self.map.iter().map(GuestMemoryRegion::len).sum();
        let loss = MemoryLoss::of(self.backing.as_ref()?.as_fd(), len);
        loss.is_truncated().then_some(loss)
    }

    /// The mapped memory.
    pub fn map(&self) -> &GuestMemory {
        &self.map
    }

    /// The file behind the memory of a restored machine.
    pub fn backing(&self) -> Option<&Arc<File>> {
        self.backing.as_ref()
    }

    /// Gives the memory to KVM, one slot for each range.
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.map.iter()) {
            let (gpa, len) = (region.start_addr().0, region.len());
            let kvm_region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: gpa,
                memory_size: len,
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the range is mapped, does not overlap another slot (`map` was built from disjoint ranges), and `Machine`
            // drops the VM before its memory.
            unsafe { vm.set_user_memory_region(kvm_region) }.map_err(|error| {
                MemoryError::Slot {
                    slot,
                    gpa,
                    len,
                    source: error.into(),
                }
            })?;
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.backing.is_some() {
            memory_loss::forget_memory();
        }
    }
}

/// What is behind a mapping.
enum Backing<'a> {
    Anonymous(HugePages),
    File(&'a Arc<File>),
}

fn map(ranges: &[RamRange], backing: &Backing<'_>) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::with_capacity(ranges.len());
    let mut offset = 0;
    for range in ranges {
        regions.push(map_range(*range, backing, offset)?);
        offset += range.len;
    }
    GuestMemory::from_regions(regions).map_err(|_| MemoryError::Layout)
}

fn map_range(
    range: RamRange,
    backing: &Backing<'_>,
    offset: u64,
) -> Result<GuestRegionMmap<()>, MemoryError> {
    let RamRange {
        start: GuestAddress(gpa),
        len,
    } = range;
    let size = usize::try_from(len).map_err(|_| MemoryError::Layout)?;
    let flags = match backing {
        // Set aside now, or refused now: a page that is missing later would be a signal.
        Backing::Anonymous(HugePages::TwoMib) => {
            libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB
        }
        Backing::Anonymous(_) => libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        Backing::File(_) => libc::MAP_NORESERVE,
    };
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | flags);
    if let Backing::File(file) = backing {
        builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
    }
    let region = builder.build().map_err(|source| match backing {
        Backing::Anonymous(HugePages::TwoMib) => MemoryError::HugePages { gpa, len, source },
        _ => MemoryError::Map { gpa, len, source },
    })?;
    GuestRegionMmap::new(region, range.start).ok_or(MemoryError::Layout)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    #[test]
    fn guest_memory_is_in_no_core_dump() {
        let dumped = |memory: &Memory| {
            let start = memory.map().iter().next().unwrap().as_ptr().addr();
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut lines = maps.lines();
            lines
                .find(|line| line.starts_with(&format!("{start:x}-")))
                .unwrap();
            let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
            !flags.split(' ').any(|flag| flag == "dd")
        };
        assert!(!dumped(&Memory::anonymous(32 << 20).unwrap()));
        let file = tempfile::tempfile().unwrap();
        file.set_len(32 << 20).unwrap();
        let restored = Memory::from_file(32 << 20, file).unwrap();
        assert!(dumped(&restored));
        restored.keep_out_of_core_dumps();
        assert!(!dumped(&restored));
    }

    #[test]
    fn anonymous_memory_has_the_gap() {
        let memory = Memory::anonymous(4 << 30).unwrap();
        assert!(memory.map().address_in_range(GuestAddress(0xbfff_ffff)));
        assert!(!memory.map().address_in_range(GuestAddress(0xc000_0000)));
        assert!(memory.map().address_in_range(GuestAddress(0x1_0000_0000)));
        assert!(memory.backing().is_none());
    }

    #[test]
    fn writes_to_restored_memory_do_not_reach_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"snapshot").unwrap();
        file.set_len(32 << 20).unwrap();
        let again = file.try_clone().unwrap();
        let memory = Memory::from_file(32 << 20, file).unwrap();
        let mut bytes = [0; 8];
        memory
            .map()
            .read_slice(&mut bytes, GuestAddress(0))
            .unwrap();
        assert_eq!(&bytes, b"snapshot");
        memory
            .map()
            .write_slice(b"changed!", GuestAddress(0))
            .unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&again, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"snapshot");
    }
}
