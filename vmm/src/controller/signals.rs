//! SIGTERM, SIGINT and SIGHUP as events of the loop, so that everything is cleaned up before the process ends.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmgenie_snapshot::end_request::SIGNALS;

use crate::metrics::METRICS;

/// A signalfd for the signals that end the process.
#[derive(Debug)]
pub(crate) struct EndSignals(File);

impl EndSignals {
    /// Blocks the signals in this thread and all that it starts later, and makes them readable here.
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set; the other calls take pointers to it and to nothing else; the file descriptor is
        // new and owned by nobody.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in SIGNALS {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let set = set.assume_init();
            let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if blocked != 0 {
                return Err(io::Error::from_raw_os_error(blocked));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(File::from_raw_fd(fd)))
        }
    }

    /// Takes one signal, if one has arrived.
    pub(crate) fn take(&mut self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let taken = matches!(self.0.read(&mut info), Ok(len) if len > 0);
        if taken {
            // `ssi_signo` comes first.
            let [b0, b1, b2, b3, ..] = info;
            count(i32::from_ne_bytes([b0, b1, b2, b3]));
        }
        taken
    }
}

fn count(signal: i32) {
    let signals = &METRICS.signals;
    match signal {
        libc::SIGHUP => signals.sighup.set(1),
        libc::SIGINT => signals.sigint.set(1),
        libc::SIGTERM => signals.sigterm.set(1),
        _ => {}
    }
}

/// Lets a write beyond the limit of a file's size (`ulimit -f`) fail, as one to a full disk does, instead of ending the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

impl AsRawFd for EndSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
