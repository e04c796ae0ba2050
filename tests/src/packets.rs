//! Packet sockets: every frame that comes out of a guest's tap, and so every frame that a bridge behind it would pass on.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What an ioctl returned.
pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An `ifreq` with a name.
pub(crate) fn named(name: &str) -> libc::ifreq {
    // SAFETY: integers and a union of integers and pointers: all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// A packet socket of an interface, for packets of one protocol (`ETH_P_ALL`: of any).
pub(crate) fn packet_socket(interface: &str, protocol: libc::c_int) -> io::Result<File> {
    let protocol = (protocol as u16).to_be();
    // SAFETY: takes numbers.
    let socket = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol.into(),
        )
    };
    check(socket)?;
    // SAFETY: the descriptor is ours, and new.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut request = named(interface);
    // SAFETY: SIOCGIFINDEX reads and writes one `ifreq`, which lives through the call; it sets the index.
    let index = unsafe {
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFINDEX as _,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_ifindex
    };
    // SAFETY: integers: all zeros is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    // SAFETY: the address is a `sockaddr_ll` of that length, which lives through the call.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    check(bound)?;
    Ok(File::from(socket))
}

/// Frames that come out of one interface's guest.
#[derive(Debug)]
pub struct Packets {
    socket: File,
}

impl Packets {
    /// Hears an interface of this thread's network namespace from now on.
    pub(crate) fn of(interface: &str) -> io::Result<Self> {
        let socket = packet_socket(interface, libc::ETH_P_ALL)?;
        Ok(Self { socket })
    }

    /// What the guest has sent since the last call, each frame without what the device has before it.
    pub fn from_guest(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((frame, outgoing)) = self.next().expect("a packet socket") {
            if !outgoing {
                frames.push(frame);
            }
        }
        frames
    }

    /// The next frame, and whether it goes to the guest.
    fn next(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let mut frame = vec![0; 1 << 16];
        // SAFETY: integers: all zeros is a value of it.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the buffer has that length, `from` is a `sockaddr_ll` of the length `len`; all live through the call.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        match usize::try_from(received) {
            Ok(received) => {
                frame.truncate(received);
                let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
                Ok(Some((frame, outgoing)))
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }
}
