//! A packet's header (virtio 1.2 section 5.10.6), and the guest memory that a packet lies in.
//!
//! Why not the crate `virtio-vsock`: it takes one descriptor of data for each packet, and Linux sends packets of many (`MSG_ZEROCOPY`,
//! Linux 6.7 and later).

use virtio_queue::{DescriptorChain, desc::split::Descriptor};
use vm_memory::{GuestMemoryBackend, VolatileSlice};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::virtio::GuestMemory;

/// Length of a packet's header in bytes.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
/// The most pieces of guest memory that one packet may lie in; the host's system calls take as many. A chain with more descriptors is
/// not looked at to its end.
pub(super) const MAX_PIECES: usize = 1024;

/// The CID of the host.
pub(super) const HOST_CID: u64 = 2;
/// The only type of sockets that we have (`VIRTIO_VSOCK_TYPE_STREAM`).
pub(super) const TYPE_STREAM: u16 = 1;

/// What a packet is for (`VIRTIO_VSOCK_OP_*`).
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// The sender of a `SHUTDOWN` will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a `SHUTDOWN` will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `struct virtio_vsock_hdr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Header {
    pub(super) src_cid: U64,
    pub(super) dst_cid: U64,
    pub(super) src_port: U32,
    pub(super) dst_port: U32,
    /// Length of the data, in bytes, without the header.
    pub(super) len: U32,
    pub(super) kind: U16,
    pub(super) op: U16,
    pub(super) flags: U32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub(super) buf_alloc: U32,
    /// Bytes that the sender has taken out of that buffer since the connection began, modulo 2^32.
    pub(super) fwd_cnt: U32,
}

/// Guest memory in pieces, in order.
pub(super) type Pieces<'m> = Vec<VolatileSlice<'m>>;

/// The memory of a chain whose descriptors are all for the device to read (`writable` false) or all to write. None if one is of
/// the other kind, lies outside of memory, or if there are too many.
pub(super) fn pieces<'m>(
    memory: &'m GuestMemory,
    chain: DescriptorChain<&'m GuestMemory>,
    writable: bool,
) -> Option<Pieces<'m>> {
    let mut pieces = Pieces::with_capacity(2);
    for (n, descriptor) in chain.enumerate() {
        if n == MAX_PIECES || descriptor.is_write_only() != writable {
            return None;
        }
        push(memory, &descriptor, &mut pieces)?;
    }
    Some(pieces)
}

fn push<'m>(
    memory: &'m GuestMemory,
    descriptor: &Descriptor,
    pieces: &mut Pieces<'m>,
) -> Option<()> {
    let len = usize::try_from(descriptor.len()).ok()?;
    for piece in GuestMemoryBackend::get_slices(memory, descriptor.addr(), len) {
        let piece = piece.ok()?;
        if piece.is_empty() {
            continue;
        }
        if pieces.len() == MAX_PIECES {
            return None;
        }
        pieces.push(piece);
    }
    Some(())
}

/// The number of bytes in all pieces.
pub(super) fn len(pieces: &[VolatileSlice<'_>]) -> usize {
    // At most 4 GiB: a chain's iterator sees to that.
    pieces.iter().map(VolatileSlice::len).sum()
}

/// Cuts the first `len` bytes off; none (and nothing sensible left) if there are fewer.
pub(super) fn split_front<'m>(pieces: &mut Pieces<'m>, len: usize) -> Option<Pieces<'m>> {
    let mut front = Pieces::with_capacity(1);
    let mut wanted = len;
    let mut whole = 0;
    for piece in pieces.iter_mut() {
        if wanted == 0 {
            break;
        }
        if piece.len() <= wanted {
            wanted -= piece.len();
            front.push(*piece);
            whole += 1;
        } else {
            let (head, tail) = piece.split_at(wanted).ok()?;
            wanted = 0;
            front.push(head);
            *piece = tail;
        }
    }
    pieces.drain(..whole);
    (wanted == 0).then_some(front)
}

/// Copies out of guest memory, as many bytes as both sides have.
pub(super) fn copy_out(pieces: &[VolatileSlice<'_>], mut into: &mut [u8]) {
    for piece in pieces {
        let n = piece.copy_to(into);
        into = &mut into[n..];
    }
}

/// Copies into guest memory, as many bytes as both sides have.
pub(super) fn copy_in(pieces: &[VolatileSlice<'_>], mut from: &[u8]) {
    for piece in pieces {
        let n = piece.len().min(from.len());
        let (now, later) = from.split_at(n);
        piece.copy_from(now);
        from = later;
    }
}

impl Header {
    /// The header and the data of a packet from the guest. The header is copied once, so that it cannot change under us. None if the
    /// chain is no packet.
    pub(super) fn take<'m>(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&'m GuestMemory>,
    ) -> Option<(Self, Pieces<'m>)> {
        let mut data = pieces(memory, chain, false)?;
        let front = split_front(&mut data, HEADER_LEN)?;
        let mut bytes = [0; HEADER_LEN];
        copy_out(&front, &mut bytes);
        let header: Self = zerocopy::transmute!(bytes);
        // The driver may offer a buffer that is longer than the data, never a shorter one.
        let data = split_front(&mut data, usize::try_from(header.len.get()).ok()?)?;
        Some((header, data))
    }
}
