//! Parts of a test that need a process of their own.

use crate::outcome::{Failure, Outcome};
use crate::raw::errno;

/// A forked child. Ended by force when it is dropped before it was waited for.
pub(crate) struct Child {
    pid: libc::pid_t,
    done: bool,
}

impl Child {
    /// Runs `body` in a child of this process, which must have a single thread.
    pub(crate) fn spawn(body: impl FnOnce() -> Outcome) -> Outcome<Self> {
        // SAFETY: this process has one thread when it forks, so the child may do what it likes.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(Failure::new(format!("fork: errno {}", errno())));
        }
        if pid == 0 {
            let status = match body() {
                Ok(()) => 0,
                Err(failure) => {
                    eprintln!("in a child process: {failure}");
                    1
                }
            };
            // SAFETY: ends this process without running what the parent has registered.
            unsafe { libc::_exit(status) };
        }
        Ok(Self { pid, done: false })
    }

    pub(crate) fn id(&self) -> libc::pid_t {
        self.pid
    }

    pub(crate) fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the ID is still its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Waits for the child, which has to succeed.
    pub(crate) fn join(mut self) -> Outcome {
        match self.reap() {
            0 => Ok(()),
            status => Err(Failure::new(format!(
                "a child process ended with status {status:#x}"
            ))),
        }
    }

    fn reap(&mut self) -> i32 {
        let mut status = -1;
        // SAFETY: the status outlives the call.
        unsafe { libc::waitpid(self.pid, &mut status, 0) };
        self.done = true;
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.done {
            self.kill();
            self.reap();
        }
    }
}

/// Runs `body` in a child and waits for it.
pub(crate) fn isolated(body: impl FnOnce() -> Outcome) -> Outcome {
    Child::spawn(body)?.join()
}
