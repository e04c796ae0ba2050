//! A drive in two layers: a base that is only read, and an overlay file with what was written since. A clone costs the granules that it
//! changes, also where the file system cannot share blocks.
//!
//! | at byte | what the overlay's file has there |
//! |---:|---|
//! | 0 | the header, one granule: see [`Header`] |
//! | 4,096 | a bit for each granule that reads as zeros whatever the base has |
//! | [`data_at`] | the disk, granule by granule. One that was never written is a hole |
//!
//! Which granules are there is asked of the file system when the file is opened (`SEEK_DATA`), so there is no table that could contradict the data
//! after a crash: a granule appears in the file as a whole, filled up from the base first. The bits are set before data is taken away.
//! Nothing of this holds for a copy of the file that another program made with holes where there were zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use vmgenie_devices::virtio::block::{Buffers, Operation};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bits::Bits;
use super::durability::Durability;
use super::extents;
use super::overlay_error::{GRANULE, MAX_LEN, OverlayError};
use super::vectored::{Vectored, transfer};

const MAGIC: [u8; 8] = *b"VMGENOVL";
const VERSION: u32 = 1;
/// What zeros are written from. Made when it is needed: as a constant it would be in the memory of each process.
static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; 64 << 10]);

/// The beginning of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    granule: U32,
    /// Bytes of the disk.
    len: U64,
}

/// Where the disk begins in the file, which is `len` bytes long.
const fn data_at(len: u64) -> u64 {
    GRANULE + len.div_ceil(GRANULE).div_ceil(8).next_multiple_of(GRANULE)
}

/// How long the file is.
const fn file_len(len: u64) -> u64 {
    data_at(len) + len.next_multiple_of(GRANULE)
}

/// Both layers. Reads go side by side, changes one after the other.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    base: File,
    /// Bytes of the disk.
    len: u64,
    data_at: u64,
    /// In the file.
    there: Bits,
    /// Not in the file, and zeros. Means nothing for those that are in the file.
    zero: Bits,
    changing: Mutex<()>,
    durability: Durability,
}

/// Makes an empty overlay, of a base of `len` bytes, in an empty file.
pub(in crate::backends) fn format(file: &File, len: u64) -> Result<(), OverlayError> {
    if len > MAX_LEN {
        return Err(OverlayError::TooLarge(len));
    }
    extents::check(file)?;
    file.set_len(file_len(len))?;
    let header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        granule: (GRANULE as u32).into(),
        len: len.into(),
    };
    let mut granule = [0; GRANULE as usize];
    granule[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    file.write_all_at(&granule, 0)?;
    // The header is all that there is: neither more (huge pages) nor less.
    let exact = seek(file, SeekFrom::Data(0)) == Ok(0)
        && seek(file, SeekFrom::Hole(0)) == Ok(GRANULE)
        && seek(file, SeekFrom::Data(GRANULE)) == Err(Errno::NXIO);
    if !exact && len > 0 {
        return Err(OverlayError::FileSystem);
    }
    Ok(())
}

impl Overlay {
    /// Opens the overlay in `file` over `base`, a drive of `len` bytes.
    pub(super) fn open(file: File, base: File, len: u64) -> Result<Self, OverlayError> {
        let mut header = [0; size_of::<Header>()];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(OverlayError::NoOverlay);
            }
            read => read?,
        }
        let header = Header::read_from_bytes(&header).map_err(|_| OverlayError::NoOverlay)?;
        let expected = header.magic == MAGIC
            && header.version.get() == VERSION
            && u64::from(header.granule.get()) == GRANULE;
        if !expected {
            return Err(OverlayError::NoOverlay);
        }
        if header.len.get() != len {
            return Err(OverlayError::OtherBase {
                overlay: header.len.get(),
                base: len,
            });
        }
        if len > MAX_LEN {
            return Err(OverlayError::TooLarge(len));
        }
        // It may have been copied to here.
        extents::check(&file)?;
        if file.metadata()?.len() < file_len(len) {
            return Err(OverlayError::Short);
        }
        let granules = len.div_ceil(GRANULE);
        let overlay = Self {
            file,
            base,
            len,
            data_at: data_at(len),
            there: Bits::new(granules),
            zero: Bits::new(granules),
            changing: Mutex::new(()),
            durability: Durability::default(),
        };
        overlay.look()?;
        Ok(overlay)
    }

    /// The file with the changes.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The file below.
    pub(super) fn base(&self) -> &File {
        &self.base
    }

    /// Finds out what is in the file.
    fn look(&self) -> io::Result<()> {
        extents::each_written(&self.file, GRANULE, self.data_at, |begin, end| {
            let mut bytes = vec![0; GRANULE as usize];
            for at in (begin..end).step_by(bytes.len()) {
                let here = bytes.len().min((end - at) as usize);
                self.file.read_exact_at(&mut bytes[..here], at)?;
                let first = (at - GRANULE) * 8;
                for (index, byte) in (0..).zip(&bytes[..here]).filter(|(_, byte)| **byte != 0) {
                    (0..8)
                        .filter(|bit| byte & 1 << bit != 0)
                        .for_each(|bit| self.zero.set(first + index * 8 + bit, true));
                }
            }
            Ok(())
        })?;
        let end = file_len(self.len);
        extents::each_written(&self.file, self.data_at, end, |begin, end| {
            let granule = |at: u64| (at - self.data_at) / GRANULE;
            (granule(begin)..granule(end.next_multiple_of(GRANULE)))
                .for_each(|granule| self.there.set(granule, true));
            Ok(())
        })
    }

    /// Carries out one task.
    pub(super) fn run(&self, operation: Operation) -> io::Result<()> {
        match operation {
            Operation::Read { offset, buffers } => self.read(offset, buffers),
            Operation::Write {
                offset,
                buffers,
                durable,
            } => {
                self.write(offset, buffers)?;
                self.sync_if(durable)
            }
            Operation::Flush => self.sync(),
            Operation::Discard { offset, len } => self.clear(offset, len, Clear::Discard),
            Operation::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => {
                let how = if unmap { Clear::Unmap } else { Clear::Zeros };
                self.clear(offset, len, how)?;
                self.sync_if(durable)
            }
        }
    }

    /// Makes durable what was changed.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.durability.sync(&self.file)
    }

    /// Somebody has decided to go on with the file. If a sync has failed, the bits may be those that the disk does not have: they are written again.
    pub(super) fn begin_anew(&self) -> io::Result<()> {
        if !self.durability.begin_anew() {
            return Ok(());
        }
        let _changing = self.change();
        for at in (0..self.data_at - GRANULE).step_by(GRANULE as usize) {
            let bytes = (at..at + GRANULE).map(|index| self.zero.byte(index));
            let bytes: Vec<u8> = bytes.collect();
            if bytes.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(&bytes, GRANULE + at)?;
            }
        }
        Ok(())
    }

    fn sync_if(&self, durable: bool) -> io::Result<()> {
        if durable { self.sync() } else { Ok(()) }
    }

    fn read(&self, mut at: u64, mut buffers: Buffers) -> io::Result<()> {
        while !buffers.is_empty() {
            let granule = at / GRANULE;
            let above = self.is_above(granule);
            let end = (at + buffers.len()).div_ceil(GRANULE);
            let run = (granule + 1..end)
                .find(|next| self.is_above(*next) != above)
                .unwrap_or(end);
            let len = (run * GRANULE - at).min(buffers.len());
            // What is neither there nor the base's reads as zeros from a hole of the overlay.
            let read = match above {
                true => {
                    transfer_first(libc::preadv2, &self.file, &buffers, len, self.data_at + at)?
                }
                false => transfer_first(libc::preadv2, &self.base, &buffers, len, at)?,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffers.advance(read);
            at += read;
        }
        Ok(())
    }

    /// Does the granule come from the overlay's file?
    fn is_above(&self, granule: u64) -> bool {
        // In this order: a granule is marked as zeros before it goes.
        self.there.get(granule) || self.zero.get(granule)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        // Nobody panics with the lock held.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut at: u64, mut buffers: Buffers) -> io::Result<()> {
        let _changing = self.change();
        while !buffers.is_empty() {
            let (granule, within) = (at / GRANULE, at % GRANULE);
            let whole = buffers.len() / GRANULE;
            let mut len = whole * GRANULE;
            if within != 0 || whole == 0 {
                self.fill(granule)?;
                len = (GRANULE - within).min(buffers.len());
            }
            let end = at + len;
            while at < end {
                let to = self.data_at + at;
                let written = transfer_first(libc::pwritev2, &self.file, &buffers, end - at, to)?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                buffers.advance(written);
                at += written;
            }
            (granule..end / GRANULE).for_each(|granule| self.there.set(granule, true));
        }
        Ok(())
    }

    /// Brings a granule into the file, as it reads now, if it is not there.
    fn fill(&self, granule: u64) -> io::Result<()> {
        if self.there.get(granule) {
            return Ok(());
        }
        let mut bytes = [0; GRANULE as usize];
        let at = granule * GRANULE;
        if !self.zero.get(granule) {
            let here = GRANULE.min(self.len - at) as usize;
            self.base.read_exact_at(&mut bytes[..here], at)?;
        }
        self.file.write_all_at(&bytes, self.data_at + at)?;
        self.there.set(granule, true);
        Ok(())
    }

    /// Has a range read as zeros.
    fn clear(&self, offset: u64, len: u64, how: Clear) -> io::Result<()> {
        let _changing = self.change();
        let end = offset + len;
        let first = offset.div_ceil(GRANULE);
        // The end of the disk is the end of its last granule.
        let last = match end == self.len {
            true => end.div_ceil(GRANULE),
            false => end / GRANULE,
        };
        if how != Clear::Discard {
            // A discard may leave the rest as it is.
            if first > last {
                return self.zeros(offset, len);
            }
            self.zeros(offset, (first * GRANULE).min(end) - offset)?;
            self.zeros(last * GRANULE, end.saturating_sub(last * GRANULE))?;
        }
        if first < last {
            self.clear_granules(first, last, how)?;
        }
        Ok(())
    }

    /// Writes zeros into a part of one granule.
    fn zeros(&self, at: u64, len: u64) -> io::Result<()> {
        let granule = at / GRANULE;
        let reads_as_zeros = self.zero.get(granule) && !self.there.get(granule);
        if len == 0 || reads_as_zeros {
            return Ok(());
        }
        self.fill(granule)?;
        self.file
            .write_all_at(&ZEROS[..len as usize], self.data_at + at)
    }

    fn clear_granules(&self, first: u64, last: u64, how: Clear) -> io::Result<()> {
        self.mark_zero(first, last)?;
        let mut at = first;
        let mut synced = false;
        while let Some(begin) = (at..last).find(|granule| self.there.get(*granule)) {
            let end = (begin..last).find(|granule| !self.there.get(*granule));
            let end = end.unwrap_or(last);
            let (from, len) = (self.data_at + begin * GRANULE, (end - begin) * GRANULE);
            if how == Clear::Zeros {
                // The space is kept: holes would lose it, so there is data.
                for piece in (0..len).step_by(ZEROS.len()) {
                    let here = (len - piece).min(ZEROS.len() as u64) as usize;
                    self.file.write_all_at(&ZEROS[..here], from + piece)?;
                }
            } else {
                // After a crash of the host the base must not show through.
                if !std::mem::replace(&mut synced, true) {
                    self.sync()?;
                }
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, punch, from, len)?;
                (begin..end).for_each(|granule| self.there.set(granule, false));
            }
            at = end;
        }
        Ok(())
    }

    fn mark_zero(&self, first: u64, last: u64) -> io::Result<()> {
        if (first..last).all(|granule| self.zero.get(granule)) {
            return Ok(());
        }
        let marked = |index: u64| {
            (0..8).fold(self.zero.byte(index), |byte, bit| {
                let here = (first..last).contains(&(index * 8 + bit));
                byte | u8::from(here) << bit
            })
        };
        let bytes: Vec<u8> = (first / 8..last.div_ceil(8)).map(marked).collect();
        // In the file first: after an error the next attempt has to write them.
        self.file.write_all_at(&bytes, GRANULE + first / 8)?;
        (first..last).for_each(|granule| self.zero.set(granule, true));
        Ok(())
    }
}

/// How a range comes to read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clear {
    /// Nobody needs the data any more.
    Discard,
    /// It has to be zeros, and the space may go.
    Unmap,
    /// It has to be zeros, and the space stays.
    Zeros,
}

/// One system call for the first `len` bytes of `buffers`; returns how many were transferred.
fn transfer_first(
    call: Vectored,
    file: &File,
    buffers: &Buffers,
    len: u64,
    offset: u64,
) -> io::Result<u64> {
    let mut left = len;
    let mut pieces = Vec::with_capacity(buffers.iovecs().len());
    for piece in buffers.iovecs() {
        let here = (piece.iov_len as u64).min(left) as usize;
        if here == 0 {
            break;
        }
        left -= here as u64;
        pieces.push(libc::iovec {
            iov_len: here,
            ..*piece
        });
    }
    loop {
        // SAFETY: they are parts of the pieces in `buffers`, which keeps those mapped and lets the kernel read and write them.
        match unsafe { transfer(call, file, &pieces, offset, 0) } {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
#[path = "overlay_test.rs"]
mod tests;
