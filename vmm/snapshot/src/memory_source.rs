//! Where the memory of a snapshot comes from.

use std::fs::File;
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::pagemap;

/// Why a stretch of memory cannot be written into a memory file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemorySourceError {
    /// An address, length or offset is not a whole number of pages.
    #[error(
        "guest memory at host address {host_address:#x}, {length:#x} bytes, file offset \
         {file_offset:#x} is not made of whole {page_size}-byte pages"
    )]
    Unaligned {
        /// Host virtual address.
        host_address: usize,
        /// Length in bytes.
        length: usize,
        /// Offset in the memory file in bytes.
        file_offset: u64,
        /// Bytes in a page of this host.
        page_size: usize,
    },
    /// The offset in the base file is not a whole number of pages.
    #[error("offset {0:#x} in the base memory file is not a whole number of pages")]
    UnalignedBase(u64),
}

/// A stretch of guest memory that was mapped privately: anonymous memory, or an earlier memory file
/// (its *base*) in a clone.
#[derive(Debug, Clone, Copy)]
pub struct MemorySource<'a> {
    address: NonNull<u8>,
    length: usize,
    file_offset: u64,
    base: Option<(&'a File, u64)>,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> MemorySource<'a> {
    /// Describes `length` bytes of private anonymous memory at `address`, which go to
    /// `file_offset` of the memory file.
    ///
    /// # Safety
    /// For as long as the value or a copy of it is used, the whole range stays mapped and readable,
    /// and while [`Staging::write_memory`](super::Staging::write_memory) runs nobody writes to it:
    /// no vCPU runs, no device thread has a request in flight.
    ///
    /// # Errors
    /// All three are multiples of the host's page size.
    pub unsafe fn new(
        address: NonNull<u8>,
        length: usize,
        file_offset: u64,
    ) -> Result<Self, MemorySourceError> {
        let page_size = pagemap::page_size();
        let host_address = address.addr().get();
        let aligned = |value: u64| value.is_multiple_of(page_size as u64);
        if !aligned(host_address as u64) || !aligned(length as u64) || !aligned(file_offset) {
            return Err(MemorySourceError::Unaligned {
                host_address,
                length,
                file_offset,
                page_size,
            });
        }
        Ok(Self {
            address,
            length,
            file_offset,
            base: None,
            memory: PhantomData,
        })
    }

    /// Says that the range is a private mapping of `base` from `offset` on. What the guest has not
    /// changed is then taken from that file.
    ///
    /// # Errors
    /// The offset is a multiple of the host's page size.
    pub fn over(mut self, base: &'a File, offset: u64) -> Result<Self, MemorySourceError> {
        if !offset.is_multiple_of(pagemap::page_size() as u64) {
            return Err(MemorySourceError::UnalignedBase(offset));
        }
        self.base = Some((base, offset));
        Ok(self)
    }

    /// Host virtual address.
    pub(super) fn address(&self) -> usize {
        self.address.addr().get()
    }

    /// Length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Offset in the memory file in bytes.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// The file that the range is a private mapping of, and the offset of its first byte there.
    pub(super) fn base(&self) -> Option<(&'a File, u64)> {
        self.base
    }

    /// `length` bytes of the range from `offset` on. The caller asks for pages that the kernel says
    /// exist, so that looking does not make any.
    pub(super) fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        // Never fails: the pagemap is asked for the pages of this range and no others.
        assert!(
            offset
                .checked_add(length)
                .is_some_and(|end| end <= self.length)
        );
        // SAFETY: within the range, as was just asserted; the caller of `new` keeps it mapped,
        // readable and unwritten while the memory is being saved.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().add(offset), length) }
    }

    /// Copies what the range holds from `offset` on, whether the pages are there or in the base.
    pub(super) fn read(&self, offset: usize, to: &mut [u8]) {
        // Never fails: callers read the range in pieces.
        assert!(
            offset
                .checked_add(to.len())
                .is_some_and(|end| end <= self.length)
        );
        // SAFETY: within the range, as was just asserted, and mapped and readable, as the caller of `new` has said. Should somebody
        // write to the base file meanwhile, which nobody may, the bytes are others; no reference to them is made.
        unsafe {
            self.address
                .as_ptr()
                .add(offset)
                .copy_to_nonoverlapping(to.as_mut_ptr(), to.len())
        }
    }
}
