// SPDX-License-Identifier: GPL-2.0

//! How a new generation of the hypervisor becomes one of the counter, without a kernel.
//!
//! Like `sysgenid_core.rs` it needs nothing but `core`, and is model-checked on the host. The
//! machine may be snapshotted and restored between any two instructions; then the ID is another
//! one and, where the hypervisor keeps the counter, that is one more.

/// The 16 bytes that name a generation.
pub(crate) type Id = [u8; 16];

/// What settling has to do with.
pub(crate) trait Machine {
    /// The hypervisor's ID as it is now.
    fn id(&self) -> Id;

    /// The counter as it is now.
    fn counter(&self) -> u32;

    /// The counter that the watchers were told.
    fn told(&self) -> u32;

    /// Mixes an ID into the kernel's random number generator and has it reseeded.
    fn reseed(&self, id: &Id);

    /// Has the counter moved from `seen` by one and the watchers told. Returns whether it was
    /// `seen`.
    fn begin(&self, seen: u32) -> bool;
}

/// The generation that was last dealt with. The caller holds a lock around it.
#[derive(Debug)]
pub(crate) struct Settled {
    id: Id,
}

impl Settled {
    /// Takes the machine as it is now, with no older generation to tell of: the kernel's random
    /// number generator is reseeded, and the counter stays. `greet` tells the hypervisor for which
    /// counter that was done.
    ///
    /// A notification that comes before is heard by nobody. So what happened meanwhile is dealt
    /// with.
    pub(crate) fn start(machine: &impl Machine, greet: impl FnOnce(u32)) -> Self {
        let (mut settled, counter) = Self::new(machine);
        greet(counter);
        settled.settle(machine);
        settled
    }

    fn new(machine: &impl Machine) -> (Self, u32) {
        loop {
            let counter = machine.counter();
            let id = machine.id();
            machine.reseed(&id);
            if machine.counter() == counter {
                return (Self { id }, counter);
            }
        }
    }

    /// Deals with what happened since: reseeds the kernel's random number generator, and moves the
    /// counter after that. Returns whether anything had happened.
    ///
    /// The counter is looked at before the ID and moved from that value only. So whoever sees it
    /// moved knows that the reseeding came in the same generation.
    pub(crate) fn settle(&mut self, machine: &impl Machine) -> bool {
        let mut anything = false;
        loop {
            let counter = machine.counter();
            let id = machine.id();
            if id == self.id && counter == machine.told() {
                return anything;
            }
            machine.reseed(&id);
            if machine.begin(counter) {
                self.id = id;
                anything = true;
            }
        }
    }
}
