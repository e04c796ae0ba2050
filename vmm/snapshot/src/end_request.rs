//! Has this process been told to end? For what keeps the event loop waiting, which takes such signals otherwise.

use std::io;
use std::mem::MaybeUninit;

use thiserror::Error;

/// The signals that end the process. The event loop has them blocked, so that they wait until it takes them.
pub const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// How many bytes may be copied between two looks.
pub const LOOK_EVERY: usize = 16 << 20;

/// What takes long was given up.
#[derive(Debug, Error)]
#[error("this process was told to end")]
pub struct Ended;

/// For what takes long and reports errors of files.
///
/// # Errors
/// [`Ended`], if one of [`SIGNALS`] waits to be taken.
pub fn check() -> io::Result<()> {
    match is_pending() {
        true => Err(io::Error::other(Ended)),
        false => Ok(()),
    }
}

/// Whether one of [`SIGNALS`] waits to be taken.
pub fn is_pending() -> bool {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending initializes the set if it succeeds, and keeps no pointer to it.
    let set = unsafe {
        if libc::sigpending(set.as_mut_ptr()) != 0 {
            return false;
        }
        set.assume_init()
    };
    SIGNALS.iter().any(|signal| {
        // SAFETY: the set is initialized, and only read.
        unsafe { libc::sigismember(&set, *signal) == 1 }
    })
}

/// Runs `test` while its thread, and no other, has been told to end.
#[cfg(any(test, feature = "testing"))]
pub fn told_to_end<T>(test: impl FnOnce() -> T) -> T {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set, and no call keeps a pointer to it. The signal is blocked before it is sent.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        let set = set.assume_init();
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        assert_eq!(blocked, 0);
        assert_eq!(libc::pthread_kill(libc::pthread_self(), libc::SIGTERM), 0);
        set
    };
    let result = test();
    // SAFETY: the set is initialized; no more is to be told of the signal that is taken here than its number.
    unsafe {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        assert_eq!(
            libc::sigtimedwait(&set, std::ptr::null_mut(), &now),
            libc::SIGTERM
        );
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_waits_is_seen_and_no_other_is() {
        check().unwrap();
        let error = told_to_end(check).unwrap_err();
        assert_eq!(error.to_string(), "this process was told to end");
        assert_ne!(
            error.kind(),
            io::ErrorKind::Interrupted,
            "it would be tried again"
        );
        check().unwrap();
    }
}
