//! A client in the middle of a download.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

/// How much the client takes at once, and how long it then waits while it is to be slow.
const PIECE: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(40);
/// The client's receive buffer in bytes: small, so that what is under way is with the server.
const BUFFER: libc::c_int = 64 << 10;
/// How long it waits for more. The server stands still while its snapshot is taken and its disk is copied.
const PATIENCE: Duration = Duration::from_secs(120);

/// A download that goes on in a thread of its own, slowly until it is told otherwise.
pub(crate) struct Download {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<Vec<u8>>>,
}

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    fast: AtomicBool,
}

impl Download {
    /// Asks for `path` on a fresh connection.
    pub(crate) fn begin(mut stream: TcpStream, path: &str) -> Result<Self> {
        set_buffer(&stream).context("could not set the client's buffer")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").context("could not ask for the download")?;
        let shared = Arc::new(Shared::default());
        let in_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || receive(stream, &in_thread));
        Ok(Self { shared, thread })
    }

    /// How many bytes have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Takes what is left as it comes; returns the body.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        self.shared.fast.store(true, Ordering::Relaxed);
        let answer = self
            .thread
            .join()
            .map_err(|_| anyhow!("the client panicked"))?
            .context("the download broke off")?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.context("the download has no head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        ensure!(head.contains(" 200 "), "the download was answered {head:?}");
        Ok(answer[end + 4..].to_vec())
    }
}

fn receive(mut stream: TcpStream, shared: &Shared) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        let len = stream.read(&mut piece)?;
        if len == 0 {
            return Ok(answer);
        }
        answer.extend(&piece[..len]);
        shared
            .received
            .store(answer.len() as u64, Ordering::Relaxed);
        if !shared.fast.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
    }
}

fn set_buffer(stream: &TcpStream) -> io::Result<()> {
    let buffer = BUFFER;
    // SAFETY: SO_RCVBUF reads one `c_int`, which lives through the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const buffer).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
