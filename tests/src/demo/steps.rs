//! Telling what happens, as it happens.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// A step has begun a line that it has not ended yet.
static MID_LINE: AtomicBool = AtomicBool::new(false);

/// Tells each step with its times.
#[derive(Debug)]
pub(crate) struct Steps {
    begun: Instant,
    on_stderr: bool,
}

impl Steps {
    /// Tells on standard error if standard output is for programs.
    pub(crate) fn new(on_stderr: bool) -> Self {
        Self {
            begun: Instant::now(),
            on_stderr,
        }
    }

    /// Does `work`, with a dot for each second that it takes, and tells how long it took.
    pub(crate) fn step<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        MID_LINE.store(true, Ordering::SeqCst);
        self.write(&format!("{}{what} ", self.time()));
        let begun = Instant::now();
        let (done, wait) = mpsc::channel::<()>();
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                while wait.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                    self.write(".");
                }
            });
            let result = work();
            drop(done);
            result
        });
        self.write(&format!(" {:.1} s\n", begun.elapsed().as_secs_f64()));
        MID_LINE.store(false, Ordering::SeqCst);
        result
    }

    /// Tells something that takes no time.
    pub(crate) fn note(&self, what: &str) {
        self.write(&format!("{}{what}\n", self.time()));
    }

    fn time(&self) -> String {
        format!("{:6.1} s  ", self.begun.elapsed().as_secs_f64())
    }

    /// That nobody listens to what happens is no reason to stop.
    fn write(&self, text: &str) {
        let _ = match self.on_stderr {
            true => io::stderr().write_all(text.as_bytes()),
            false => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
        };
    }
}

/// Ends the line of a step that was cut short, so that an error starts on its own.
pub(crate) fn end_line() {
    if MID_LINE.swap(false, Ordering::SeqCst) {
        eprintln!();
    }
}
