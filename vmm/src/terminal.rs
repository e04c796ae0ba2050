//! The terminal as the guest's serial console: raw while the guest runs, as it was before on every
//! way out.
//!
//! The settings found by [`RawMode::enter`] are kept in a static, so that [`restore`] works where
//! no guard is dropped: in the panic hook and in the handlers of fatal signals, which
//! [`crate::fatal`] has. What ends the process in an orderly way (SIGTERM, SIGINT, SIGHUP) is left
//! to the event loop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Ctrl-A, which introduces a command to the monitor.
const ESCAPE: u8 = 0x01;

/// What the terminal was like.
struct Saved {
    fd: RawFd,
    settings: libc::termios,
}

/// The terminal that is raw now; null when none is.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

/// Keeps a terminal raw; drop it to set the terminal back.
#[derive(Debug)]
#[must_use = "the terminal is set back when this is dropped"]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal `fd` raw: every key goes to the guest, Ctrl-C included; output is passed
    /// on as it is. `None` when `fd` is no terminal, when this process is not in its foreground, or
    /// when its settings cannot be changed.
    ///
    /// `fd` must stay open until the process ends, as standard input does.
    pub fn enter(fd: BorrowedFd<'_>) -> Option<Self> {
        if !may_read(fd) {
            return None;
        }
        let settings = get(fd.as_raw_fd()).ok()?;
        let mut raw = settings;
        // SAFETY: `raw` is a valid termios that we own; cfmakeraw only changes its fields.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Leaked on purpose, some 70 bytes each time: a signal handler may read it at any later
        // instant.
        let saved = Box::into_raw(Box::new(Saved {
            fd: fd.as_raw_fd(),
            settings,
        }));
        SAVED.store(saved, Ordering::SeqCst);
        if set(fd.as_raw_fd(), &raw).is_err() {
            SAVED.store(ptr::null_mut(), Ordering::SeqCst);
            return None;
        }
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Sets the terminal back to what [`RawMode::enter`] found. Harmless when there is nothing to set
/// back; may be called from a signal handler, a panic hook or at exit, any number of times.
pub fn restore() {
    let saved = SAVED.swap(ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: the pointer is null or comes from Box::into_raw in `RawMode::enter` and is never
    // freed.
    if let Some(saved) = unsafe { saved.as_ref() } {
        let _ = set(saved.fd, &saved.settings);
    }
}

/// May this process read the console from `fd`? Not from a terminal in whose background it runs:
/// reading or changing it would stop the process. Files and pipes may always be read.
pub fn may_read(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: isatty, tcgetpgrp and getpgrp take plain numbers and change nothing.
    unsafe {
        libc::isatty(fd.as_raw_fd()) == 0 || libc::tcgetpgrp(fd.as_raw_fd()) == libc::getpgrp()
    }
}

fn get(fd: RawFd) -> io::Result<libc::termios> {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: tcgetattr writes a whole termios when it returns 0, and nothing is read otherwise.
    unsafe {
        if libc::tcgetattr(fd, settings.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(settings.assume_init())
    }
}

/// Async-signal-safe, as tcsetattr is.
fn set(fd: RawFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a valid termios for the time of the call.
    match unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the keys typed so far ask of the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// Nothing: go on.
    Continue,
    /// Leave the console: Ctrl-A x ends the machine, Ctrl-A d detaches from one that runs elsewhere.
    Leave,
}

/// Finds Ctrl-A sequences in what is typed on the console: Ctrl-A and the key to leave it, which
/// is x or d; Ctrl-A Ctrl-A is one Ctrl-A for the guest. Any other key after Ctrl-A goes to the
/// guest together with it.
#[derive(Debug)]
pub struct EscapeFilter {
    leave: u8,
    escaped: bool,
}

impl EscapeFilter {
    /// Of the terminal of the machine's own process: Ctrl-A x leaves.
    pub fn quitting() -> Self {
        Self {
            leave: b'x',
            escaped: false,
        }
    }

    /// Of the terminal of somebody who has attached: Ctrl-A d leaves.
    pub fn detaching() -> Self {
        Self {
            leave: b'd',
            escaped: false,
        }
    }

    /// Appends to `guest` what of `typed` is for the guest. After [`Escape::Leave`] the rest of
    /// `typed` is dropped.
    pub fn feed(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Escape {
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, key) if key == self.leave => return Escape::Leave,
                (false, byte) | (true, byte @ ESCAPE) => guest.push(byte),
                (true, byte) => guest.extend([ESCAPE, byte]),
            }
        }
        Escape::Continue
    }
}

#[cfg(test)]
#[path = "terminal_test.rs"]
mod tests;
