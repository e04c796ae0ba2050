use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream as Stream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tempfile::TempDir;
use vmgenie_api::attach::{AttachError, attach};
use vmgenie_api::limits::{BODY_LIMIT, MAX_ATTACHED};
use vmgenie_machine::console::history::ConsoleHistory;

use super::*;
use crate::api::testing::controller_handle;
use crate::api::{ApiInfo, ApiThread, spawn};
use crate::controller::command::{Envelope, Reply};

const LIMIT: Duration = Duration::from_secs(20);

/// An API whose controller is the test.
struct Fixture {
    _dir: TempDir,
    socket: PathBuf,
    api: ApiThread,
    guest: Arc<ConsoleHistory>,
    commands: Receiver<Envelope>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let info = ApiInfo {
            id: "test".to_owned(),
            version: "1".to_owned(),
            body_limit: BODY_LIMIT,
        };
        let (handle, commands) = controller_handle();
        let guest = Arc::clone(handle.console());
        let api = spawn(&socket, info, handle).unwrap();
        Self {
            _dir: dir,
            socket,
            api,
            guest,
            commands,
        }
    }

    fn attach(&self) -> Stream {
        let stream = attach(&self.socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// What is typed next; the guest takes it.
    fn typed(&self) -> Vec<u8> {
        let Envelope {
            command, answer, ..
        } = self.commands.recv_timeout(LIMIT).unwrap();
        let _ = answer.send(Ok(Reply::Done));
        match command {
            Command::ConsoleInput(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }
}

fn read(stream: &mut Stream, len: usize) -> String {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn everybody_who_attaches_sees_what_was_said_and_what_is_said() {
    let fixture = Fixture::new();
    fixture.guest.append(b"login: ");
    let mut first = fixture.attach();
    assert_eq!(read(&mut first, 7), "login: ");
    let mut second = fixture.attach();
    assert_eq!(read(&mut second, 7), "login: ");
    fixture.guest.append(b"hello\n");
    for stream in [&mut first, &mut second] {
        assert_eq!(read(stream, 6), "hello\n");
    }
}

#[test]
fn what_is_typed_reaches_the_guest_as_it_is_and_no_faster_than_it_takes_it() {
    let fixture = Fixture::new();
    let mut stream = fixture.attach();
    // What looks like a request is none here.
    let text = b"GET / HTTP/1.0\r\n\r\n\0\xff";
    stream.write_all(text).unwrap();
    let mut seen = Vec::new();
    while seen.len() < text.len() {
        seen.extend(fixture.typed());
    }
    assert_eq!(seen, text);
    // The guest takes no more than the first byte: no second piece comes before that is answered.
    stream.write_all(b"a").unwrap();
    let first = fixture.commands.recv_timeout(LIMIT).unwrap();
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.write(&[b'x'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        fixture
            .commands
            .recv_timeout(Duration::from_millis(50))
            .is_err()
    );
    let _ = first.answer.send(Ok(Reply::Done));
    assert!(fixture.typed().len() <= TYPED);
}

#[test]
fn who_types_no_more_reads_on() {
    let fixture = Fixture::new();
    let mut stream = fixture.attach();
    stream.write_all(b"uptime\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(fixture.typed(), b"uptime\n");
    std::thread::sleep(Duration::from_millis(200));
    fixture.guest.append(b"up");
    assert_eq!(read(&mut stream, 2), "up");
}

#[test]
fn who_does_not_read_holds_nobody_up_and_is_told_what_is_missing() {
    let fixture = Fixture::new();
    let mut slow = fixture.attach();
    for _ in 0..1000 {
        fixture.guest.append(&[b'x'; 10_000]);
        // Gives the API time to fill the connection.
        std::thread::yield_now();
    }
    fixture.guest.append(b"the end");
    let mut seen = String::new();
    while !seen.ends_with("the end") {
        let mut buffer = [0; 4096];
        let len = slow.read(&mut buffer).unwrap();
        assert!(len > 0);
        seen.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
    }
    let missing: usize = seen
        .split("[vmgenie: ")
        .skip(1)
        .map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert!(missing > 0);
    let read = seen.bytes().filter(|byte| *byte == b'x').count();
    assert_eq!(read + missing, 10_000_000);
}

#[test]
fn the_last_words_are_seen_when_the_process_ends() {
    let fixture = Fixture::new();
    let mut stream = fixture.attach();
    fixture.guest.append(b"reboot: Power down\n");
    drop(fixture.commands);
    fixture.api.shutdown();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "reboot: Power down\n");
}

#[test]
fn there_is_room_for_eight_and_again_when_one_has_gone() {
    let fixture = Fixture::new();
    let mut attached: Vec<Stream> = (0..MAX_ATTACHED).map(|_| fixture.attach()).collect();
    match attach(&fixture.socket) {
        Err(AttachError::Refused(_, told)) => assert!(told.contains("8 clients"), "{told}"),
        other => panic!("{other:?}"),
    }
    attached.pop();
    let begun = std::time::Instant::now();
    while attach(&fixture.socket).is_err() {
        assert!(begun.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_request_without_the_upgrade_is_told_how_to_ask() {
    let fixture = Fixture::new();
    for headers in [
        "",
        "Upgrade: vmgenie-console\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    ] {
        let mut stream = Stream::connect(&fixture.socket).unwrap();
        let request = format!("GET /console HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("Upgrade: vmgenie-console"), "{answer}");
    }
}
