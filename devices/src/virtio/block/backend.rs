//! What a block device asks of the file behind it, and the pieces of guest memory that go with it.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::super::GuestMemory;

/// Bytes in a sector, the unit in which virtio counts (section 5.2.4), whatever the disk's own blocks are.
pub const SECTOR: u64 = 512;

/// What stores the disk: requests go in by number, in any number up to the depth, and come out in any order.
///
/// The device calls it from one thread at a time, but not always the same one.
pub trait BlockBackend: Send + Debug {
    /// The size of the disk in sectors. A rest of the file that fills no sector is not part of the disk.
    fn sectors(&self) -> u64;

    /// Writes would be refused.
    fn read_only(&self) -> bool;

    /// Whether a flush is promised to reach the disk; if not, the device does not offer it.
    fn flushes(&self) -> bool;

    /// Whether a driver may try to have ranges given back or zeroed without data. What then turns out to be impossible ends with `EOPNOTSUPP`.
    fn discards(&self) -> bool;

    /// How many tasks may be in flight, at least 1. Always the same.
    fn depth(&self) -> u16;

    /// The device begins to look at its queue. What it finds now the driver has made available without an answer to what is in flight.
    fn turn_begins(&mut self) {}

    /// Takes a task. It may begin at once, or with [`Self::kick`]. The token is not in use by another task in flight. An error is
    /// reported as the task's end, never here.
    fn start(&mut self, task: Task);

    /// Begins all that was taken. False if the host has no room for some of it now: to be called again soon.
    #[must_use]
    fn kick(&mut self) -> bool;

    /// A task that has ended, with its result; none if no other has ended yet. Never waits.
    fn ended(&mut self) -> Option<(u16, io::Result<()>)>;

    /// Waits until a task in flight has ended, for [`Self::ended`] to tell. Only called while one is in flight.
    fn wait(&mut self);

    /// Makes durable what is on the disk, for a snapshot that refers to it, whether flushes are offered or not. Only called while nothing is in
    /// flight.
    ///
    /// # Errors
    /// The file's, now or at an earlier sync or flush: what was lost then does not come back by another attempt.
    fn sync(&mut self) -> io::Result<()>;

    /// Becomes readable when tasks have ended.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// One thing to do.
#[derive(Debug)]
pub struct Task {
    /// Comes back when it has ended.
    pub token: u16,
    /// What to do.
    pub operation: Operation,
}

/// What can be done to a disk. Offsets and lengths are bytes, multiples of [`SECTOR`] within the disk.
#[derive(Debug)]
pub enum Operation {
    /// From the disk into guest memory.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where to.
        buffers: Buffers,
    },
    /// From guest memory to the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where from.
        buffers: Buffers,
        /// It has ended when the data is durable: the driver does not flush.
        durable: bool,
    },
    /// Makes durable all writes that have ended.
    Flush,
    /// What is there may be forgotten.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// What is there reads as zeros.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// The space may be given back.
        unmap: bool,
        /// It has ended when this is durable.
        durable: bool,
    },
}

impl Operation {
    /// Whether the disk is another one afterwards.
    pub fn writes(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Flush => false,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. } => true,
        }
    }
}

/// Guest memory in pieces, for `preadv` and its like.
///
/// It keeps the memory mapped. The guest may read and write the pieces at any time, and they may overlap, so nobody may make
/// references of them: the kernel copies.
#[derive(Debug)]
pub struct Buffers {
    iovecs: Vec<libc::iovec>,
    /// Those before this one are done with.
    first: usize,
    len: u64,
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into guest memory, which any thread may reach through `GuestMemory`, and which `_memory` keeps mapped.
unsafe impl Send for Buffers {}

impl Buffers {
    /// The pieces `segments`; none if one is outside of guest memory.
    pub fn new(memory: &Arc<GuestMemory>, segments: &[(GuestAddress, u32)]) -> Option<Self> {
        let mut iovecs = Vec::with_capacity(segments.len());
        let mut len = 0;
        for &(address, segment_len) in segments {
            for slice in memory.get_slices(address, segment_len as usize) {
                let slice = slice.ok()?;
                len += slice.len() as u64;
                iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Some(Self {
            iovecs,
            first: 0,
            len,
            _memory: Arc::clone(memory),
        })
    }

    /// What is left, for the kernel. As long as this lives, the pointers are valid for reads and writes.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs[self.first..]
    }

    /// How many bytes are left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Is nothing left?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `bytes` have been transferred; more than there are counts as all.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = bytes.min(self.len);
        self.len -= left;
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            let here = (iovec.iov_len as u64).min(left) as usize;
            left -= here as u64;
            if here < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(here);
                iovec.iov_len -= here;
                break;
            }
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn memory() -> Arc<GuestMemory> {
        // Two regions that touch, and one apart.
        let at = |address, len| (GuestAddress(address), len);
        let ranges = [at(0, 0x1000), at(0x1000, 0x1000), at(0x10000, 0x1000)];
        Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_piece_may_cross_regions_that_touch_but_no_gap() {
        let memory = memory();
        let whole = Buffers::new(&memory, &[(GuestAddress(0xff0), 0x20)]).unwrap();
        assert_eq!(whole.iovecs().len(), 2);
        assert_eq!(whole.len(), 0x20);
        for outside in [
            (GuestAddress(0x1ff0), 0x20),
            (GuestAddress(u64::MAX - 3), 8),
            (GuestAddress(0x5000), 1),
        ] {
            let segments = [(GuestAddress(0), 8), outside];
            assert!(Buffers::new(&memory, &segments).is_none(), "{outside:?}");
        }
    }

    #[test]
    fn what_has_been_transferred_is_taken_from_the_front() {
        let memory = memory();
        let segments = [(GuestAddress(0x10), 4), (GuestAddress(0x100), 4)];
        let mut buffers = Buffers::new(&memory, &segments).unwrap();
        memory.write_slice(b"abcd", GuestAddress(0x100)).unwrap();
        buffers.advance(6);
        assert_eq!((buffers.len(), buffers.iovecs().len()), (2, 1));
        let rest = buffers.iovecs()[0];
        assert_eq!(rest.iov_len, 2);
        // SAFETY: two bytes of guest memory, which nobody else uses in this test.
        let bytes = unsafe { std::slice::from_raw_parts(rest.iov_base.cast::<u8>(), 2) };
        assert_eq!(bytes, b"cd");
        buffers.advance(u64::MAX);
        assert!(buffers.is_empty() && buffers.iovecs().is_empty());
    }
}
