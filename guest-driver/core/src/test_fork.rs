// SPDX-License-Identifier: GPL-2.0

//! The fork point over the model checker's locks: what `sysgenid_fork.rs` does, in the same order.

use core::{
    cell::{Cell, RefCell},
    sync::atomic::Ordering::Relaxed,
};

use shuttle::{
    sync::{MutexGuard, RwLock},
    thread,
};

use crate::{
    sysgenid_core::{Wake, Word},
    sysgenid_settle::{Answer, Id, Machine, Settled, Still, Stood},
    test_device::{Device, State, check_forwards},
};

/// The CPUs: whoever runs has it for reading, and whoever stops all others for writing.
pub(crate) type Cpus = RwLock<()>;

/// What is done when the machine stands.
pub(crate) type Stand = fn(&mut Settled, &Standing<'_>) -> Stood;

/// What the hypervisor does before it is looked at for the so many-th time.
pub(crate) type Before<'a> = &'a dyn Fn(u32);

/// A machine that stands still.
pub(crate) struct Standing<'a> {
    device: &'a Device,
    state: RefCell<MutexGuard<'a, State>>,
    wake: Cell<Wake>,
    before: Before<'a>,
    looks: Cell<u32>,
    /// How often it asks.
    patience: Cell<u32>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stood: Stood,
    /// How often the hypervisor was looked at.
    pub(crate) looks: u32,
}

impl Device {
    /// Has the machine stand still until it has asked so many times who it is. `stand` is
    /// [`Settled::stand`], or what shall be shown to be wrong.
    pub(crate) fn fork_point(
        &self,
        cpus: &Cpus,
        patience: u32,
        before: Before<'_>,
        stand: Stand,
    ) -> Outcome {
        let mut settled = self.settled.lock().unwrap();
        let settled = settled.as_mut().unwrap();
        settled.settle(self);
        let state = self.state.lock().unwrap();
        let others = cpus.write().unwrap();
        let standing = Standing {
            device: self,
            state: RefCell::new(state),
            wake: Cell::default(),
            before,
            looks: Cell::new(0),
            patience: Cell::new(patience),
        };
        let stood = stand(settled, &standing);
        let looks = standing.looks.get();
        drop(others);
        self.finish(standing.state.into_inner(), standing.wake.get());
        Outcome { stood, looks }
    }

    /// The same, but for the state, which is locked when all others stand already.
    pub(crate) fn fork_point_without_the_state(&self, cpus: &Cpus) {
        let _settled = self.settled.lock().unwrap();
        let _others = cpus.write().unwrap();
        let _state = self.state.lock().unwrap();
    }

    /// A request of a program's, which has the state locked while it loses its CPU and gets one.
    pub(crate) fn preempted_with_the_state(&self, cpus: &Cpus) {
        let state = self.state.lock().unwrap();
        drop(cpus.read().unwrap());
        drop(state);
    }

    /// What a program's instruction may rely on after each restore but those that came where nobody
    /// stood still.
    pub(crate) fn check_instruction(&self) {
        let restores = self.hypervisor.restores();
        assert_eq!(self.rng_restores(), restores, "reseeded in");
        assert_eq!(self.rng.id.load(Relaxed), restores, "reseeded with");
        assert_eq!(self.began_in.load(Relaxed), restores, "moved in");
    }
}

impl Standing<'_> {
    fn look(&self) {
        self.looks.set(self.looks.get() + 1);
        (self.before)(self.looks.get());
    }
}

impl Machine for Standing<'_> {
    fn id(&self) -> Id {
        self.look();
        self.device.hypervisor.id()
    }

    fn counter(&self) -> u32 {
        self.look();
        self.device.hypervisor.load()
    }

    fn told(&self) -> u32 {
        self.state.borrow().told()
    }

    fn reseed(&self, id: &Id) -> bool {
        self.look();
        self.device.reseed(id)
    }

    fn reseeded(&self, counter: u32) {
        self.look();
        assert_eq!(counter, self.told());
    }

    fn adjust(&self) {
        self.device.adjust();
    }

    fn begin(&self, seen: u32) -> bool {
        self.look();
        let (device, mut state) = (self.device, self.state.borrow_mut());
        let before = state.told();
        let Ok(wake) = state.begin(&device.hypervisor, seen) else {
            return false;
        };
        device
            .began_in
            .store(device.hypervisor.moved_in.load(Relaxed), Relaxed);
        device.begun.fetch_add(1, Relaxed);
        check_forwards(before, state.told());
        self.wake.set(wake);
        true
    }
}

impl Still for Standing<'_> {
    fn stand(&self) {
        self.look();
        self.device.hypervisor.stands();
    }

    fn answer(&self) -> Answer {
        self.look();
        self.device.hypervisor.answer()
    }

    fn is_late(&self) -> bool {
        thread::yield_now();
        let left = self.patience.get().saturating_sub(1);
        self.patience.set(left);
        left == 0
    }

    fn give_up(&self) {
        self.look();
        self.device.hypervisor.say(Answer::Aborted);
    }
}
