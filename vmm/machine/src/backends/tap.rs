//! A tap interface: the network of a guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use libc::{c_char, c_int, c_short, c_uint, c_ulong};
use thiserror::Error;
use vm_memory::VolatileSlice;
use vmgenie_devices::virtio::net::{FrameBackend, HEADER_LEN, Offloads};

/// How many pieces one `readv` or `writev` takes.
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;

/// Why a tap could not be opened.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name is none.
    #[error(
        "{0:?} is no name of an interface: 1 to {max} bytes without '/', '%', ':' and white space", max = libc::IFNAMSIZ - 1
    )]
    Name(String),
    /// `/dev/net/tun`.
    #[error("could not open /dev/net/tun: is the module tun loaded, and may this user open it?")]
    Open(#[source] io::Error),
    /// The interface is taken.
    #[error("the tap {0:?} is in use by another program")]
    Busy(String),
    /// The interface is something else.
    #[error(
        "the interface {0:?} is no tap of a single queue (make one: ip tuntap add dev {0} mode tap)"
    )]
    NoTap(String),
    /// The interface is not there or another user's.
    #[error(
        "this user may not open the tap {0:?}: it is not there, or another user's (make it: ip tuntap add dev {0} mode tap user USER)"
    )]
    Permission(String),
    /// Something else.
    #[error("could not open the tap {name:?}")]
    Interface {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The header.
    #[error("the tap {name:?} does not take the header that virtio has before each frame")]
    Header {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open tap. One that was made by opening it goes when this is dropped; one that was there stays.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    offloads: Offloads,
}

impl Tap {
    /// Opens the tap called `name` in this process's network namespace. It is made if it is not there, which takes
    /// `CAP_NET_ADMIN`; to set it up is the user's business.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request = request(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::Open)?;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, and keeps no pointer to it.
        let attached =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        let name = name.to_owned();
        check(attached).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.clone()),
            Some(libc::EINVAL) => TapError::NoTap(name.clone()),
            Some(libc::EPERM) => TapError::Permission(name.clone()),
            _ => TapError::Interface {
                name: name.clone(),
                source,
            },
        })?;
        let length = HEADER_LEN as c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
        let set = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETVNETHDRSZ as _,
                &raw const length,
            )
        };
        if let Err(source) = check(set) {
            return Err(TapError::Header { name, source });
        }
        let offloads = known_offloads(&file);
        Ok(Self {
            file,
            name,
            offloads,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether an interface called `name` is there that is no tap, in this process's network namespace. It is not opened: that would make one
/// that is missing, and one that another program has may be free when the machine starts.
///
/// # Errors
/// [`TapError::NoTap`].
pub fn check_kind(name: &str) -> Result<(), TapError> {
    let no_tap = || TapError::NoTap(name.to_owned());
    let mut info = DriverInfo {
        command: GET_DRIVER_INFO,
        driver: [0; 32],
        versions: [0; 64],
        bus: [0; 32],
        rest: [0; 64],
    };
    let (Some(mut request), Ok(socket)) = (request(name), UnixDatagram::unbound()) else {
        return Ok(()); // what it is shows when it is opened
    };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL reads one `ifreq`, and reads and writes what it points to: the command says that it is a `DriverInfo`. Both live
    // through the call.
    let asked =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    match check(asked) {
        Ok(()) if info.driver.starts_with(b"tun\0") && info.bus.starts_with(b"tap\0") => Ok(()),
        Ok(()) => Err(no_tap()),
        // It has no driver to tell of.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(no_tap()),
        Err(_) => Ok(()),
    }
}

/// `ETHTOOL_GDRVINFO`.
const GET_DRIVER_INFO: u32 = 3;

/// The kernel's `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// The driver's, and the firmware's.
    versions: [u8; 64],
    bus: [u8; 32],
    /// Another version, bytes in reserve, and five numbers.
    rest: [u8; 64],
}

/// Asks for the interface called `name`; none if no interface can be called that. (The kernel makes a number of a `%d`, and
/// then it is another name.)
fn request(name: &str) -> Option<libc::ifreq> {
    let bytes = name.as_bytes();
    let bad = |byte: &u8| matches!(byte, b'/' | b'%' | b':' | 0) || byte.is_ascii_whitespace();
    if bytes.is_empty()
        || bytes.len() >= libc::IFNAMSIZ
        || matches!(name, "." | "..")
        || bytes.iter().any(bad)
    {
        return None;
    }
    // SAFETY: an `ifreq` is integers, and a union of integers and pointers; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as c_short;
    Some(request)
}

/// The most that this kernel does: all of it, or all but the fragmentation of UDP.
fn known_offloads(file: &File) -> Offloads {
    let without_ufo = Offloads {
        ufo: false,
        ..Offloads::ALL
    };
    [Offloads::ALL, without_ufo]
        .into_iter()
        .find(|offloads| set_offloads(file, *offloads).is_ok())
        .unwrap_or_default()
}

fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    let flags: c_uint = [
        (offloads.checksum, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (offloads.ufo, libc::TUN_F_UFO),
    ]
    .into_iter()
    .filter_map(|(wanted, flag)| wanted.then_some(flag as c_uint))
    .sum();
    // SAFETY: TUNSETOFFLOAD takes a number.
    check(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            c_ulong::from(flags),
        )
    })
}

fn check(result: c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `readv` and `writev` take. The slices must outlive it.
pub(super) fn pieces(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let piece = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().take(MAX_PIECES).map(piece).collect()
}

impl FrameBackend for Tap {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let pieces = pieces(frame);
        // SAFETY: each piece is memory that its slice keeps valid through the call; the kernel only reads it, and copes with
        // memory that changes meanwhile. There are `pieces.len()` of them, at most 1,024.
        let sent = unsafe {
            libc::writev(
                self.file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as c_int,
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let pieces = pieces(buffers);
        // SAFETY: each piece is memory that its slice keeps valid and lets be written through the call, and that nobody has a
        // reference to: a `VolatileSlice` gives none. There are `pieces.len()` of them, at most 1,024.
        let received = unsafe {
            libc::readv(
                self.file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as c_int,
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        set_offloads(&self.file, offloads)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
