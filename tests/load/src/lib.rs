//! Loads for guests. This: moves bytes between a guest and its host over a stream, and checks each of them; [`disk`]: disks;
//! [`clock`]: looks whether clocks go right.
//!
//! The server runs in the guest, the client where the test or the benchmark runs, or the other way round. A connection begins with one
//! byte that says what is wanted and a u64, little-endian, with the number of bytes.

pub mod clock;
pub mod disk;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

pub mod vsock;

/// The server sends.
const DOWNLOAD: u8 = b'd';
/// The server receives, and answers with [`RIGHT`] or [`WRONG`].
const UPLOAD: u8 = b'u';
/// The server sends back each byte at once.
const ECHO: u8 = b'e';
/// All bytes were those that were expected.
const RIGHT: u8 = b'y';
/// They were not.
const WRONG: u8 = b'n';

/// How many bytes go through one call.
const BLOCK: usize = 64 << 10;
/// The pattern's period in bytes: a prime, so that a block that is lost, doubled or moved shows.
const PERIOD: usize = 65_521;
/// How long a side waits for the other.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent: bytes that look random, again and again.
#[derive(Debug)]
struct Pattern {
    /// Two periods and more, so that each block is one slice of it.
    bytes: Vec<u8>,
    offset: usize,
}

impl Pattern {
    fn new() -> Self {
        let mut state = 0x9e37_79b9_u32;
        let period: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8
            })
            .collect();
        Self {
            bytes: period.repeat(2 + BLOCK / PERIOD),
            offset: 0,
        }
    }

    /// The next `len` bytes, at most [`BLOCK`].
    fn next(&mut self, len: usize) -> &[u8] {
        let from = self.offset;
        self.offset = (self.offset + len) % PERIOD;
        &self.bytes[from..from + len]
    }
}

/// Sends `count` bytes of the pattern.
///
/// # Errors
/// The stream's.
pub fn send(mut to: impl Write, count: u64) -> io::Result<()> {
    let mut pattern = Pattern::new();
    let mut left = count;
    while left > 0 {
        let len = left.min(BLOCK as u64) as usize;
        to.write_all(pattern.next(len))?;
        left -= len as u64;
    }
    to.flush()
}

/// Receives `count` bytes; whether they were those of the pattern.
///
/// # Errors
/// The stream's; an end before the last byte.
pub fn receive(mut from: impl Read, count: u64) -> io::Result<bool> {
    let mut pattern = Pattern::new();
    let mut buffer = vec![0; BLOCK];
    let mut left = count;
    let mut right = true;
    while left > 0 {
        let room = left.min(BLOCK as u64) as usize;
        let len = from.read(&mut buffer[..room])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        right &= buffer[..len] == *pattern.next(len);
        left -= len as u64;
    }
    Ok(right)
}

/// What bytes go through.
pub trait Stream: Read + Write + Send + 'static {
    /// Sends small pieces at once, and does not wait for the other side for ever.
    ///
    /// # Errors
    /// The system's.
    fn prepare(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn prepare(&self) -> io::Result<()> {
        self.set_nodelay(true)?;
        self.set_read_timeout(Some(PATIENCE))?;
        self.set_write_timeout(Some(PATIENCE))
    }
}

/// A Unix socket, or one of vsock's, which the standard library does not know.
impl Stream for UnixStream {
    fn prepare(&self) -> io::Result<()> {
        self.set_read_timeout(Some(PATIENCE))?;
        self.set_write_timeout(Some(PATIENCE))
    }
}

fn echo(mut stream: impl Stream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            len => stream.write_all(&buffer[..len])?,
        }
    }
}

/// Serves everybody who connects, for ever.
///
/// # Errors
/// The listener's.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    serve_all(|| Ok(listener.accept()?.0))
}

/// Serves each stream that `accept` returns.
///
/// # Errors
/// Those of `accept`.
pub fn serve_all<S: Stream>(mut accept: impl FnMut() -> io::Result<S>) -> io::Result<()> {
    loop {
        let stream = accept()?;
        thread::spawn(move || {
            // A client that goes away is no fault of the server's.
            let _ = answer(stream);
        });
    }
}

fn answer(mut stream: impl Stream) -> io::Result<()> {
    stream.prepare()?;
    let mut request = [0; 9];
    stream.read_exact(&mut request)?;
    let mut count = [0; 8];
    count.copy_from_slice(&request[1..]);
    let count = u64::from_le_bytes(count);
    match request[0] {
        DOWNLOAD => send(stream, count),
        UPLOAD => {
            let right = receive(&mut stream, count)?;
            stream.write_all(&[if right { RIGHT } else { WRONG }])
        }
        ECHO => echo(stream),
        _ => Ok(()),
    }
}

/// Asks for something over a stream that was just connected.
fn ask(stream: &mut impl Stream, what: u8, count: u64) -> io::Result<()> {
    stream.prepare()?;
    let mut request = [what; 9];
    request[1..].copy_from_slice(&count.to_le_bytes());
    stream.write_all(&request)
}

fn checked(right: bool) -> io::Result<()> {
    match right {
        true => Ok(()),
        false => Err(io::Error::other(
            "the bytes that arrived are not those that were sent",
        )),
    }
}

/// Has the server send `count` bytes; how long that took from the request to the last byte.
///
/// # Errors
/// The stream's; other bytes than were sent.
pub fn download(mut stream: impl Stream, count: u64) -> io::Result<Duration> {
    let begun = Instant::now();
    ask(&mut stream, DOWNLOAD, count)?;
    checked(receive(stream, count)?)?;
    Ok(begun.elapsed())
}

/// Sends the server `count` bytes; how long that took until it has said that they are right.
///
/// # Errors
/// The stream's; other bytes than were sent.
pub fn upload(mut stream: impl Stream, count: u64) -> io::Result<Duration> {
    let begun = Instant::now();
    ask(&mut stream, UPLOAD, count)?;
    send(&mut stream, count)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    checked(answer == [RIGHT])?;
    Ok(begun.elapsed())
}

/// Sends one byte and waits for it to come back, `count` times; how long each took.
///
/// # Errors
/// The stream's.
pub fn round_trips(mut stream: impl Stream, count: usize) -> io::Result<Vec<Duration>> {
    ask(&mut stream, ECHO, 0)?;
    (0..count)
        .map(|n| {
            let begun = Instant::now();
            stream.write_all(&[n as u8])?;
            let mut back = [0];
            stream.read_exact(&mut back)?;
            checked(back == [n as u8])?;
            Ok(begun.elapsed())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener));
        TcpStream::connect(address).unwrap()
    }

    #[test]
    fn what_is_sent_arrives() {
        download(connect(), 1_000_000).unwrap();
        upload(connect(), 1_000_000).unwrap();
        assert_eq!(round_trips(connect(), 10).unwrap().len(), 10);
    }

    #[test]
    fn a_byte_that_is_wrong_lost_or_doubled_shows() {
        let mut bytes = Vec::new();
        send(&mut bytes, 300_000).unwrap();
        assert!(receive(&bytes[..], 300_000).unwrap());
        let mut wrong = bytes.clone();
        wrong[200_000] ^= 1;
        assert!(!receive(&wrong[..], 300_000).unwrap());
        // A whole block of the usual size.
        bytes.drain(BLOCK..2 * BLOCK);
        assert!(!receive(&bytes[..], 200_000).unwrap());
        assert!(receive(&bytes[..], 300_000).is_err());
    }
}
