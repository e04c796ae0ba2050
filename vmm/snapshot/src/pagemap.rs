//! Which pages of this process's private memory hold something of its own.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use zerocopy::IntoBytes;

/// Entries read at once: 512 KiB, for 256 MiB of memory with pages of 4 KiB.
const CHUNK: usize = 64 << 10;

// Bits of an entry, from the kernel's admin-guide/mm/pagemap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

/// Bytes in a page of this host.
pub(super) fn page_size() -> usize {
    static PAGE_SIZE: OnceLock<usize> = OnceLock::new();
    *PAGE_SIZE.get_or_init(rustix::param::page_size)
}

/// `/proc/self/pagemap`, which needs no privilege for what is asked here.
#[derive(Debug)]
pub(super) struct Pagemap {
    file: File,
    entries: Vec<u64>,
}

impl Pagemap {
    pub(super) fn open() -> io::Result<Self> {
        let file = File::open("/proc/self/pagemap")?;
        Ok(Self {
            file,
            entries: Vec::new(),
        })
    }

    /// Calls `visit` with each run of pages in the `length` bytes at `address` that are not what
    /// the mapping began with: pages of anonymous memory that exist, pages of a private file
    /// mapping that were written to. Runs are byte offsets from `address`, ascending; two runs may
    /// touch where a chunk ends.
    ///
    /// A page in swap counts, and so does one that was only read: the kernel shows its zero page
    /// there.
    pub(super) fn changed<E: From<io::Error>>(
        &mut self,
        address: usize,
        length: usize,
        mut visit: impl FnMut(Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let page_size = page_size();
        let (first, pages) = (address / page_size, length / page_size);
        for start in (0..pages).step_by(CHUNK) {
            let count = CHUNK.min(pages - start);
            self.entries.resize(count, 0);
            self.file
                .read_exact_at(self.entries.as_mut_bytes(), (first + start) as u64 * 8)?;
            let mut index = 0;
            while let Some(skipped) = self.entries[index..].iter().position(|e| is_changed(*e)) {
                let begin = index + skipped;
                let run = self.entries[begin..]
                    .iter()
                    .take_while(|e| is_changed(**e))
                    .count();
                index = begin + run;
                visit((start + begin) * page_size..(start + index) * page_size)?;
            }
        }
        Ok(())
    }
}

/// Anonymous, in memory or in swap. In a private file mapping a page that is still the file's has
/// the third bit.
fn is_changed(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0
}
