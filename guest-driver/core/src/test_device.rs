// SPDX-License-Identifier: GPL-2.0

//! The modules' protocol around their plain logic, over the model checker's locks and atomics.
//!
//! What `sysgenid_device.rs` and `sysgenid_hypervisor.rs` do is done here in the same order, without what
//! has no part in it: uevents, signals, time limits, and a backend's going.
//! The checker switches threads at each access, but makes them all sequentially consistent: a missing
//! barrier is not found.

use core::sync::atomic::Ordering::Relaxed;
use std::{
    sync::atomic::{AtomicU32, AtomicUsize},
    vec::Vec,
};

use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::{
    sysgenid_core::{Generations, Numbers, Refusal, Tracking, Waiting, Wake, Watcher, Word},
    sysgenid_settle::{Id, Machine, Settled},
    test_hypervisor::Hypervisor,
};

/// Runs a scenario in many orders: random ones, and such as few switches make.
pub(crate) fn check(scenario: impl Fn() + Copy + Send + Sync + 'static) {
    shuttle::check_random(scenario, 1000);
    for depth in 1..=4 {
        shuttle::check_pct(scenario, 250, depth);
    }
}

/// What the kernel's random number generator was last reseeded with.
#[derive(Default)]
pub(crate) struct Rng {
    /// The number of restores when that began.
    pub(crate) restores: AtomicU32,
    /// The number of restores that the ID stands for.
    pub(crate) id: AtomicU32,
    pub(crate) times: AtomicUsize,
    /// The number of restores when the second reseeding of a generation began.
    again_in: AtomicU32,
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

/// What the lock is around.
pub(crate) struct State {
    pub(crate) generations: Generations,
    /// The hypervisor's word is in use; before that the counter is in the device's own.
    registered: bool,
    /// What the host was told last.
    numbers: Numbers,
}

impl std::ops::Deref for State {
    type Target = Generations;

    fn deref(&self) -> &Generations {
        &self.generations
    }
}

impl std::ops::DerefMut for State {
    fn deref_mut(&mut self) -> &mut Generations {
        &mut self.generations
    }
}

/// The device and its backend.
pub(crate) struct Device {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) state: Mutex<State>,
    readers: Condvar,
    waiters: Condvar,
    pub(crate) settled: Mutex<Option<Settled>>,
    /// How often the work that follows a generation was queued, and how often it has been done.
    following: Mutex<(usize, usize)>,
    followed: Condvar,
    pub(crate) rng: Rng,
    /// The number of restores that the chain was last called for, and that the host was told of it.
    chained: AtomicU32,
    told_chained: AtomicU32,
    /// Whether the chain has a member that begins a generation itself.
    chain_bumps: bool,
    /// The number of restores when a generation of the hypervisor's was last begun.
    pub(crate) began_in: AtomicU32,
    /// How many of them were begun.
    pub(crate) begun: AtomicU32,
    /// All that were opened, to count again. The checker does not switch threads at this lock.
    opened: std::sync::Mutex<Vec<Shared>>,
}

impl Device {
    /// The device, not started yet.
    pub(crate) fn new(hypervisor: Hypervisor) -> Arc<Self> {
        Self::with_chain(hypervisor, false)
    }

    /// The same, with a member of the kernel's chain that begins a generation when it is called.
    pub(crate) fn with_chain(hypervisor: Hypervisor, chain_bumps: bool) -> Arc<Self> {
        let counter = hypervisor.load();
        Arc::new(Self {
            hypervisor,
            state: Mutex::new(State {
                generations: Generations::new(counter),
                registered: false,
                numbers: Numbers::default(),
            }),
            following: Mutex::new((0, 0)),
            followed: Condvar::new(),
            chained: AtomicU32::new(0),
            told_chained: AtomicU32::new(0),
            chain_bumps,
            readers: Condvar::new(),
            waiters: Condvar::new(),
            settled: Mutex::new(None),
            rng: Rng::default(),
            began_in: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            opened: std::sync::Mutex::default(),
        })
    }

    pub(crate) fn started(hypervisor: Hypervisor) -> Arc<Self> {
        let device = Self::new(hypervisor);
        device.start();
        device
    }

    /// Returns the counter that programs are shown first, and the restores at the reseeding before.
    pub(crate) fn start(&self) -> (u32, u32) {
        let mut settled = self.settled.lock().unwrap();
        let mut adopted = None;
        let started = Settled::start(self, |seen| {
            let reseeded_in = self.rng_restores();
            let moved_in = self.adopt(seen);
            if let Some(moved_in) = moved_in {
                adopted = Some((seen, reseeded_in));
                if self.hypervisor.keeps_counter {
                    assert_eq!(reseeded_in, moved_in, "shown before the reseeding");
                }
            }
            Ok::<bool, ()>(moved_in.is_some())
        });
        *settled = Some(started.unwrap());
        drop(settled);
        self.settle();
        adopted.unwrap()
    }

    /// Registers the backend; the restores when the word was found to be `seen`.
    fn adopt(&self, seen: u32) -> Option<u32> {
        let mut state = self.state.lock().unwrap();
        let wake = state.adopt(&self.hypervisor, seen).ok()?;
        state.registered = true;
        let moved_in = self.hypervisor.moved_in.load(Relaxed);
        self.finish(state, wake);
        Some(moved_in)
    }

    /// What a thread of the kernel's does after a new generation, as often as it was queued.
    pub(crate) fn follow(&self) {
        let queued = self.following.lock().unwrap().0;
        let id = self.settled_id();
        let mut restores = [0; 4];
        if let Some(id) = id {
            restores.copy_from_slice(&id[..4]);
            // No lock is held.
            self.chained.store(u32::from_ne_bytes(restores), Relaxed);
            if self.chain_bumps {
                self.force(0).unwrap();
            }
            if self.settled_id() == Some(id) {
                self.told_chained
                    .store(u32::from_ne_bytes(restores), Relaxed);
            }
        }
        let settled = self.settled.lock().unwrap();
        self.rng.again_in.store(self.hypervisor.restores(), Relaxed);
        drop(settled);
        self.following.lock().unwrap().1 = queued;
        self.followed.notify_all();
    }

    fn settled_id(&self) -> Option<Id> {
        let settled = self.settled.lock().unwrap();
        settled.as_ref().and_then(|settled| settled.present(self))
    }

    /// Waits until that has been done.
    fn wait_for_following(&self) {
        let mut following = self.following.lock().unwrap();
        let queued = following.0;
        while following.1 < queued {
            following = self.followed.wait(following).unwrap();
        }
    }

    /// An agent has finished.
    pub(crate) fn ready(&self, watcher: &Shared, counter: u32) -> Result<(), Failure> {
        loop {
            self.wait_for_following();
            let mut state = self.lock();
            let mut watcher = watcher.lock().unwrap();
            let result = state
                .generations
                .ready(&self.hypervisor, &mut watcher, counter);
            drop(watcher);
            match result {
                Ok(()) => {
                    let (again, began) = (&self.rng.again_in, &self.began_in);
                    let (again, began) = (again.load(Relaxed), began.load(Relaxed));
                    assert!(
                        again >= began,
                        "ready in {began}, reseeded again in {again}"
                    );
                    self.finish(state, Wake::default());
                    return Ok(());
                }
                Err(Refusal::Moved) => {}
                Err(_) => return Err(Failure::Stale),
            }
        }
    }

    /// The number of restores of whose chain the host knows.
    pub(crate) fn told_chained(&self) -> u32 {
        self.told_chained.load(Relaxed)
    }

    /// What the host was told of the watchers.
    pub(crate) fn numbers(&self) -> Numbers {
        self.state.lock().unwrap().numbers
    }

    /// The notification of a change, and what comes before each call.
    pub(crate) fn settle(&self) -> bool {
        let mut settled = self.settled.lock().unwrap();
        settled.as_mut().is_some_and(|settled| settled.settle(self))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        loop {
            let registered = self.state.lock().unwrap().registered;
            if registered {
                // The first one is made to wait until the start is over.
                self.settle();
            }
            let state = self.state.lock().unwrap();
            if !registered || self.hypervisor.load() == state.told() {
                return state;
            }
        }
    }

    pub(crate) fn open(&self, tracked: bool) -> Shared {
        let tracking = match tracked {
            false => Tracking::Untracked,
            true => Tracking::Required,
        };
        let watcher = self.lock().open(tracking).unwrap();
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
            let result = state
                .generations
                .acknowledge(&self.hypervisor, &mut watcher, counter);
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
        let tracking = match tracked {
            false => Tracking::Untracked,
            true => Tracking::Tracked,
        };
        let wake = state.track(&mut watcher.lock().unwrap(), tracking);
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

    pub(crate) fn finish(&self, mut state: MutexGuard<'_, State>, wake: Wake) {
        state.numbers = state.generations.numbers();
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

    fn reseed(&self, id: &Id) -> bool {
        let [a, b, c, d, ..] = *id;
        let rng = &self.rng;
        rng.id.store(u32::from_ne_bytes([a, b, c, d]), Relaxed);
        // The earliest that the generator may have taken anything from.
        rng.restores.store(self.hypervisor.restores(), Relaxed);
        rng.times.fetch_add(1, Relaxed);
        self.following.lock().unwrap().0 += 1;
        true
    }

    fn reseeded(&self, _counter: u32) {
        unreachable!("it always is at once");
    }

    fn adjust(&self) {
        // Each restore is told once at most.
        let (restores, begun) = (self.hypervisor.restores(), self.begun.load(Relaxed));
        assert!(restores > begun, "a fork that was none");
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
        self.begun.fetch_add(1, Relaxed);
        check_forwards(before, state.told());
        self.finish(state, wake);
        true
    }
}

pub(crate) fn check_forwards(before: u32, after: u32) {
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

    /// How many generations of the hypervisor's were begun.
    pub(crate) fn began(&self) -> u32 {
        self.begun.load(Relaxed)
    }

    pub(crate) fn rng_restores(&self) -> u32 {
        self.rng.restores.load(Relaxed)
    }

    pub(crate) fn reseeded(&self) -> usize {
        self.rng.times.load(Relaxed)
    }
}
