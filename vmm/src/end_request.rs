//! Has this process been told to end? For what keeps the event loop waiting, which takes such signals otherwise.

use std::mem::MaybeUninit;

/// The signals that end the process. The event loop has them blocked, so that they wait until it takes them.
pub(crate) const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Whether one of [`SIGNALS`] waits to be taken.
pub(crate) fn is_pending() -> bool {
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
