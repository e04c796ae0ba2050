//! A guest's console: all that it ever said, and waiting for what it says next.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vm_agent::patience::{LOOK, Patience, Progress, processor_time};

/// How many lines of a console the reader of a failed test is given.
const TOLD_LINES: usize = 30;

/// A guest's console on the other side of two pipes.
#[derive(Debug)]
pub struct Console {
    input: Option<ChildStdin>,
    /// The monitor whose guest this is.
    monitor: u32,
    shared: Arc<Shared>,
    /// How much of the output has been looked at.
    seen: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    text: String,
    ended: bool,
}

impl Console {
    /// The console of the guest of a monitor whose standard input and output are pipes; reads them in a thread of its own.
    pub fn of(monitor: &mut Child) -> Self {
        let input = monitor.stdin.take();
        let mut output = monitor.stdout.take().expect("a pipe");
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let len = output.read(&mut buffer).unwrap_or(0);
                let mut state = lock(&writer.state);
                state
                    .text
                    .push_str(&String::from_utf8_lossy(&buffer[..len]).replace('\r', ""));
                state.ended = len == 0;
                writer.changed.notify_all();
                if len == 0 {
                    return;
                }
            }
        });
        Self {
            input,
            monitor: monitor.id(),
            shared,
            seen: 0,
        }
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) {
        let input = self.input.as_mut().expect("the input is open");
        input
            .write_all(text.as_bytes())
            .expect("the VMM takes console input");
        input.flush().expect("the VMM takes console input");
    }

    /// Waits for `text` in what was not looked at yet, and returns everything before it.
    ///
    /// # Panics
    /// With the whole console output when it does not come although it was waited for with [`Patience`]: for as long as the guest speaks or
    /// computes, and for `limit` once it does neither.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> String {
        let mut patience = Patience::new(limit);
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(at) = state.text[self.seen..].find(text) {
                let before = state.text[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            let why = if state.ended {
                "the output has ended"
            } else {
                "time is up"
            };
            let over = state.ended || patience.is_over_at(|| self.progress_at(&state));
            assert!(
                !over,
                "waited {limit:?} for {text:?} on the console: {why}. All of it:\n{}",
                state.text
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the end of the output and returns all of it.
    pub fn wait_for_end(&mut self, limit: Duration) -> String {
        let mut patience = Patience::new(limit);
        let mut state = lock(&self.shared.state);
        while !state.ended {
            assert!(
                !patience.is_over_at(|| self.progress_at(&state)),
                "no end of the console within {limit:?}:\n{}",
                state.text
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.text.clone()
    }

    /// What can be seen of the guest's progress: what it has said, and what its monitor has computed.
    pub fn progress(&self) -> Progress {
        self.progress_at(&lock(&self.shared.state))
    }

    fn progress_at(&self, state: &State) -> Progress {
        Progress {
            done: state.text.len() as u64,
            worked: processor_time(self.monitor),
        }
    }

    /// Writes the last lines to the standard error output, for the reader of a test that has failed.
    pub fn tell_end(&self) {
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(TOLD_LINES)..];
        eprintln!("the end of a guest's console:\n{}", end.join("\n"));
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        lock(&self.shared.state).text.clone()
    }
}

/// A test fails by a panic, also with this lock held; what the console said is still told after that.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
