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

    /// Mixes an ID into the kernel's random number generator and has it reseeded. Returns whether
    /// it was: before the generator is ready it is not.
    fn reseed(&self, id: &Id) -> bool;

    /// Tells the hypervisor that the generator has been reseeded after all, for `counter`.
    fn reseeded(&self, counter: u32);

    /// Puts right what else the kernel has of an older generation: after the reseeding and before
    /// anybody is told of the new one. Process context, may sleep; it may come more than once.
    fn adjust(&self) {}

    /// Has the counter moved from `seen` by one and the watchers told. Returns whether it was
    /// `seen`.
    fn begin(&self, seen: u32) -> bool;
}

/// What the hypervisor says to a machine that stands still for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet: the snapshot is taken while it says this.
    Pending,
    /// The snapshot was taken of it.
    Original,
    /// It was restored from that.
    Clone,
    /// There is no such request any more.
    Aborted,
    /// Nothing that is known: it was restored by a hypervisor that has no such device.
    Unknown,
}

/// How a machine goes on that stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stood {
    /// As the one that it was.
    Original,
    /// As another one: there is a new generation.
    Clone,
    /// As the one that it was; nothing was taken.
    Aborted,
}

/// A machine whose CPUs all stand still in the kernel. Nothing of this may sleep. Nobody is told of
/// what it begins before it goes on.
pub(crate) trait Still: Machine {
    /// Tells the hypervisor that it stands.
    fn stand(&self);

    /// What the hypervisor says now. Every machine that goes on from here asks again.
    fn answer(&self) -> Answer;

    /// Whether it has stood for too long.
    fn is_late(&self) -> bool;

    /// Tells the hypervisor that it does not wait any more. The answer after that is the last one.
    fn give_up(&self);
}

/// The generation that was last dealt with. The caller holds a lock around it.
#[derive(Debug)]
pub(crate) struct Settled {
    id: Id,
    /// Whether the generator has been reseeded in it.
    reseeded: bool,
}

impl Settled {
    /// Takes the machine as it is now, with no older generation to tell of: the kernel's random
    /// number generator is reseeded, and the counter stays. `adopt` shows the machine's counter to
    /// programs, if it still is what it was before the reseeding, and says whether.
    ///
    /// A notification that comes before is heard by nobody. So the caller settles afterwards.
    pub(crate) fn start<E>(
        machine: &impl Machine,
        mut adopt: impl FnMut(u32) -> Result<bool, E>,
    ) -> Result<Self, E> {
        loop {
            let counter = machine.counter();
            let id = machine.id();
            let reseeded = machine.reseed(&id);
            if adopt(counter)? {
                return Ok(Self { id, reseeded });
            }
        }
    }

    /// The ID of the generation, if it is the machine's as well.
    pub(crate) fn present(&self, machine: &impl Machine) -> Option<Id> {
        (machine.id() == self.id && machine.counter() == machine.told()).then_some(self.id)
    }

    /// Deals with what happened since: reseeds the kernel's random number generator, and moves the
    /// counter after that. Returns whether anything had happened.
    ///
    /// The counter is looked at before the ID and moved from that value only. So whoever sees it
    /// moved knows that the reseeding came in the same generation.
    pub(crate) fn settle(&mut self, machine: &impl Machine) -> bool {
        let mut anything = false;
        loop {
            let told = machine.told();
            let counter = machine.counter();
            let id = machine.id();
            let settled = id == self.id && counter == told;
            if settled && self.reseeded {
                return anything;
            }
            if machine.told() != told {
                // A request has moved the counter between the two looks, and no hypervisor.
                continue;
            }
            self.reseeded = machine.reseed(&id);
            if settled {
                if self.reseeded {
                    machine.reseeded(counter);
                }
                return anything;
            }
            machine.adjust();
            if machine.begin(counter) {
                self.id = id;
                anything = true;
            }
        }
    }

    /// Stands still until the hypervisor has taken a snapshot, and deals with what happened
    /// meanwhile before anything else of the machine goes on.
    ///
    /// The ID decides who goes on, and not the answer: it is right as well where the machine is
    /// restored as the same one, restored again in the midst of this, or by another hypervisor.
    pub(crate) fn stand(&mut self, machine: &impl Still) -> Stood {
        machine.stand();
        let answer = loop {
            match machine.answer() {
                Answer::Pending if machine.is_late() => {
                    machine.give_up();
                    break machine.answer();
                }
                Answer::Pending => {}
                answer => break answer,
            }
        };
        match answer {
            _ if self.renew(machine) => Stood::Clone,
            Answer::Aborted | Answer::Pending => Stood::Aborted,
            _ => Stood::Original,
        }
    }

    /// As [`Settled::settle`], with a reseeding in any case: whoever has the snapshot must not be
    /// able to tell what the original draws.
    fn renew(&mut self, machine: &impl Still) -> bool {
        let (mut anything, mut renewed) = (false, false);
        loop {
            let told = machine.told();
            let counter = machine.counter();
            let id = machine.id();
            let settled = id == self.id && counter == told;
            if settled && renewed {
                return anything;
            }
            self.reseeded = machine.reseed(&id);
            renewed = true;
            if settled {
                continue;
            }
            machine.adjust();
            if machine.begin(counter) {
                self.id = id;
                anything = true;
                if self.reseeded {
                    machine.reseeded(machine.told());
                }
            }
        }
    }
}
