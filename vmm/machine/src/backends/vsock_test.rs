use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::*;

fn host() -> (tempfile::TempDir, PathBuf, UnixHost) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let host = UnixHost::listen(&path, VsockPeers::Own).unwrap();
    (dir, path, host)
}

/// The next events; there are some within ten seconds, however busy the machine is.
fn events(host: &mut UnixHost) -> Vec<Event> {
    let mut events = Vec::new();
    let began = Instant::now();
    while events.is_empty() && began.elapsed() < Duration::from_secs(10) {
        host.ready(&mut events);
    }
    events
}

#[test]
fn the_socket_is_private_and_goes_with_the_device() {
    let (_dir, path, host) = host();
    let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        UnixHost::listen(&path, VsockPeers::Own).is_err(),
        "stolen from a living one"
    );
    drop(host);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_a_dead_vmm_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    UnixHost::listen(&path, VsockPeers::Own).unwrap();
}

#[test]
fn a_program_that_connects_is_an_event_and_each_of_its_deeds_is_another() {
    let (_dir, path, mut host) = host();
    assert_eq!(host.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let mut program = UnixStream::connect(path).unwrap();
    let event = events(&mut host)[0];
    assert_eq!((event.token, event.readable), (LISTENER, true));
    let mut peer = host.accept().unwrap();
    host.watch(&peer, 7).unwrap();
    program.write_all(b"hello").unwrap();
    let event = events(&mut host)[0];
    assert_eq!((event.token, event.readable, event.ended), (7, true, false));
    let mut bytes = [0; 10];
    assert_eq!(peer.peek(&mut bytes).unwrap(), 5);
    assert_eq!(peer.read(&mut bytes).unwrap(), 5);
    assert_eq!(
        peer.read(&mut bytes).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    program.shutdown(Shutdown::Write).unwrap();
    let event = events(&mut host)[0];
    assert!(event.readable && event.ended && !event.closed);
    drop(program);
    assert!(events(&mut host)[0].closed);
}

#[test]
fn room_to_write_is_an_event_only_when_somebody_waits_for_it() {
    let (_dir, path, mut host) = host();
    let mut program = UnixStream::connect(path).unwrap();
    events(&mut host);
    let mut peer = host.accept().unwrap();
    host.watch(&peer, 7).unwrap();
    let mut written = 0;
    while let Ok(len) = peer.write(&[0; 4096]) {
        written += len;
    }
    let mut none = Vec::new();
    host.ready(&mut none);
    assert_eq!(none, []);
    host.watch_writable(&peer, 7, true).unwrap();
    host.ready(&mut none);
    assert_eq!(none, []);
    program.read_exact(&mut vec![0; written]).unwrap();
    assert!(events(&mut host)[0].writable);
}

#[test]
fn the_guest_reaches_a_port_through_a_socket_beside_the_devices() {
    let (_dir, path, mut host) = host();
    assert_eq!(host.connect(52).unwrap_err().kind(), ErrorKind::NotFound);
    let mut beside = path.into_os_string();
    beside.push("_52");
    let listener = UnixListener::bind(beside).unwrap();
    let mut peer = host.connect(52).unwrap();
    let (mut program, _) = listener.accept().unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let piece = |at, len| memory.get_slice(GuestAddress(at), len).unwrap();
    piece(0, 4).copy_from(b"abcd");
    piece(100, 4).copy_from(b"efgh");
    let written = peer.write_vectored(&[piece(100, 4), piece(0, 2)]).unwrap();
    assert_eq!(written, 6);
    let mut bytes = [0; 6];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"efghab");
    program.write_all(b"answer").unwrap();
    let read = peer
        .read_vectored(&[piece(200, 2), piece(300, 100)])
        .unwrap();
    assert_eq!(read, 6);
    let mut bytes = [0; 4];
    piece(300, 4).copy_to(&mut bytes);
    assert_eq!(&bytes, b"swer");
}

/// Listens as another user does. The kernel's own call changes the user of the calling thread alone.
fn listener_of(uid: libc::uid_t, path: PathBuf) -> UnixListener {
    let listener = std::thread::spawn(move || {
        // SAFETY: it takes numbers only; the thread does nothing but what follows.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(changed, 0, "{}", io::Error::last_os_error());
        UnixListener::bind(path).unwrap()
    });
    listener.join().unwrap()
}

#[test]
fn a_guest_reaches_no_program_of_another_user_unless_it_is_allowed_to() {
    if !rustix::process::geteuid().is_root() {
        return; // only root can be somebody else
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let _foreign = listener_of(65_534, dir.path().join("own_52"));
    let _ours = listener_of(0, dir.path().join("own_53"));
    let mut own = UnixHost::listen(&dir.path().join("own"), VsockPeers::Own).unwrap();
    for _ in 0..2 {
        let refused = own.connect(52).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    }
    // One of them was told, the other only counted.
    assert_eq!(
        own.complaints
            .allows(Instant::now() + Duration::from_secs(2)),
        Some(1)
    );
    own.connect(53).unwrap();
    let _foreign = listener_of(65_534, dir.path().join("any_52"));
    let mut any = UnixHost::listen(&dir.path().join("any"), VsockPeers::Any).unwrap();
    any.connect(52).unwrap();
    assert_eq!(any.complaints.allows(Instant::now()), Some(0));
}

#[test]
fn a_guest_leaves_descriptors_to_others() {
    // Where there are plenty, as many as there can be.
    assert_eq!(limit(u64::MAX, 60), MAX_CONNECTIONS);
    assert_eq!(limit(4096, 60), MAX_CONNECTIONS);
    assert_eq!(limit(1024, 60), 1024 - 60 - 256);
    // Where there are few, half of them.
    assert_eq!(limit(256, 56), 100);
    assert_eq!(limit(64, 100), 0);
}

#[test]
fn who_cannot_be_accepted_is_turned_away_and_not_left_waiting() {
    let (_dir, path, mut host) = host();
    let program = UnixStream::connect(&path).unwrap();
    let spare = host.spare.as_ref().unwrap().as_raw_fd();
    assert_eq!(host.turn_away(), 1);
    assert_eq!((&program).read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(host.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(host.spare.as_ref().unwrap().as_raw_fd(), spare);
}
