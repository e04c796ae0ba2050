//! Streams between a guest and its host by vsock: the guest's sockets, and the host's way to them through the Unix socket of the
//! guest's device.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

/// The host's CID.
const HOST_CID: u32 = 2;
/// `VMADDR_CID_ANY`.
const ANY_CID: u32 = u32::MAX;
/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`: `_IO(7, 0xb9)`.
const GET_LOCAL_CID: libc::Ioctl = 0x7b9;

/// In the guest: a listener.
#[derive(Debug)]
pub struct Listener(Socket);

impl Listener {
    /// Listens at `port`.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(port: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
        socket.bind(&SockAddr::vsock(ANY_CID, port))?;
        socket.listen(256)?;
        Ok(Self(socket))
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (socket, _) = self.0.accept()?;
        Ok(OwnedFd::from(socket).into())
    }
}

/// In the guest: connects to the host's `port`.
///
/// # Errors
/// The system's.
pub fn connect_to_host(port: u32) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect(&SockAddr::vsock(HOST_CID, port))?;
    Ok(OwnedFd::from(socket).into())
}

/// In the guest: its CID.
///
/// # Errors
/// The system's.
pub fn local_cid() -> io::Result<u32> {
    let device = std::fs::File::open("/dev/vsock")?;
    let mut cid = 0_u32;
    // SAFETY: the call writes one unsigned int to the address that it gets, which is that of `cid`.
    match unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) } {
        0 => Ok(cid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// On the host: connects to the guest's `port` through the Unix socket of its device, as Firecracker has it.
///
/// # Errors
/// The system's; nobody listens in the guest, most often: [`io::ErrorKind::UnexpectedEof`].
pub fn connect_to_guest(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "CONNECT {port}")?;
    let mut answer = Vec::new();
    // What follows the line is the guest's.
    while !answer.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    match answer.starts_with(b"OK ") {
        true => Ok(stream),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&answer).into_owned(),
        )),
    }
}
