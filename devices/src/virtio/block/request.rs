//! Chains of descriptors as requests (virtio 1.2, section 5.2.6). All of it is the guest's word.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk as ids;
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::super::GuestMemory;
use super::backend::{Buffers, Operation, SECTOR};
use super::{
    F_DISCARD, F_FLUSH, F_WRITE_ZEROES, MAX_DESCRIPTORS, MAX_DISCARD_SECTORS, MAX_REQUEST,
    MAX_SEGMENTS, MAX_ZERO_SECTORS,
};

/// The request was carried out.
pub(super) const S_OK: u8 = ids::VIRTIO_BLK_S_OK as u8;
/// It was not: a rule was broken, or the file has failed.
pub(super) const S_IOERR: u8 = ids::VIRTIO_BLK_S_IOERR as u8;
/// The device knows no such request.
pub(super) const S_UNSUPP: u8 = ids::VIRTIO_BLK_S_UNSUPP as u8;

/// Bytes of a request's header: type, a reserved word, sector.
const HEADER: usize = 16;
/// Bytes of the range that is to be discarded or zeroed.
const RANGE: usize = 16;
/// Bytes of the disk's name.
pub(super) const ID_BYTES: usize = ids::VIRTIO_BLK_ID_BYTES as usize;

/// A piece of guest memory.
type Segment = (GuestAddress, u32);

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The size of the disk.
    pub(super) sectors: u64,
    /// The features that driver and device have agreed on.
    pub(super) features: u64,
    /// The device offers flushes, though the driver may not have taken them.
    pub(super) flushes: bool,
    /// Nothing may be written, whether the driver has taken note or not.
    pub(super) read_only: bool,
}

/// A request with a place for its answer.
#[derive(Debug)]
pub(super) struct Request {
    /// Where the status byte goes; inside guest memory.
    pub(super) status: GuestAddress,
    /// Bytes that the device writes before the status byte, if it succeeds.
    pub(super) written: u32,
    /// What is to be done; or the status with which it is refused.
    pub(super) what: Result<What, u8>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum What {
    /// A task for the backend.
    Operation(Operation),
    /// The disk's name is asked for: it goes into these pieces of memory.
    Id(Vec<Segment>),
}

impl Request {
    /// Reads a chain. None if it has no place for an answer: the chain does not end, or no byte of guest memory in it is the
    /// device's to write.
    pub(super) fn parse(
        chain: DescriptorChain<&GuestMemory>,
        memory: &Arc<GuestMemory>,
        rules: Rules,
    ) -> Option<Self> {
        let mut pieces = Pieces::gather(chain)?;
        let status = pieces.take_status()?;
        if !memory.check_range(status, 1) {
            return None;
        }
        let mut written = 0;
        let what = if pieces.malformed {
            Err(S_IOERR)
        } else {
            pieces.read(memory, rules, &mut written)
        };
        Some(Self {
            status,
            written,
            what,
        })
    }
}

/// A chain's pieces of memory.
#[derive(Debug, Default)]
struct Pieces {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// The chain breaks a rule, but its end is known.
    malformed: bool,
}

impl Pieces {
    /// None if the chain does not end: it is a loop, leads out of its table, or is longer than any that a driver may make.
    fn gather(mut chain: DescriptorChain<&GuestMemory>) -> Option<Self> {
        let mut pieces = Self::default();
        let mut ends = false;
        let mut count = 0;
        for (number, descriptor) in chain.by_ref().enumerate() {
            if number == MAX_DESCRIPTORS {
                return None;
            }
            ends = !descriptor.has_next();
            if descriptor.len() == 0 {
                continue;
            }
            count += 1;
            pieces.malformed |= count > MAX_SEGMENTS;
            let segment = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                if pieces.malformed {
                    // Only the last one matters, which has the status byte.
                    pieces.writable.clear();
                }
                pieces.writable.push(segment);
            } else if pieces.writable.is_empty() && !pieces.malformed {
                pieces.readable.push(segment);
            } else {
                pieces.malformed = true;
            }
        }
        ends.then_some(pieces)
    }

    /// Takes the last byte that the device may write.
    fn take_status(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.writable.last_mut()?;
        *len -= 1;
        let status = address.checked_add(u64::from(*len));
        if *len == 0 {
            self.writable.pop();
        }
        status
    }

    /// What the request says; `written` is set to how many bytes the answer has.
    fn read(
        mut self,
        memory: &Arc<GuestMemory>,
        rules: Rules,
        written: &mut u32,
    ) -> Result<What, u8> {
        let mut header = [0; HEADER];
        take(memory, &mut self.readable, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let refused_if = |refused: bool, status| if refused { Err(status) } else { Ok(()) };
        let has = |feature: u64| rules.features & feature != 0;
        // A driver that does not flush takes what it is told is written to be safe.
        let durable = rules.flushes && !has(F_FLUSH);
        let operation = match u32::from_le_bytes([t0, t1, t2, t3]) {
            ids::VIRTIO_BLK_T_IN => {
                let len = transfer_len(&self.writable)?;
                let offset = rules.range(sector, u64::from(len) / SECTOR)?;
                let buffers = Buffers::new(memory, &self.writable).ok_or(S_IOERR)?;
                *written = len;
                Operation::Read { offset, buffers }
            }
            ids::VIRTIO_BLK_T_OUT => {
                refused_if(rules.read_only, S_IOERR)?;
                let len = transfer_len(&self.readable)?;
                let offset = rules.range(sector, u64::from(len) / SECTOR)?;
                let buffers = Buffers::new(memory, &self.readable).ok_or(S_IOERR)?;
                Operation::Write {
                    offset,
                    buffers,
                    durable,
                }
            }
            ids::VIRTIO_BLK_T_FLUSH => {
                refused_if(!has(F_FLUSH), S_UNSUPP)?;
                Operation::Flush
            }
            ids::VIRTIO_BLK_T_GET_ID => {
                let room: u64 = self.writable.iter().map(|(_, len)| u64::from(*len)).sum();
                refused_if(room < ID_BYTES as u64, S_IOERR)?;
                *written = ID_BYTES as u32;
                return Ok(What::Id(self.writable));
            }
            ids::VIRTIO_BLK_T_DISCARD => {
                refused_if(!has(F_DISCARD), S_UNSUPP)?;
                let (offset, len, flags) =
                    rules.one_range(memory, &mut self.readable, MAX_DISCARD_SECTORS)?;
                refused_if(flags != 0, S_UNSUPP)?;
                Operation::Discard { offset, len }
            }
            ids::VIRTIO_BLK_T_WRITE_ZEROES => {
                refused_if(!has(F_WRITE_ZEROES), S_UNSUPP)?;
                let (offset, len, flags) =
                    rules.one_range(memory, &mut self.readable, MAX_ZERO_SECTORS)?;
                let unmap = flags & ids::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                refused_if(
                    flags & !ids::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
                    S_UNSUPP,
                )?;
                Operation::WriteZeroes {
                    offset,
                    len,
                    unmap,
                    durable,
                }
            }
            _ => return Err(S_UNSUPP),
        };
        Ok(What::Operation(operation))
    }
}

impl Rules {
    /// The offset in bytes of `count` sectors from `sector` on, which must all be on the disk.
    fn range(&self, sector: u64, count: u64) -> Result<u64, u8> {
        match sector.checked_add(count) {
            Some(end) if end <= self.sectors => sector.checked_mul(SECTOR).ok_or(S_IOERR),
            _ => Err(S_IOERR),
        }
    }

    /// The one range of a discard or of zeros: offset and length in bytes, and flags. The device announces that it takes one range a request.
    fn one_range(
        &self,
        memory: &GuestMemory,
        readable: &mut Vec<Segment>,
        most: u32,
    ) -> Result<(u64, u64, u32), u8> {
        let mut range = [0; RANGE];
        take(memory, readable, &mut range)?;
        let [sector @ .., c0, c1, c2, c3, f0, f1, f2, f3] = range;
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if !readable.is_empty() || count == 0 || count > most {
            return Err(S_IOERR);
        }
        let offset = self.range(u64::from_le_bytes(sector), count.into())?;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        Ok((offset, u64::from(count) * SECTOR, flags))
    }
}

/// The length of a transfer: whole sectors, some, and not too many.
fn transfer_len(segments: &[Segment]) -> Result<u32, u8> {
    let len: u64 = segments.iter().map(|(_, len)| u64::from(*len)).sum();
    match u32::try_from(len) {
        Ok(len @ 1..=MAX_REQUEST) if u64::from(len).is_multiple_of(SECTOR) => Ok(len),
        _ => Err(S_IOERR),
    }
}

/// Fills `to` from the front of `segments`, which lose what was read.
fn take(memory: &GuestMemory, segments: &mut Vec<Segment>, mut to: &mut [u8]) -> Result<(), u8> {
    let mut done = 0;
    for (address, len) in segments.iter_mut() {
        if to.is_empty() {
            break;
        }
        let here = to.len().min(*len as usize);
        let (now, later) = to.split_at_mut(here);
        memory.read_slice(now, *address).map_err(|_| S_IOERR)?;
        to = later;
        // No overflow: the bytes were just read.
        *address = address.unchecked_add(here as u64);
        *len -= here as u32;
        done += usize::from(*len == 0);
    }
    segments.drain(..done);
    if to.is_empty() { Ok(()) } else { Err(S_IOERR) }
}

/// Writes `bytes` into `segments`, from the front, as far as there is room.
pub(super) fn give(memory: &GuestMemory, segments: &[Segment], mut bytes: &[u8]) -> Result<(), u8> {
    for &(address, len) in segments {
        let (now, later) = bytes.split_at(bytes.len().min(len as usize));
        memory.write_slice(now, address).map_err(|_| S_IOERR)?;
        bytes = later;
    }
    Ok(())
}
