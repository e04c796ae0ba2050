//! Unix sockets in place of the peers of a guest's vsock connections, the way Firecracker has them: one socket on which the host's
//! programs reach the guest, and one for each port of the host that the guest may reach.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use libc::c_int;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::RecvFlags;
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use vm_memory::VolatileSlice;
use vmgenie_devices::throttle::Throttle;
use vmgenie_devices::virtio::vsock::{
    Event, Host, LISTENER, MAX_CONNECTIONS, Stream, Token, Vsock, VsockError, VsockState,
};
use vmgenie_snapshot::own_files;

use super::tap::pieces;
use crate::config::{VsockConfig, VsockPeers};
use crate::unix_socket::{ListeningSocket, SocketError, peer_uid};

/// How many events are taken at a time.
const BATCH: usize = 64;
/// File descriptors of this process that a guest's connections leave to others: two for each client of the API, and as many for vCPUs,
/// snapshots and drives that are opened later.
const RESERVE: u64 = 256;

/// Why the host's side of the vsock device could not be made.
#[derive(Debug, Error)]
pub enum VsockHostError {
    /// The socket.
    #[error("could not listen on its Unix socket")]
    Socket(#[from] SocketError),
    /// Its events.
    #[error("could not watch its Unix socket")]
    Watch(#[source] io::Error),
    /// The CID, or the saved state.
    #[error(transparent)]
    Device(#[from] VsockError),
}

/// The device of a machine that boots.
pub(crate) fn boot(config: &VsockConfig) -> Result<Vsock<UnixHost>, VsockHostError> {
    let host = UnixHost::listen(&config.uds_path, config.peers)?;
    let limit = host.limit();
    Ok(Vsock::new(config.guest_cid.get().into(), host)?.with_limit(limit))
}

/// The device of a machine that is restored, with the socket and the CID that `config` says, which may be others than they were.
pub(crate) fn restore(
    config: &VsockConfig,
    state: &VsockState,
) -> Result<Vsock<UnixHost>, VsockHostError> {
    let host = UnixHost::listen(&config.uds_path, config.peers)?;
    let state = VsockState {
        guest_cid: config.guest_cid.get().into(),
        ..state.clone()
    };
    let limit = host.limit();
    Ok(Vsock::from_state(&state, host)?.with_limit(limit))
}

/// The host's side. The socket's file is removed when this is dropped.
#[derive(Debug)]
pub struct UnixHost {
    listener: UnixListener,
    epoll: OwnedFd,
    path: PathBuf,
    /// Whose programs the guest reaches.
    peers: VsockPeers,
    complaints: Throttle,
    /// Given up for an instant when there is no other, to tell a program that connects.
    spare: Option<OwnedFd>,
    /// Removes the file.
    _file: ListeningSocket,
}

impl UnixHost {
    /// Listens at `path`. A socket there that nobody listens on any more is replaced. Guests reach `peers`.
    ///
    /// # Errors
    /// [`VsockHostError`].
    pub fn listen(path: &Path, peers: VsockPeers) -> Result<Self, VsockHostError> {
        let (file, listener) = ListeningSocket::bind(path)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|error| VsockHostError::Watch(error.into()))?;
        let edges = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), edges)
            .map_err(|error| VsockHostError::Watch(error.into()))?;
        let spare = epoll.try_clone().ok();
        Ok(Self {
            listener,
            epoll,
            spare,
            path: path.to_owned(),
            peers,
            complaints: Throttle::default(),
            _file: file,
        })
    }

    /// How many connections a guest may have, so that there are descriptors left for all else.
    fn limit(&self) -> usize {
        let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // The lowest number that was free was taken, so that about as many are in use.
        let used = u64::try_from(self.epoll.as_raw_fd()).unwrap_or_default();
        limit(all, used)
    }

    /// Ends the connections of those who wait to be accepted, while there is no descriptor for them; how many those were.
    fn turn_away(&mut self) -> usize {
        drop(self.spare.take());
        let turned_away = (0..BATCH).take_while(|_| self.listener.accept().is_ok());
        let turned_away = turned_away.count();
        self.spare = self.epoll.try_clone().ok();
        turned_away
    }

    /// Whether the guest may speak to who listens at `path`, which `socket` is connected to.
    fn check_peer(&mut self, socket: &Socket, path: &Path) -> io::Result<()> {
        if self.peers == VsockPeers::Any {
            return Ok(());
        }
        let uid = peer_uid(socket)?;
        if own_files::is_trusted_owner(uid) {
            return Ok(());
        }
        if let Some(more) = self.complaints.allows(Instant::now()) {
            tracing::warn!(
                path = %path.display(), uid, more,
                "refused a guest's vsock connection, because a program of another user listens there: run it as this user or as root, or \
                 let the guest reach everybody's (`peers=any` behind the path in --vsock, `\"peers\": \"any\"` in the API)"
            );
        }
        Err(ErrorKind::PermissionDenied.into())
    }

    /// Where the program listens that serves `port` on the host.
    fn path_of(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        path.into()
    }
}

/// How many connections a guest may have in a process that may have `all` descriptors and has `used` ones.
fn limit(all: u64, used: u64) -> usize {
    let left = all.saturating_sub(used);
    let left = left - RESERVE.min(left / 2);
    usize::try_from(left).map_or(MAX_CONNECTIONS, |left| left.min(MAX_CONNECTIONS))
}

fn no_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What a stream is watched for. The end of the stream, and errors, are always told.
fn interest(writable: bool) -> EventFlags {
    let reading = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if writable {
        reading | EventFlags::OUT
    } else {
        reading
    }
}

impl Host for UnixHost {
    type Stream = UnixPeer;

    fn connect(&mut self, port: u32) -> io::Result<UnixPeer> {
        let path = self.path_of(port);
        let address = SockAddr::unix(&path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The event loop waits for nobody: a program that lets connections wait in a full queue is one that does not answer.
        socket.set_nonblocking(true)?;
        socket.connect(&address)?;
        self.check_peer(&socket, &path)?;
        Ok(UnixPeer(OwnedFd::from(socket).into()))
    }

    fn accept(&mut self) -> io::Result<UnixPeer> {
        let stream = match self.listener.accept() {
            // Told whether or not anybody waits.
            Err(error) if no_descriptors(&error) && self.turn_away() == 0 => {
                return Err(ErrorKind::WouldBlock.into());
            }
            accepted => accepted?.0,
        };
        stream.set_nonblocking(true)?;
        Ok(UnixPeer(stream))
    }

    fn watch(&mut self, stream: &UnixPeer, token: Token) -> io::Result<()> {
        let token = EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, &stream.0, token, interest(false))?)
    }

    fn watch_writable(&mut self, stream: &UnixPeer, token: Token, on: bool) -> io::Result<()> {
        let token = EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, &stream.0, token, interest(on))?)
    }

    fn ready(&mut self, events: &mut Vec<Event>) -> bool {
        let mut batch = Vec::with_capacity(BATCH);
        let now = rustix::event::Timespec::default();
        let buffer = rustix::buffer::spare_capacity(&mut batch);
        match epoll::wait(&self.epoll, buffer, Some(&now)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return true,
            Err(error) => {
                if let Some(more) = self.complaints.allows(Instant::now()) {
                    tracing::error!(%error, more, "the events of the vsock device");
                }
                return false;
            }
        }
        events.extend(batch.iter().map(event));
        batch.len() == BATCH
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

fn event(event: &epoll::Event) -> Event {
    let (flags, token) = (event.flags, event.data.u64());
    let has = |these| flags.intersects(these);
    let broken = EventFlags::HUP | EventFlags::ERR;
    Event {
        token,
        readable: has(EventFlags::IN | EventFlags::RDHUP | broken),
        writable: has(EventFlags::OUT | broken),
        ended: has(EventFlags::RDHUP | broken),
        closed: has(broken),
    }
}

/// A connection to one of the host's programs.
#[derive(Debug)]
pub struct UnixPeer(UnixStream);

/// Calls again if a signal has come between.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(len) = usize::try_from(call()) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Stream for UnixPeer {
    fn read_vectored(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let (fd, pieces) = (self.0.as_raw_fd(), pieces(into));
        // SAFETY: each piece is memory that its slice keeps valid through the call, and that others may read and write meanwhile:
        // it is the guest's. There are `pieces.len()` of them, at most 1,024.
        retry(|| unsafe { libc::readv(fd, pieces.as_ptr(), pieces.len() as c_int) })
    }

    fn write_vectored(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let (fd, pieces) = (self.0.as_raw_fd(), pieces(from));
        // `writev` would raise SIGPIPE, but Rust's runtime has that ignored.
        // SAFETY: as above; the kernel only reads.
        retry(|| unsafe { libc::writev(fd, pieces.as_ptr(), pieces.len() as c_int) })
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from)
    }

    fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (len, _) = rustix::net::recv(&self.0, into, RecvFlags::PEEK)?;
        Ok(len)
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }

    fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        self.0.shutdown(how)
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
