// SPDX-License-Identifier: GPL-2.0

//! A hypervisor that restores its guest at any instant, over the model checker's atomics.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::AtomicU32;

use shuttle::sync::atomic::AtomicU64;

use crate::{
    sysgenid_core::Word,
    sysgenid_settle::{Answer, Id},
};

/// The number of restores, what it says to a guest that stands still, and the counter's word.
type Instant = u64;

fn restores(instant: Instant) -> u32 {
    (instant >> 40) as u32
}

fn answer(instant: Instant) -> u8 {
    (instant >> 32) as u8
}

fn word(instant: Instant) -> u32 {
    instant as u32
}

fn instant(restores: u32, answer: u8, word: u32) -> Instant {
    Instant::from(restores) << 40 | Instant::from(answer) << 32 | Instant::from(word)
}

/// In the order of their numbers.
const ANSWERS: [Answer; 5] = [
    Answer::Aborted,
    Answer::Pending,
    Answer::Original,
    Answer::Clone,
    Answer::Unknown,
];

fn number(answer: Answer) -> u8 {
    let same = |one: &Answer| *one == answer;
    ANSWERS.iter().position(same).unwrap() as u8
}

/// What a guest sees of a hypervisor. A restore changes all of it at once.
pub(crate) struct Hypervisor {
    now: AtomicU64,
    /// Whether a restore moves the counter, too.
    pub(crate) keeps_counter: bool,
    /// The number of restores when the guest last moved the counter.
    pub(crate) moved_in: AtomicU32,
}

impl Hypervisor {
    /// Vmgenie.
    pub(crate) fn with_counter(counter: u32) -> Self {
        Self {
            now: AtomicU64::new(instant(0, 0, counter)),
            keeps_counter: true,
            moved_in: AtomicU32::new(0),
        }
    }

    /// One that has an ID only: the word is the guest's own.
    pub(crate) fn with_id_only(counter: u32) -> Self {
        Self {
            keeps_counter: false,
            ..Self::with_counter(counter)
        }
    }

    /// Restores the guest from a snapshot that was taken at this instant.
    pub(crate) fn restore(&self) {
        let next = |now| Some(restored(now, self.keeps_counter));
        self.now.fetch_update(SeqCst, SeqCst, next).unwrap();
    }

    /// Answers a guest that stands still, if it still waits.
    pub(crate) fn say(&self, to: Answer) -> bool {
        let pending = number(Answer::Pending);
        let next = |now| (answer(now) == pending).then(|| with_answer(now, to));
        self.now.fetch_update(SeqCst, SeqCst, next).is_ok()
    }

    /// Restores the guest from a snapshot of this instant, if it stands still; whether it did.
    pub(crate) fn clones(&self) -> bool {
        let pending = number(Answer::Pending);
        let next = |now| (answer(now) == pending).then(|| restored(now, self.keeps_counter));
        self.now.fetch_update(SeqCst, SeqCst, next).is_ok()
    }

    /// The guest stands still, and waits to hear who it is.
    pub(crate) fn stands(&self) {
        let next = |now| Some(with_answer(now, Answer::Pending));
        self.now.fetch_update(SeqCst, SeqCst, next).unwrap();
    }

    pub(crate) fn answer(&self) -> Answer {
        ANSWERS[usize::from(answer(self.now.load(SeqCst)))]
    }

    pub(crate) fn restores(&self) -> u32 {
        restores(self.now.load(SeqCst))
    }

    pub(crate) fn id(&self) -> Id {
        id_after(self.restores())
    }
}

fn restored(now: Instant, moves_counter: bool) -> Instant {
    // Whoever waits to hear who he is hears that.
    let answer = match ANSWERS[usize::from(answer(now))] {
        Answer::Pending => Answer::Clone,
        other => other,
    };
    let word = word(now).wrapping_add(moves_counter.into());
    instant(restores(now) + 1, number(answer), word)
}

fn with_answer(now: Instant, answer: Answer) -> Instant {
    instant(restores(now), number(answer), word(now))
}

fn id_after(restores: u32) -> Id {
    let mut id = [0xa5; 16];
    id[..4].copy_from_slice(&restores.to_ne_bytes());
    id
}

impl Word for Hypervisor {
    fn load(&self) -> u32 {
        word(self.now.load(SeqCst))
    }

    fn compare_exchange(&self, old: u32, new: u32) -> bool {
        let next = |now| (word(now) == old).then(|| instant(restores(now), answer(now), new));
        let before = self.now.fetch_update(SeqCst, SeqCst, next);
        if let Ok(before) = before {
            self.moved_in.store(restores(before), Relaxed);
        }
        before.is_ok()
    }
}
