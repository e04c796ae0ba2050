//! What a network device needs of the network: a place to put frames and to get frames from.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

/// Length in bytes of the header before each frame, `virtio_net_hdr_v1` (virtio 1.2, 5.1.6). Version-1
/// devices always have the long form, with the number of buffers at its end.
pub const HEADER_LEN: usize = 12;
/// The longest frame in bytes, with its header: a segment of 64 KiB that the other side cuts up, and
/// an Ethernet header without a VLAN tag (virtio 1.2, 5.1.6.3.1).
pub const MAX_FRAME_LEN: usize = HEADER_LEN + 65_550;

/// After so many failures in a row it is the network that is broken, and not a frame.
pub(super) const MAX_FAILURES: u32 = 16;

/// Work that a receiver of frames lets the sender leave to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be missing.
    pub checksum: bool,
    /// TCP segments over IPv4 may be larger than the MTU.
    pub tso4: bool,
    /// TCP segments over IPv6 may be larger than the MTU.
    pub tso6: bool,
    /// UDP datagrams may be larger than the MTU.
    pub ufo: bool,
}

impl Offloads {
    /// All of it.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        ufo: true,
    };

    /// Whether frames may be larger than the MTU.
    pub fn segments(self) -> bool {
        self.tso4 || self.tso6 || self.ufo
    }

    /// Whether everything that `other` has is here as well.
    pub fn contains(self, other: Self) -> bool {
        (self.checksum || !other.checksum)
            && (self.tso4 || !other.tso4)
            && (self.tso6 || !other.tso6)
            && (self.ufo || !other.ufo)
    }
}

/// The other end of the cable. No call blocks.
///
/// A frame begins with a header of [`HEADER_LEN`] bytes. Buffers are guest memory, which the guest may change at
/// any time: what a backend checks there may be different when it looks again.
pub trait FrameBackend: Send + Debug {
    /// Takes one frame, which lies in `frame` piece by piece.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is no room: the frame is to be sent again once the descriptor is
    /// writable. Any other error means that the frame is lost, as frames may be.
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Puts one frame into `buffers`, one after the other, and returns its length in bytes. What does not fit
    /// is lost; the length is that of all buffers then.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is no frame.
    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Throws away frames that wait for the guest, at most `limit`.
    fn discard(&mut self, limit: usize) {
        // What does not fit is lost, but for the header a tap wants room.
        let mut head = [0; HEADER_LEN + 64];
        let mut failures = 0;
        for _ in 0..limit {
            match self.receive(&[VolatileSlice::from(&mut head[..])]) {
                Ok(_) => failures = 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One frame cannot be had, or there is no network.
                Err(_) if failures < MAX_FAILURES => failures += 1,
                Err(_) => return,
            }
        }
    }

    /// What the guest may leave to the backend, and the backend to the guest.
    fn offloads(&self) -> Offloads;

    /// Tells what the guest takes from now on.
    ///
    /// # Errors
    /// The backend cannot do that. It is never asked for more than [`Self::offloads`].
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// The descriptor that tells of frames and of room for frames.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
