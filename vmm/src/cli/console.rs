//! `vmgenie console`: this terminal becomes the console of a machine that runs elsewhere.

use std::io::{self, ErrorKind, IsTerminal, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use thiserror::Error;
use vmgenie_api::attach::attach;
use vmm_sys_util::signal::register_signal_handler;

use super::Failure;
use super::args::ConsoleArgs;
use super::machines;
use crate::fatal;
use crate::terminal::{self, Escape, EscapeFilter, RawMode};

/// How long a signal may go unnoticed.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// How much of what was typed may wait for a guest that takes none, in bytes, before no more is read.
const MAX_WAITING: usize = 64 << 10;

/// Why the console cannot be shown.
#[derive(Debug, Error)]
enum ConsoleError {
    #[error("the connection to the machine broke")]
    Broken(#[source] io::Error),
}

/// Set by SIGINT, SIGTERM and SIGHUP.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// How the console was left.
enum Left {
    /// The user did: Ctrl-A d, or a signal.
    Detached,
    /// The machine's process has ended.
    Ended,
}

pub(super) fn console(args: &ConsoleArgs) -> Result<(), Failure> {
    let socket = machines::socket_of(&args.machine)?;
    let stream = attach(&socket)?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Without a handler the terminal would be left raw.
        let _ = register_signal_handler(signal, on_signal);
    }
    let input = terminal::may_read(stdin().as_fd());
    let on_terminal = input && stdin().is_terminal();
    if on_terminal {
        eprintln!("Attached to {}: Ctrl-A d detaches.", args.machine);
    }
    let raw = if input {
        fatal::install();
        RawMode::enter(stdin().as_fd())
    } else {
        None
    };
    let filter = on_terminal.then(EscapeFilter::detaching);
    let left = Session {
        stream,
        reads_input: input,
        waiting: Vec::new(),
        // Who is not allowed to type may still be so later.
        said_all: !input,
        filter,
    }
    .run();
    drop(raw);
    match left.map_err(ConsoleError::Broken)? {
        Left::Detached if on_terminal => eprintln!("\nDetached."),
        Left::Ended if on_terminal => eprintln!("\nThe machine has ended."),
        _ => {}
    }
    Ok(())
}

struct Session {
    stream: UnixStream,
    reads_input: bool,
    /// Typed, and not sent yet.
    waiting: Vec<u8>,
    /// The machine knows that nothing more is typed.
    said_all: bool,
    filter: Option<EscapeFilter>,
}

impl Session {
    fn run(&mut self) -> io::Result<Left> {
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(Left::Detached);
            }
            let (shows, types) = match self.wait() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                ready => ready?,
            };
            if shows && !self.show()? {
                return Ok(Left::Ended);
            }
            if types && self.type_input()? {
                return Ok(Left::Detached);
            }
            self.send()?;
        }
    }

    /// Waits until there is something to show or to type.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let stdin = stdin();
        let wanted = match self.waiting.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        };
        let mut fds = vec![PollFd::new(&self.stream, wanted)];
        if self.reads_input && self.waiting.len() < MAX_WAITING {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        // Not for ever: a signal that comes before this call would be seen after the next key only.
        poll(&mut fds, Some(&LOOK))?;
        let shows = fds[0].revents().intersects(!PollFlags::OUT);
        let types = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        Ok((shows, types))
    }

    /// Shows what the guest says; false when there is no more.
    fn show(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let len = match rustix::io::read(&self.stream, &mut buffer) {
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::CONNRESET) => 0,
            read => read?,
        };
        let mut screen = stdout().lock();
        screen.write_all(&buffer[..len])?;
        screen.flush()?;
        Ok(len > 0)
    }

    /// Takes what was typed; true if the user wants to detach.
    fn type_input(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 1024];
        // Not through the standard library's buffer, into which bytes would vanish from poll's sight.
        let len = match rustix::io::read(stdin(), &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => return Ok(false),
            read => read?,
        };
        self.reads_input = len > 0;
        let Some(filter) = &mut self.filter else {
            self.waiting.extend_from_slice(&buffer[..len]);
            return Ok(false);
        };
        Ok(filter.feed(&buffer[..len], &mut self.waiting) == Escape::Leave)
    }

    /// Sends what was typed as far as it is taken at once, and when that was all there is, says so.
    fn send(&mut self) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.waiting.is_empty() {
            match rustix::net::send(&self.stream, &self.waiting, flags) {
                Ok(sent) => drop(self.waiting.drain(..sent)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // What the machine said last is still to be shown.
                Err(Errno::PIPE | Errno::CONNRESET) => self.waiting.clear(),
                Err(error) => return Err(error.into()),
            }
        }
        if !self.reads_input && !self.said_all {
            self.said_all = true;
            // A machine that has gone needs no word.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}
