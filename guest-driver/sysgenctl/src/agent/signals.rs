//! SIGTERM and SIGINT as a file that can be polled.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The signals that end the agent, taken from a file instead of by a handler.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in this thread and those that it starts, and opens the file.
    pub(super) fn block() -> io::Result<Self> {
        let set = set(&[libc::SIGTERM, libc::SIGINT]);
        // SAFETY: the set is initialized and outlives the call.
        let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: as above.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether one has come that was not taken yet. It stays.
    pub(super) fn has_come(&self) -> bool {
        self.comes_within(Duration::ZERO)
    }

    /// Sleeps for `pause` or until one comes, and says whether one has come.
    pub(super) fn comes_within(&self, pause: Duration) -> bool {
        let mut files = [PollFd::new(&self.0, PollFlags::IN)];
        let pause = Timespec::try_from(pause).unwrap_or_default();
        poll(&mut files, Some(&pause)).is_ok_and(|ready| ready > 0)
    }

    /// Takes a signal that has come and was not taken yet.
    pub(super) fn pending(&self) -> Option<u32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of_val(&info);
        // SAFETY: there is room for one record.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read != size.cast_signed() {
            return None;
        }
        // SAFETY: a whole record was read.
        Some(unsafe { info.assume_init() }.ssi_signo)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets all signals through again. Allocates nothing: for use between fork and exec.
pub(super) fn unblock_all() -> io::Result<()> {
    let set = set(&[]);
    // SAFETY: the set is initialized and outlives the call.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, ptr::null_mut()) };
    match failed {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initializes the set, and cannot fail for a valid pointer.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in signals {
        // SAFETY: the set is initialized.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}
