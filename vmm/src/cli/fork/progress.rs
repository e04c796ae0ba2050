//! What goes on, on a terminal, when it takes longer than a second.

use std::io::{IsTerminal, Write, stderr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What takes less is not told.
const SILENT: Duration = Duration::from_secs(1);
/// How often the line is written anew.
const PERIOD: Duration = Duration::from_millis(250);
/// To the beginning of the line, and away with what is on it.
const CLEAR: &str = "\r\u{1b}[K";

/// A line on standard error, if that is a terminal. It goes when this is dropped.
pub(super) struct Progress {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    stage: Option<(String, Instant)>,
    /// The line is there.
    shown: bool,
    ended: bool,
}

impl Progress {
    pub(super) fn begin() -> Self {
        let shared = Arc::new(Shared::default());
        let telling = Arc::clone(&shared);
        // Nothing depends on it.
        let thread = stderr().is_terminal().then(|| {
            thread::Builder::new()
                .spawn(move || tell(&telling, &mut stderr()))
                .ok()
        });
        Self {
            shared,
            thread: thread.flatten(),
        }
    }

    /// Something else begins.
    pub(super) fn stage(&self, what: &str) {
        self.shared
            .change(|now| now.stage = Some((what.to_owned(), Instant::now())));
    }

    /// Has the line be away until the next stage: something else is about to be told.
    pub(super) fn clear(&self) {
        self.shared.change(|now| {
            now.stage = None;
            now.clear(&mut stderr());
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.change(|now| now.ended = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Now {
    fn clear(&mut self, out: &mut impl Write) {
        if std::mem::take(&mut self.shown) {
            write(out, "");
        }
    }
}

/// A terminal that has gone is no reason to stop.
fn write(out: &mut impl Write, line: &str) {
    let _ = write!(out, "{CLEAR}{line}").and_then(|()| out.flush());
}

/// Writes the line until the end.
fn tell(shared: &Shared, out: &mut impl Write) {
    let mut now = shared.now.lock().unwrap_or_else(PoisonError::into_inner);
    while !now.ended {
        let stage = now.stage.as_ref();
        match stage.and_then(|(what, since)| line(what, since.elapsed())) {
            Some(line) => {
                write(out, &line);
                now.shown = true;
            }
            None => now.clear(out),
        }
        (now, _) = shared
            .changed
            .wait_timeout(now, PERIOD)
            .unwrap_or_else(PoisonError::into_inner);
    }
    now.clear(out);
}

fn line(what: &str, elapsed: Duration) -> Option<String> {
    (elapsed >= SILENT).then(|| format!("{what}: {} s", elapsed.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quickly_over_is_not_told() {
        assert_eq!(line("forking", Duration::from_millis(999)), None);
        let told = line("forking", Duration::from_millis(2900));
        assert_eq!(told.as_deref(), Some("forking: 2 s"));
    }

    #[test]
    fn the_line_is_away_at_the_end() {
        let shared = Shared::default();
        let long_ago = Instant::now().checked_sub(SILENT * 2);
        shared.change(|now| now.stage = long_ago.map(|since| ("forking".to_owned(), since)));
        let mut out = Vec::new();
        thread::scope(|scope| {
            let telling = scope.spawn(|| tell(&shared, &mut out));
            thread::sleep(PERIOD);
            shared.change(|now| now.ended = true);
            telling.join().unwrap();
        });
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("forking: 2 s") || long_ago.is_none(),
            "{out:?}"
        );
        assert!(out.ends_with(CLEAR), "{out:?}");
    }
}
