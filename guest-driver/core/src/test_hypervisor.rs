// SPDX-License-Identifier: GPL-2.0

//! A hypervisor that restores its guest at any instant, over the model checker's atomics.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::AtomicU32;

use shuttle::sync::atomic::AtomicU64;

use crate::{sysgenid_core::Word, sysgenid_settle::Id};

/// The number of restores, and the counter's word below it.
type Instant = u64;

fn restores(instant: Instant) -> u32 {
    (instant >> 32) as u32
}

fn word(instant: Instant) -> u32 {
    instant as u32
}

fn instant(restores: u32, word: u32) -> Instant {
    Instant::from(restores) << 32 | Instant::from(word)
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
            now: AtomicU64::new(instant(0, counter)),
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
        let more = u32::from(self.keeps_counter);
        let next = |now| Some(instant(restores(now) + 1, word(now).wrapping_add(more)));
        self.now.fetch_update(SeqCst, SeqCst, next).unwrap();
    }

    pub(crate) fn restores(&self) -> u32 {
        restores(self.now.load(SeqCst))
    }

    pub(crate) fn id(&self) -> Id {
        id_after(self.restores())
    }
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
        let next = |now| (word(now) == old).then(|| instant(restores(now), new));
        let before = self.now.fetch_update(SeqCst, SeqCst, next);
        if let Ok(before) = before {
            self.moved_in.store(restores(before), Relaxed);
        }
        before.is_ok()
    }
}
