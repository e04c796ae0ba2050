//! What the guest has said last, and what it says now, for those who attach to its console.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// How much of what was said is kept, in bytes.
const KEPT: usize = 32 << 10;
/// The most bytes that a follower takes at once.
const TAKEN: usize = 4 << 10;

/// The end of the guest's output. Nobody who follows it is ever waited for: one who is too slow misses something, and is told.
#[derive(Debug, Default)]
pub struct ConsoleHistory {
    kept: Mutex<Kept>,
    /// Told how much was said, when somebody follows.
    said: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// How many bytes were said, those that are kept at the end of them.
    said: u64,
}

impl ConsoleHistory {
    /// The guest says `bytes`.
    pub fn append(&self, bytes: &[u8]) {
        let mut kept = self.lock();
        kept.said += bytes.len() as u64;
        let last = &bytes[bytes.len().saturating_sub(KEPT)..];
        // First, so that the memory does not grow beyond what is kept.
        let too_many = (kept.bytes.len() + last.len()).saturating_sub(KEPT);
        kept.bytes.drain(..too_many);
        kept.bytes.extend(last);
        let said = kept.said;
        drop(kept);
        // Who subscribes after this look finds the bytes.
        if self.said.receiver_count() > 0 {
            self.said.send_replace(said);
        }
    }

    /// Somebody who reads what is kept and what comes.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let said = self.said.subscribe();
        Follower {
            history: Arc::clone(self),
            said,
            at: self.lock().start(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Plain bytes: a panic cannot leave them half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The place of the first byte that is kept.
    fn start(&self) -> u64 {
        self.said - self.bytes.len() as u64
    }
}

/// A reader of the output.
#[derive(Debug)]
pub struct Follower {
    history: Arc<ConsoleHistory>,
    said: watch::Receiver<u64>,
    /// The place of the next byte.
    at: u64,
}

/// A piece of the output.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many bytes before it the follower has missed.
    pub missed: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Follower {
    /// What there is; none if the follower has it all.
    pub fn take(&mut self) -> Option<Piece> {
        let kept = self.history.lock();
        let start = kept.start();
        let missed = start.saturating_sub(self.at);
        let from = usize::try_from(self.at.max(start) - start).unwrap_or(usize::MAX);
        let until = kept.bytes.len().min(from.saturating_add(TAKEN));
        if from >= until {
            return None;
        }
        let bytes: Vec<u8> = kept.bytes.range(from..until).copied().collect();
        self.at = start + until as u64;
        Some(Piece { missed, bytes })
    }

    /// The next piece, once there is one.
    pub async fn next(&mut self) -> Piece {
        loop {
            self.said.mark_unchanged();
            if let Some(piece) = self.take() {
                return piece;
            }
            // The sender lives as long as the history, which is ours, too.
            let _ = self.said.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(piece: Option<Piece>) -> (u64, String) {
        let piece = piece.unwrap();
        (piece.missed, String::from_utf8(piece.bytes).unwrap())
    }

    #[test]
    fn who_comes_later_reads_what_was_said_and_then_what_is_said() {
        let history = Arc::new(ConsoleHistory::default());
        history.append(b"one ");
        let mut first = history.follow();
        history.append(b"two ");
        let mut second = history.follow();
        assert_eq!(text(first.take()), (0, "one two ".to_owned()));
        assert_eq!(first.take(), None);
        history.append(b"three");
        assert_eq!(text(first.take()), (0, "three".to_owned()));
        assert_eq!(text(second.take()), (0, "one two three".to_owned()));
    }

    #[test]
    fn who_does_not_keep_up_is_told_how_much_is_missing() {
        let history = Arc::new(ConsoleHistory::default());
        let mut slow = history.follow();
        history.append(&[b'a'; 100]);
        history.append(&vec![b'b'; KEPT - 1]);
        let piece = slow.take().unwrap();
        assert_eq!((piece.missed, piece.bytes.len()), (99, TAKEN));
        assert_eq!(piece.bytes[..2], *b"ab");
        history.append(&vec![b'c'; 3 * KEPT]);
        let mut seen = 0;
        let mut missed = 0;
        while let Some(piece) = slow.take() {
            assert!(piece.bytes.iter().all(|byte| *byte == b'c'));
            seen += piece.bytes.len();
            missed += piece.missed;
        }
        assert_eq!(seen, KEPT);
        assert_eq!(missed as usize, 100 + KEPT - 1 - 99 - TAKEN + 2 * KEPT);
        let kept = history.lock();
        assert!(kept.bytes.capacity() <= KEPT, "{}", kept.bytes.capacity());
    }

    #[test]
    fn somebody_who_waits_is_woken() {
        let history = Arc::new(ConsoleHistory::default());
        let mut follower = history.follow();
        let guest = Arc::clone(&history);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let speaking = std::thread::spawn(move || {
            for _ in 0..1000 {
                guest.append(b"x");
            }
        });
        let mut seen = 0;
        while seen < 1000 {
            seen += runtime.block_on(follower.next()).bytes.len();
        }
        assert_eq!(seen, 1000);
        speaking.join().unwrap();
    }
}
