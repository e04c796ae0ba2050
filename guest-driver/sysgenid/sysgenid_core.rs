// SPDX-License-Identifier: GPL-2.0

//! The generation counter and its watchers: what has to be true of them, without a kernel.
//!
//! The file needs nothing but `core`: the module compiles it, and so does a crate of the host,
//! where property tests and a model checker run it. The caller holds one lock around
//! [`Generations`] and all of its [`Watcher`]s, and wakes whom a [`Wake`] names after each call.
//!
//! The counter's word may lie in a page that the hypervisor adds to between any two instructions,
//! when it restores the machine from a snapshot. Nothing here ever stores to it but by
//! compare-exchange.

/// The word that holds the counter.
pub(crate) trait Word {
    /// Its value.
    fn load(&self) -> u32;

    /// Replaces `old` by `new` in one step, and orders all accesses around it. Returns whether the
    /// value was `old`.
    fn compare_exchange(&self, old: u32, new: u32) -> bool;
}

/// Who has to be woken after a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Wake {
    /// Those who read or poll: there is a new generation.
    pub(crate) readers: bool,
    /// Those who wait for watchers: none is outdated any more, or the waiting one is itself.
    pub(crate) waiters: bool,
}

impl Wake {
    const NOBODY: Self = Self {
        readers: false,
        waiters: false,
    };
    const EVERYBODY: Self = Self {
        readers: true,
        waiters: true,
    };
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The hypervisor has moved the counter: its new generation has to be dealt with first.
    Moved,
    /// The counter is at its end, and a request never makes it go backwards.
    AtEnd,
    /// The value that was acknowledged is not the present one.
    Stale,
}

/// What a waiting watcher has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// No tracked watcher is outdated.
    Done,
    /// The one that waits is outdated itself.
    Outdated,
    /// Some other is.
    Sleep,
}

/// An open file.
///
/// It is up to date with the generation in which it was opened, and outdated from the next one
/// until it has acknowledged that.
#[derive(Debug)]
pub(crate) struct Watcher {
    epoch: u64,
    acknowledged: u32,
    tracking: Tracking,
    /// The generation in which it said that it was ready.
    ready: Option<u64>,
}

/// Who waits for a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// Nobody.
    Untracked,
    /// Other watchers.
    Tracked,
    /// They and the host: it is privileged.
    Required,
}

impl Tracking {
    fn is_tracked(self) -> bool {
        self != Self::Untracked
    }

    fn is_required(self) -> bool {
        self == Self::Required
    }
}

/// What the host is told of the watchers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// Tracked watchers that are outdated.
    pub(crate) outdated: u32,
    /// Those of them that are required, and required ones that have gone while they were.
    pub(crate) required: u32,
    /// Agents that have finished in this generation.
    pub(crate) ready: u32,
}

impl Watcher {
    /// The counter of the generation that it acknowledged last, or in which it was opened.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    /// Whether others wait for it.
    pub(crate) fn is_tracked(&self) -> bool {
        self.tracking.is_tracked()
    }

    /// Whether the host waits for it.
    pub(crate) fn is_required(&self) -> bool {
        self.tracking.is_required()
    }
}

/// The generation that was told to the watchers, and how many of them have to acknowledge it.
#[derive(Debug)]
pub(crate) struct Generations {
    /// The counter's value that was told.
    told: u32,
    /// The number of generations so far. The counter wraps and can be made to jump; this cannot be
    /// mistaken for an older one.
    epoch: u64,
    watchers: u32,
    tracked: u32,
    outdated: u32,
    /// Of those, the required ones.
    required: u32,
    required_outdated: u32,
    /// Required ones that went in this generation without having acknowledged it: whatever they
    /// had to do is not known to have been done. An agent that is ready answers for them.
    lost: u32,
    /// Agents that have finished in this generation and are there, and those that have gone since.
    ready: u32,
    ready_gone: u32,
}

impl Generations {
    /// No watcher yet, and the counter as it is.
    pub(crate) fn new(told: u32) -> Self {
        Self {
            told,
            epoch: 0,
            watchers: 0,
            tracked: 0,
            outdated: 0,
            required: 0,
            required_outdated: 0,
            lost: 0,
            ready: 0,
            ready_gone: 0,
        }
    }

    /// The counter's value that was told to the watchers.
    pub(crate) fn told(&self) -> u32 {
        self.told
    }

    /// Number of open files.
    pub(crate) fn watchers(&self) -> u32 {
        self.watchers
    }

    /// Number of tracked watchers that have not acknowledged the present generation.
    pub(crate) fn outdated(&self) -> u32 {
        self.outdated
    }

    /// What the host is told.
    pub(crate) fn numbers(&self) -> Numbers {
        Numbers {
            outdated: self.outdated,
            required: self.required_outdated.saturating_add(self.lost),
            ready: self.ready.saturating_add(self.ready_gone),
        }
    }

    /// A watcher that is up to date. None if there are too many.
    pub(crate) fn open(&mut self, tracking: Tracking) -> Option<Watcher> {
        self.watchers = self.watchers.checked_add(1)?;
        self.tracked += u32::from(tracking.is_tracked());
        self.required += u32::from(tracking.is_required());
        Some(Watcher {
            epoch: self.epoch,
            acknowledged: self.told,
            tracking,
            ready: None,
        })
    }

    /// A watcher goes, for good.
    ///
    /// One that the host waits for has not adapted by that: it may have been killed.
    pub(crate) fn close(&mut self, watcher: &mut Watcher) -> Wake {
        if watcher.is_required() && self.is_outdated(watcher) {
            self.lost = self.lost.saturating_add(1);
        }
        if watcher.ready.take() == Some(self.epoch) {
            self.ready -= 1;
            self.ready_gone = self.ready_gone.saturating_add(1);
        }
        let wake = self.track(watcher, Tracking::Untracked);
        self.watchers -= 1;
        wake
    }

    /// Whether a watcher has not acknowledged the present generation.
    pub(crate) fn is_outdated(&self, watcher: &Watcher) -> bool {
        watcher.epoch != self.epoch
    }

    /// From now on others wait for the watcher, or don't.
    pub(crate) fn track(&mut self, watcher: &mut Watcher, tracking: Tracking) -> Wake {
        let outdated = self.is_outdated(watcher);
        let before = core::mem::replace(&mut watcher.tracking, tracking);
        if before.is_required() {
            self.required -= 1;
            self.required_outdated -= u32::from(outdated);
        }
        if tracking.is_required() {
            self.required += 1;
            self.required_outdated += u32::from(outdated);
        }
        match (before.is_tracked(), tracking.is_tracked()) {
            (false, true) => {
                self.tracked += 1;
                self.outdated += u32::from(outdated);
                Wake::NOBODY
            }
            (true, false) => {
                self.tracked -= 1;
                self.leave(outdated)
            }
            _ => Wake::NOBODY,
        }
    }

    /// An agent says that all is done that the generation `counter` asks for. Once in a generation
    /// counts. One that comes after another has gone takes its place.
    pub(crate) fn ready(
        &mut self,
        word: &impl Word,
        watcher: &mut Watcher,
        counter: u32,
    ) -> Result<(), Refusal> {
        self.check(word, counter)?;
        self.lost = 0;
        if watcher.ready.replace(self.epoch) != Some(self.epoch) {
            self.ready_gone = self.ready_gone.saturating_sub(1);
            self.ready += 1;
        }
        Ok(())
    }

    /// A watcher says that it has adapted to the generation that `counter` names.
    pub(crate) fn acknowledge(
        &mut self,
        word: &impl Word,
        watcher: &mut Watcher,
        counter: u32,
    ) -> Result<Wake, Refusal> {
        self.check(word, counter)?;
        let outdated = self.is_outdated(watcher);
        self.required_outdated -= u32::from(watcher.is_required() && outdated);
        let counted = watcher.is_tracked() && outdated;
        watcher.epoch = self.epoch;
        watcher.acknowledged = counter;
        Ok(self.leave(counted))
    }

    /// Whether `counter` is that of the present generation.
    pub(crate) fn check(&self, word: &impl Word, counter: u32) -> Result<(), Refusal> {
        if word.load() != self.told {
            return Err(Refusal::Moved);
        }
        if counter != self.told {
            return Err(Refusal::Stale);
        }
        Ok(())
    }

    /// What a watcher has to do that waits for the others.
    pub(crate) fn wait(&self, watcher: &Watcher) -> Waiting {
        if self.is_outdated(watcher) {
            Waiting::Outdated
        } else if self.outdated == 0 {
            Waiting::Done
        } else {
            Waiting::Sleep
        }
    }

    /// Begins the generation that the hypervisor has told of. `seen` is the counter from before
    /// the look at its ID: where the word has moved since, so may have the ID.
    ///
    /// The counter wraps: to be noticed outweighs to be ordered. A word that is behind what was
    /// told is another machine's, into which this one was brought with its memory and without the
    /// page, as by hibernation: the counter does not go back to what a mapping has shown already.
    pub(crate) fn begin(&mut self, word: &impl Word, seen: u32) -> Result<Wake, Refusal> {
        let behind = seen.wrapping_sub(self.told) > u32::MAX / 2;
        let from = if behind { self.told } else { seen };
        self.advance(word, seen, from.wrapping_add(1))
    }

    /// Begins a generation because a program asks for it: the counter is `min` or, where that
    /// would not move it forwards, the present one plus one.
    pub(crate) fn force(&mut self, word: &impl Word, min: u32) -> Result<Wake, Refusal> {
        match self.told.checked_add(1) {
            Some(next) => self.advance(word, self.told, next.max(min)),
            // The hypervisor may have wrapped it meanwhile.
            None if word.load() != self.told => Err(Refusal::Moved),
            None => Err(Refusal::AtEnd),
        }
    }

    /// Goes on with the counter in another word, which becomes the present one if it is behind it.
    /// `seen` is its value from before the kernel's random number generator was reseeded: where it
    /// has moved since, nobody must be told yet.
    pub(crate) fn adopt(&mut self, word: &impl Word, seen: u32) -> Result<Wake, Refusal> {
        let next = seen.max(self.told);
        if !word.compare_exchange(seen, next) {
            return Err(Refusal::Moved);
        }
        if next == self.told {
            return Ok(Wake::NOBODY);
        }
        Ok(self.tell(next))
    }

    fn advance(&mut self, word: &impl Word, from: u32, to: u32) -> Result<Wake, Refusal> {
        if !word.compare_exchange(from, to) {
            return Err(Refusal::Moved);
        }
        Ok(self.tell(to))
    }

    fn tell(&mut self, counter: u32) -> Wake {
        self.told = counter;
        self.epoch += 1;
        self.outdated = self.tracked;
        self.required_outdated = self.required;
        (self.lost, self.ready, self.ready_gone) = (0, 0, 0);
        Wake::EVERYBODY
    }

    /// One less is outdated, if it was `counted`.
    fn leave(&mut self, counted: bool) -> Wake {
        if !counted {
            return Wake::NOBODY;
        }
        self.outdated -= 1;
        Wake {
            readers: false,
            waiters: self.outdated == 0,
        }
    }
}

/// Not less than so many milliseconds in ticks of a clock that has `hz` of them a second.
///
/// Timers compare times by the sign of their difference, and may be a little behind the clock: a
/// limit near the end of the range would be over at once. What is longer than a quarter of the
/// range is for ever, which the largest number stands for.
pub(crate) fn ticks(milliseconds: usize, hz: usize) -> usize {
    const LONGEST: usize = usize::MAX / 4;

    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    // One more, because the present tick has begun already.
    let rest = (rest * hz).div_ceil(1000) + 1;
    match seconds
        .checked_mul(hz)
        .and_then(|all| all.checked_add(rest))
    {
        Some(ticks) if ticks <= LONGEST => ticks,
        _ => usize::MAX,
    }
}
