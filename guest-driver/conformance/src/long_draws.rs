//! Draws that are so long that the machine is forked in the midst of one. They are printed page by page;
//! the test on the host judges.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::Subject;
use crate::fork_point::on_each_cpu;
use crate::outcome::{Failure, Outcome};
use crate::raw::{Mapping, errno};
use crate::restores::tell;
use crate::taking_part::{Agent, Participant};

/// How long each draw is, and what it is drawn into.
const LENGTH: usize = 1 << 20;
const WORD: usize = size_of::<u64>();

/// The kernel makes the bytes in blocks of this length, from one state.
const BLOCK: usize = 64;
const PAGE: usize = 4096;

/// How many draws that began in the new generation are shown.
const SHOWN: usize = 2;

/// What is drawn into, and how much of it was drawn when the counter was seen to have moved.
struct Drawing {
    words: Vec<AtomicU64>,
    filled: OnceLock<usize>,
}

impl Drawing {
    fn new() -> Self {
        Self {
            words: (0..LENGTH / WORD).map(|_| AtomicU64::new(0)).collect(),
            filled: OnceLock::new(),
        }
    }

    fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Draws once; how much there is of it. A signal, or a freezer, may cut it short.
    fn draw(&self) -> Outcome<usize> {
        let to = self.words.as_ptr().cast_mut();
        // SAFETY: the words may be written for their whole length, by anybody.
        let length = unsafe { libc::syscall(libc::SYS_getrandom, to, LENGTH, 0) };
        usize::try_from(length).map_err(|_| Failure::new(format!("getrandom: errno {}", errno())))
    }

    /// How many bytes have been drawn up to now: a block that was not is zero.
    fn filled(&self) -> usize {
        let (blocks, _) = self.words.as_chunks::<{ BLOCK / WORD }>();
        let drawn = |block: &[AtomicU64; BLOCK / WORD]| block[0].load(Ordering::Relaxed) != 0;
        blocks.partition_point(drawn) * BLOCK
    }

    /// A digest of each page of the first `length` bytes.
    fn digests(&self, length: usize) -> String {
        let pages = self.words[..length / WORD].chunks(PAGE / WORD);
        let digest = |page: &[AtomicU64]| {
            page.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, word| {
                (sum ^ word.load(Ordering::Relaxed)).wrapping_mul(0x100_0000_01b3)
            })
        };
        pages.map(|page| format!("{:016x}", digest(page))).collect()
    }
}

/// A thread on the first CPU makes one long draw after the other; one on the second looks how far that is
/// when the counter moves.
pub(crate) fn draw(subject: Subject<'_>) -> Outcome {
    let drawing = Drawing::new();
    on_each_cpu(subject, 1, |cpu, _, page| match cpu {
        0 => draws(&drawing, page, || Ok(())),
        _ => look(&drawing, page),
    })
}

/// The same of a thread that parks while a request is pending, with an agent that waits for it.
pub(crate) fn draw_parked(subject: Subject<'_>) -> Outcome {
    let drawing = Drawing::new();
    thread::scope(|scope| {
        let agent = Agent::new(subject)?;
        let asked = scope.spawn(move || agent.forks());
        on_each_cpu(subject, 1, |cpu, _, page| {
            if cpu != 0 {
                return look(&drawing, page);
            }
            let me = Participant::new(subject)?;
            draws(&drawing, page, || match page.word(1) {
                0 => Ok(()),
                _ => me.park(),
            })
        })?;
        asked
            .join()
            .map_err(|_| Failure::new("the agent panicked"))?
    })
}

fn draws(drawing: &Drawing, page: &Mapping, before_each: impl Fn() -> Outcome) -> Outcome {
    let old = page.load();
    let mut shown = 0;
    while shown < SHOWN {
        drawing.clear();
        before_each()?;
        let before = page.load();
        let length = drawing.draw()?;
        let after = page.load();
        if after == old {
            continue;
        }
        let filled = match before == old {
            true => *drawing.filled.wait(),
            false => 0,
        };
        let digests = drawing.digests(length);
        tell(&format!(
            "long {before} {after} {length} {filled} {digests}"
        ))?;
        shown += usize::from(before == after);
    }
    tell("shown")
}

fn look(drawing: &Drawing, page: &Mapping) -> Outcome {
    let old = page.load();
    while page.load() == old {
        std::hint::spin_loop();
    }
    // Only this thread does it, and once.
    let _ = drawing.filled.set(drawing.filled());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drawn_is_told_from_what_was_not() {
        let drawing = Drawing::new();
        assert_eq!(drawing.filled(), 0);
        assert_eq!(drawing.draw().unwrap(), LENGTH);
        assert_eq!(drawing.filled(), LENGTH);
        let digests = drawing.digests(2 * PAGE);
        assert_eq!(digests.len(), 32);
        assert_ne!(digests[..16], digests[16..]);
        for word in &drawing.words[3 * BLOCK / WORD..] {
            word.store(0, Ordering::Relaxed);
        }
        assert_eq!(drawing.filled(), 3 * BLOCK);
    }
}
