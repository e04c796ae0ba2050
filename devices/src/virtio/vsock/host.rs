//! The host's side of the device, as the device sees it: streams, in place of the guest's peers. The VMM has Unix sockets behind it, the
//! tests have none.

use std::fmt::Debug;
use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

/// A two-way stream of bytes to a program on the host. Nothing blocks: what cannot be done now is [`io::ErrorKind::WouldBlock`].
pub trait Stream: Send + Debug {
    /// Reads into guest memory, which is not empty. 0 is the end of the stream.
    ///
    /// # Errors
    /// The system's.
    fn read_vectored(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes from guest memory, which is not empty.
    ///
    /// # Errors
    /// The system's.
    fn write_vectored(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes bytes that were held back.
    ///
    /// # Errors
    /// The system's.
    fn write(&mut self, from: &[u8]) -> io::Result<usize>;

    /// Looks at what can be read, without taking it. 0 is the end of the stream.
    ///
    /// # Errors
    /// The system's.
    fn peek(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Reads.
    ///
    /// # Errors
    /// The system's.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Ends one direction: [`Shutdown::Write`] after the last byte that comes from the guest, [`Shutdown::Read`] when the guest takes no
    /// more.
    ///
    /// # Errors
    /// The system's.
    fn shutdown(&mut self, how: Shutdown) -> io::Result<()>;
}

/// Which stream an [`Event`] is of. Chosen by the device, never used twice.
pub type Token = u64;

/// The token of the listener.
pub const LISTENER: Token = 0;

/// Something has become possible. Edges: told once, until an attempt has met [`io::ErrorKind::WouldBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose event this is.
    pub token: Token,
    /// There are bytes to read, or the end of the stream, or connections to accept.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The host sends no more than what can be read now.
    pub ended: bool,
    /// The host's end is closed in both directions, or broken.
    pub closed: bool,
}

/// Where streams come from.
pub trait Host: Send + Debug {
    /// A stream.
    type Stream: Stream;

    /// Connects to the program that serves `port` on the host.
    ///
    /// # Errors
    /// The system's; nobody listens, most often.
    fn connect(&mut self, port: u32) -> io::Result<Self::Stream>;

    /// The next program on the host that wants to connect to the guest. Who cannot be accepted for want of file descriptors is told so,
    /// not left waiting, as far as that is possible.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none; the system's.
    fn accept(&mut self) -> io::Result<Self::Stream>;

    /// Begins to watch a stream, for input and closing. Ends when the stream is dropped.
    ///
    /// # Errors
    /// The system's.
    fn watch(&mut self, stream: &Self::Stream, token: Token) -> io::Result<()>;

    /// Watches a stream for room to write as well, or no longer. Room that is there already is an event, too.
    ///
    /// # Errors
    /// The system's.
    fn watch_writable(&mut self, stream: &Self::Stream, token: Token, on: bool) -> io::Result<()>;

    /// Adds what has happened since the last call to `events`. True if there may be more.
    fn ready(&mut self, events: &mut Vec<Event>) -> bool;

    /// What becomes readable when [`Host::ready`] has something.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
