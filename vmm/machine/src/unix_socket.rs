//! The Unix sockets that the API and the guest's vsock device listen on: private from their first instant, never stolen from a
//! living VMM, removed when done.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use vmgenie_snapshot::own_files::{self, DirLock, Purpose};

/// Only the user who started the VMM may speak to it.
const MODE: u32 = 0o600;
/// The longest path of a socket in bytes: `sun_path`, less the zero at its end.
pub const MAX_PATH: usize = 107;
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long another VMM that takes the same path may keep us waiting.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a socket that refuses connections is given to prove that its owner is between bind and
/// listen.
const DEAD_AFTER: Duration = Duration::from_millis(20);

/// Why the socket could not be made.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{0} is in use: another VMM listens on it; choose another path")]
    InUse(PathBuf),
    /// There is something else than a socket.
    #[error("{0} exists and is not a socket: choose another path or remove it")]
    NotASocket(PathBuf),
    /// The socket that a dead VMM left could not be removed.
    #[error("could not remove the stale socket {0}")]
    RemoveStale(PathBuf, #[source] io::Error),
    /// The path is too long.
    #[error("could not listen on {0}: the path of a socket has 107 bytes at most, and this one has {len}", len = .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Its directory is missing or not writable, ...
    #[error("could not listen on {0}")]
    Listen(PathBuf, #[source] io::Error),
}

/// A listening socket. The file is removed when this is dropped, unless another has taken its
/// place.
#[derive(Debug)]
pub struct ListeningSocket {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl ListeningSocket {
    /// Binds and listens. A socket that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |error| SocketError::Listen(path.to_owned(), error);
        if path.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        let listener = match listen(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => replace_dead(path)?,
            other => other.map_err(failed)?,
        };
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let socket = Self {
            path: path.to_owned(),
            device_and_inode: (metadata.dev(), metadata.ino()),
        };
        Ok((socket, listener))
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        let still_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.device_and_inode);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove a socket");
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // bind() gives the file the mode of the socket's own inode (less the umask), so there is no
    // instant at which it is more open.
    let socket = File::from(OwnedFd::from(socket));
    socket.set_permissions(Permissions::from_mode(MODE))?;
    let socket = Socket::from(OwnedFd::from(socket));
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// Takes the place of a socket that nobody listens on.
fn replace_dead(path: &Path) -> Result<UnixListener, SocketError> {
    // Two VMMs that find the same dead socket must not remove each other's new one: the directory
    // is locked meanwhile.
    let _lock = lock_directory(path);
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) if is_alive(path) => return Err(SocketError::InUse(path.to_owned())),
        Ok(_) => {
            tracing::info!(path = %path.display(), "replacing the socket of a VMM that is gone");
            fs::remove_file(path)
                .map_err(|error| SocketError::RemoveStale(path.to_owned(), error))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {} // its owner has removed it meanwhile
        Err(error) => return Err(SocketError::Listen(path.to_owned(), error)),
    }
    listen(path).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => SocketError::InUse(path.to_owned()),
        _ => SocketError::Listen(path.to_owned(), error),
    })
}

/// Who listens, or listened, on the socket that `socket` is connected to.
pub(crate) fn peer_uid(socket: &impl AsFd) -> io::Result<libc::uid_t> {
    // Not by rustix, whose type has no room for the process ID 0: that of a program in another PID namespace.
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `peer`, which has them, may have any bits and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    match result {
        0 if len as usize == size_of_val(&peer) => Ok(peer.uid),
        0 => Err(ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_alive(path: &Path) -> bool {
    let refused = || match try_connect(path) {
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(()) => false,
    };
    // A VMM that has bound its socket and is about to listen refuses, too, for some microseconds.
    !refused() || {
        std::thread::sleep(DEAD_AFTER);
        !refused()
    }
}

/// Whether a process listens on the socket at `path`; also if it cannot be asked.
pub fn is_listened_on(path: &Path) -> bool {
    match try_connect(path) {
        Ok(()) => true,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::NotFound
        ),
    }
}

/// Connects without waiting: a VMM whose backlog is full is alive.
fn try_connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// Locks the directory that `path` is in against other VMMs of this user's; best effort, because the file system may have no
/// locks.
fn lock_directory(path: &Path) -> Option<DirLock> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).ok()?;
    own_files::lock(&directory, Purpose::Sockets, LOCK_TIMEOUT)
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "a dead socket is replaced without a lock"))
        .ok()
}
