// SPDX-License-Identifier: GPL-2.0

//! The modules' protocol around their plain logic, over the model checker's locks and atomics.
//!
//! What `sysgenid_device.rs` and `sysgenid_vmgenid.rs` do is done here in the same order, without what
//! has no part in it: the own page, uevents, signals, time limits, and a backend's coming and going.
//! The checker switches threads at each access, but makes them all sequentially consistent: a missing
//! barrier is not found.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::{
    sync::atomic::{AtomicU32, AtomicUsize},
    vec::Vec,
};

use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, atomic::AtomicU64};

use crate::{
    sysgenid_core::{Generations, Refusal, Waiting, Wake, Watcher, Word},
    sysgenid_settle::{Id, Machine, Settled},
};

/// Runs a scenario in many orders: random ones, and such as few switches make.
pub(crate) fn check(scenario: impl Fn() + Copy + Send + Sync + 'static) {
    shuttle::check_random(scenario, 1000);
    for depth in 1..=4 {
        shuttle::check_pct(scenario, 250, depth);
    }
}

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
    keeps_counter: bool,
    /// The number of restores when the guest last moved the counter.
    moved_in: AtomicU32,
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

    fn id(&self) -> Id {
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

/// What the kernel's random number generator was last reseeded with.
#[derive(Default)]
struct Rng {
    /// The number of restores when that began.
    restores: AtomicU32,
    /// The number of restores that the ID stands for.
    id: AtomicU32,
    times: AtomicUsize,
}

/// A watcher, as its file shares it.
pub(crate) type Shared = Arc<Mutex<Watcher>>;

/// Why a call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// EINVAL
    Stale,
    /// EOVERFLOW
    AtEnd,
    /// EINTR
    Outdated,
}

/// The device and its backend.
pub(crate) struct Device {
    pub(crate) hypervisor: Hypervisor,
    state: Mutex<Generations>,
    readers: Condvar,
    waiters: Condvar,
    settled: Mutex<Option<Settled>>,
    rng: Rng,
    /// The number of restores when a generation of the hypervisor's was last begun.
    began_in: AtomicU32,
    /// All that were opened, to count again. The checker does not switch threads at this lock.
    opened: std::sync::Mutex<Vec<Shared>>,
}

impl Device {
    /// The device, not started yet.
    pub(crate) fn new(hypervisor: Hypervisor) -> Arc<Self> {
        let counter = hypervisor.load();
        Arc::new(Self {
            hypervisor,
            state: Mutex::new(Generations::new(counter)),
            readers: Condvar::new(),
            waiters: Condvar::new(),
            settled: Mutex::new(None),
            rng: Rng::default(),
            began_in: AtomicU32::new(0),
            opened: std::sync::Mutex::default(),
        })
    }

    pub(crate) fn started(hypervisor: Hypervisor) -> Arc<Self> {
        let device = Self::new(hypervisor);
        device.start();
        device
    }

    /// Returns the counter that the hypervisor is greeted with, and the restores at the reseeding before.
    pub(crate) fn start(&self) -> (u32, u32) {
        let mut settled = self.settled.lock().unwrap();
        let mut greeted = None;
        *settled = Some(Settled::start(self, |counter| {
            greeted = Some((counter, self.rng_restores()));
        }));
        greeted.unwrap()
    }

    /// The notification of a change, and what comes before each call.
    pub(crate) fn settle(&self) -> bool {
        let mut settled = self.settled.lock().unwrap();
        settled.as_mut().is_some_and(|settled| settled.settle(self))
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        loop {
            self.settle();
            let state = self.state.lock().unwrap();
            if self.hypervisor.load() == state.told() {
                return state;
            }
        }
    }

    pub(crate) fn open(&self, tracked: bool) -> Shared {
        let watcher = self.lock().open(tracked).unwrap();
        let watcher = Arc::new(Mutex::new(watcher));
        self.opened.lock().unwrap().push(watcher.clone());
        watcher
    }

    pub(crate) fn close(&self, watcher: &Shared) {
        // The file's last user has its watcher alone; here the recount looks at it, too.
        let mut state = self.state.lock().unwrap();
        let wake = state.close(&mut watcher.lock().unwrap());
        self.finish(state, wake);
    }

    pub(crate) fn acknowledge(&self, watcher: &Shared, counter: u32) -> Result<(), Failure> {
        loop {
            let mut state = self.lock();
            let mut watcher = watcher.lock().unwrap();
            let result = state.acknowledge(&self.hypervisor, &mut watcher, counter);
            drop(watcher);
            match result {
                Ok(wake) => {
                    self.finish(state, wake);
                    return Ok(());
                }
                Err(Refusal::Moved) => {}
                Err(_) => return Err(Failure::Stale),
            }
        }
    }

    pub(crate) fn track(&self, watcher: &Shared, tracked: bool) {
        let mut state = self.lock();
        let wake = state.track(&mut watcher.lock().unwrap(), tracked);
        self.finish(state, wake);
    }

    pub(crate) fn look(&self, watcher: &Shared) -> (bool, u32) {
        let state = self.lock();
        let outdated = state.is_outdated(&watcher.lock().unwrap());
        (outdated, state.told())
    }

    pub(crate) fn read(&self, watcher: &Shared) -> u32 {
        let mut state = self.lock();
        loop {
            if state.is_outdated(&watcher.lock().unwrap()) {
                return state.told();
            }
            drop(self.readers.wait(state).unwrap());
            state = self.lock();
        }
    }

    pub(crate) fn wait(&self, watcher: &Shared) -> Result<(), Failure> {
        let mut state = self.lock();
        loop {
            let waiting = state.wait(&watcher.lock().unwrap());
            self.check_waiting(&state, watcher, waiting);
            match waiting {
                Waiting::Done => return Ok(()),
                Waiting::Outdated => return Err(Failure::Outdated),
                Waiting::Sleep => {}
            }
            drop(self.waiters.wait(state).unwrap());
            state = self.lock();
        }
    }

    pub(crate) fn force(&self, min: u32) -> Result<(), Failure> {
        loop {
            let mut state = self.lock();
            let before = state.told();
            match state.force(&self.hypervisor, min) {
                Ok(wake) => {
                    check_forwards(before, state.told());
                    self.finish(state, wake);
                    return Ok(());
                }
                Err(Refusal::Moved) => {}
                Err(_) => return Err(Failure::AtEnd),
            }
        }
    }

    fn finish(&self, state: MutexGuard<'_, Generations>, wake: Wake) {
        drop(state);
        if wake.readers {
            self.readers.notify_all();
        }
        if wake.waiters {
            self.waiters.notify_all();
        }
    }
}

impl Machine for Device {
    fn id(&self) -> Id {
        self.hypervisor.id()
    }

    fn counter(&self) -> u32 {
        let _state = self.state.lock().unwrap();
        self.hypervisor.load()
    }

    fn told(&self) -> u32 {
        self.state.lock().unwrap().told()
    }

    fn reseed(&self, id: &Id) {
        let [a, b, c, d, ..] = *id;
        let rng = &self.rng;
        rng.id.store(u32::from_ne_bytes([a, b, c, d]), Relaxed);
        // The earliest that the generator may have taken anything from.
        rng.restores.store(self.hypervisor.restores(), Relaxed);
        rng.times.fetch_add(1, Relaxed);
    }

    fn begin(&self, seen: u32) -> bool {
        let mut state = self.state.lock().unwrap();
        let before = state.told();
        let Ok(wake) = state.begin(&self.hypervisor, seen) else {
            return false;
        };
        let moved_in = self.hypervisor.moved_in.load(Relaxed);
        if self.hypervisor.keeps_counter {
            let reseeded_in = self.rng.restores.load(Relaxed);
            assert_eq!(reseeded_in, moved_in, "reseeded in an older generation");
        }
        self.began_in.store(moved_in, Relaxed);
        check_forwards(before, state.told());
        self.finish(state, wake);
        true
    }
}

fn check_forwards(before: u32, after: u32) {
    let step = after.wrapping_sub(before);
    assert!(0 < step && step < 1 << 31, "from {before} to {after}");
}

/// What holds whatever the order was.
impl Device {
    /// A waiting one's answer against the watchers, one by one.
    fn check_waiting(&self, all: &Generations, watcher: &Shared, waiting: Waiting) {
        let is_outdated = |one: &Shared| all.is_outdated(&one.lock().unwrap());
        let opened = self.opened.lock().unwrap().clone();
        let others = opened
            .iter()
            .filter(|one| one.lock().unwrap().is_tracked() && is_outdated(one))
            .count();
        let right = match others {
            _ if is_outdated(watcher) => Waiting::Outdated,
            0 => Waiting::Done,
            _ => Waiting::Sleep,
        };
        assert_eq!(waiting, right, "with {others} outdated");
    }

    /// The watchers were told of the last restore after the reseeding in it, and nothing is left to do.
    /// The caller has settled since, and runs alone.
    pub(crate) fn check_settled(&self) {
        let restores = self.hypervisor.restores();
        assert_eq!(self.rng.id.load(Relaxed), restores, "reseeded with");
        assert_eq!(self.rng.restores.load(Relaxed), restores, "reseeded in");
        assert_eq!(self.began_in.load(Relaxed), restores, "told in");
        let before = (self.told(), self.reseeded());
        assert_eq!(before.0, self.hypervisor.load(), "told");
        assert!(!self.settle(), "something was left");
        assert_eq!((self.told(), self.reseeded()), before, "done again");
    }

    pub(crate) fn rng_restores(&self) -> u32 {
        self.rng.restores.load(Relaxed)
    }

    pub(crate) fn reseeded(&self) -> usize {
        self.rng.times.load(Relaxed)
    }
}
