//! Where the guest's console output goes: this process's standard output.

pub mod history;

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::net::{SendFlags, send};
use vmgenie_snapshot::own_files;

use history::ConsoleHistory;

/// The most bytes that wait for a reader who does not keep up, beyond the pipe or terminal itself.
const MAX_WAITING: usize = 64 << 10;

/// How long a vCPU waits for the reader with each byte, in milliseconds. It holds the serial port's lock meanwhile, which the event
/// loop needs as well: never for long.
const PATIENCE_MS: libc::c_int = 20;

/// Told that bytes wait here for the reader; called with the serial port's lock held.
type BehindHandler = Box<dyn Fn() + Send>;

/// Console output to a file descriptor.
///
/// A reader who does not keep up slows the guest down. It cannot stop a vCPU from being paused, nor the event loop: nobody waits long,
/// and what could not be written then waits here, until the guest says more or [`flush_waiting`](Self::flush_waiting) is called.
pub struct ConsoleOutput {
    fd: OwnedFd,
    waiting: Vec<u8>,
    /// The most bytes in one write.
    chunk: usize,
    /// A write tells whether it would block, and need not be asked about before: half of what a byte costs.
    never_blocks: bool,
    /// A socket, each write to which says that it shall not block.
    socket: bool,
    /// Each write may say that it shall not block; not every file and kernel can do it.
    nowait: Cell<bool>,
    on_behind: Option<BehindHandler>,
    /// For those who attach to the console.
    history: Option<Arc<ConsoleHistory>>,
    lost: u64,
    /// How long a vCPU waits for the reader with each byte, in milliseconds.
    patience_ms: libc::c_int,
    /// How many times standard output had become another file when `fd` was taken from it; none for other files.
    rotations: Option<u64>,
}

impl fmt::Debug for ConsoleOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleOutput")
            .field("fd", &self.fd)
            .field("waiting", &self.waiting.len())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl ConsoleOutput {
    /// Output to `fd`.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            waiting: Vec::new(),
            // A pipe that polls writable takes so many without blocking.
            chunk: libc::PIPE_BUF,
            never_blocks: false,
            socket: false,
            nowait: Cell::new(true),
            on_behind: None,
            history: None,
            lost: 0,
            patience_ms: PATIENCE_MS,
            rotations: None,
        }
    }

    /// Output to a file or named pipe that was opened so that writes to it do not block. What it does not take at once waits
    /// here, and is lost when that is too much: no vCPU waits.
    pub fn to_file(fd: OwnedFd) -> Self {
        let mut output = Self::new(fd).that_never_blocks();
        output.patience_ms = 0;
        output
    }

    /// Has `handler` called when bytes begin to wait for the reader.
    pub fn on_behind(&mut self, handler: BehindHandler) {
        self.on_behind = Some(handler);
    }

    /// The same with what is said kept in `history`, too.
    pub fn with_history(mut self, history: Arc<ConsoleHistory>) -> Self {
        self.history = Some(history);
        self
    }

    /// Writes what waits as far as the reader takes it at once; true if some of it still waits.
    pub fn flush_waiting(&mut self) -> bool {
        // A reader who has gone is an error, and ends the waiting.
        let _ = self.drain(0);
        !self.waiting.is_empty()
    }

    /// Output to this process's standard output. A pipe or terminal is opened once more, so that writes to it do not block, without
    /// a change to what other processes share with us.
    pub fn stdout() -> io::Result<Self> {
        let stdout = io::stdout();
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&stdout)?.st_mode);
        let own = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        match kind {
            FileType::Fifo | FileType::CharacterDevice => {
                match rustix::fs::open("/proc/self/fd/1", own, Mode::empty()) {
                    Ok(fd) => return Ok(Self::new(fd).that_never_blocks()),
                    Err(error) => tracing::debug!(%error, "standard output cannot be opened anew"),
                }
            }
            _ => {}
        }
        let shared = stdout.as_fd().try_clone_to_owned()?;
        Ok(Self::shared(shared, kind))
    }

    /// Standard output that could not be opened anew, by its kind.
    fn shared(fd: OwnedFd, kind: FileType) -> Self {
        let mut shared = Self::new(fd);
        match kind {
            FileType::RegularFile => {
                shared.rotations = Some(own_files::output_rotations());
                shared.that_never_blocks()
            }
            FileType::Socket => shared.that_is_a_socket(),
            _ => {
                // What polls writable takes at least one byte without blocking.
                shared.chunk = 1;
                shared
            }
        }
    }

    fn that_never_blocks(mut self) -> Self {
        self.never_blocks = true;
        self
    }

    /// A socket cannot be opened anew, as a service manager's log.
    fn that_is_a_socket(mut self) -> Self {
        self.socket = true;
        self.that_never_blocks()
    }

    /// Waits until the reader takes more (true) or a signal ends the wait (false).
    fn wait_writable(&self, timeout_ms: libc::c_int) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut poll, 1, timeout_ms) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    Ok(false)
                } else {
                    Err(error)
                }
            }
            ready => Ok(ready > 0),
        }
    }

    fn write_fd(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.socket {
            return Ok(send(
                &self.fd,
                bytes,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )?);
        }
        // Another writer may have filled what polled writable.
        if !self.never_blocks && self.nowait.get() {
            let parts = [IoSlice::new(bytes)];
            // The offset -1 is that of the file itself.
            match pwritev2(&self.fd, &parts, u64::MAX, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE | Errno::INVAL) => {
                    self.nowait.set(false);
                }
                written => return Ok(written?),
            }
        }
        // SAFETY: the pointer and the length are those of one slice.
        let written =
            unsafe { libc::write(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Bytes were written: to a log, that may have been put aside.
    fn grew(&mut self, bytes: usize) {
        let Some(rotations) = &mut self.rotations else {
            return;
        };
        own_files::output_grew(bytes);
        let now = own_files::output_rotations();
        if now != *rotations
            && let Ok(fd) = io::stdout().as_fd().try_clone_to_owned()
        {
            (self.fd, *rotations) = (fd, now);
        }
    }

    /// Writes what waits, waiting for the reader once, and at most `timeout_ms` milliseconds.
    fn drain(&mut self, timeout_ms: libc::c_int) -> io::Result<()> {
        let mut patience_ms = timeout_ms;
        let mut may_write = self.never_blocks;
        while !self.waiting.is_empty() {
            if !may_write && !self.wait_writable(std::mem::take(&mut patience_ms))? {
                break;
            }
            let len = self.waiting.len().min(self.chunk);
            match self.write_fd(&self.waiting[..len]) {
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.grew(written);
                    may_write = self.never_blocks;
                }
                Err(error) if may_write && error.kind() == io::ErrorKind::WouldBlock => {
                    may_write = false;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    break;
                }
                Err(error) => {
                    self.lost += self.waiting.len() as u64;
                    self.waiting.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(history) = &self.history {
            history.append(bytes);
        }
        let room = MAX_WAITING - self.waiting.len().min(MAX_WAITING);
        let taken = bytes.len().min(room);
        self.waiting.extend_from_slice(&bytes[..taken]);
        self.lost += (bytes.len() - taken) as u64;
        let was_behind = taken < self.waiting.len();
        self.drain(self.patience_ms)?;
        if let (false, false, Some(handler)) =
            (was_behind, self.waiting.is_empty(), &self.on_behind)
        {
            handler();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        // What is still waiting gets one short chance.
        let _ = self.drain(100);
        if self.lost > 0 {
            tracing::warn!(bytes = self.lost, "console output was lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use vmgenie_snapshot::not_looked_at::not_looked_at;

    #[test]
    fn output_reaches_a_pipe() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut console = ConsoleOutput::new(writer.into());
        console.write_all(b"hello").unwrap();
        drop(console);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_reader_who_does_not_read_holds_nobody_up_for_long_and_misses_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        falls_behind(reader, ConsoleOutput::new(writer.into()));
        let (reader, writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let console = ConsoleOutput::new(writer.into());
        falls_behind(reader, console.that_never_blocks());
    }

    #[test]
    fn how_is_written_to_what_is_shared_depends_on_its_kind() {
        for (kind, socket, never_blocks, log, by_one) in [
            (FileType::RegularFile, false, true, true, false),
            (FileType::Socket, true, true, false, false),
            (FileType::Fifo, false, false, false, true),
            (FileType::CharacterDevice, false, false, false, true),
        ] {
            let (_reader, writer) = io::pipe().unwrap();
            let console = ConsoleOutput::shared(writer.into(), kind);
            assert_eq!(console.socket, socket, "{kind:?}");
            assert_eq!(console.never_blocks, never_blocks, "{kind:?}");
            assert_eq!(console.rotations.is_some(), log, "{kind:?}");
            assert_eq!(console.chunk == 1, by_one, "{kind:?}");
        }
    }

    /// The socket's file is shared with others, and blocks.
    #[test]
    fn the_reader_of_a_socket_holds_nobody_up_for_long_and_misses_nothing() {
        let (reader, writer) = UnixStream::pair().unwrap();
        // It holds some of the text, and not all.
        rustix::net::sockopt::set_socket_send_buffer_size(&writer, 40 << 10).unwrap();
        falls_behind(reader, ConsoleOutput::new(writer.into()).that_is_a_socket());
    }

    fn falls_behind(mut reader: impl Read, mut console: ConsoleOutput) {
        let (behind, told) = std::sync::mpsc::channel();
        console.on_behind(Box::new(move || behind.send(()).unwrap()));
        // More than a pipe holds.
        let text: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        console.write_all(&text[..60_000]).unwrap();
        console.write_all(&text[60_000..]).unwrap();
        assert_eq!(told.try_iter().count(), 1);
        let mut seen = vec![0; text.len()];
        let mut at = 0;
        while at < seen.len() {
            at += reader.read(&mut seen[at..]).unwrap();
            console.flush_waiting();
        }
        assert_eq!(seen, text);
        assert!(!console.flush_waiting());
    }

    #[test]
    fn a_write_does_not_block_although_another_writer_has_filled_what_polled_writable() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut other = writer.try_clone().unwrap();
        let console = ConsoleOutput::new(writer.into());
        let room = (64 << 10) - console.write_fd(b"x").unwrap();
        if !console.nowait.get() {
            not_looked_at("this kernel cannot write to a pipe without waiting");
            return;
        }
        // All that a pipe holds.
        other.write_all(&vec![0; room]).unwrap();
        let error = console.write_fd(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_closed_reader_is_an_error_not_a_panic() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut console = ConsoleOutput::new(writer.into());
        assert!(console.write_all(b"hello").is_err());
    }
}
