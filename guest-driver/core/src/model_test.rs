// SPDX-License-Identifier: GPL-2.0

//! The counter and its watchers against a model of what the interface's documentation says of them.

use core::cell::Cell;
use std::{vec, vec::Vec};

use proptest::{collection::vec, prelude::*, sample::Index};

use crate::sysgenid_core::{Generations, Numbers, Refusal, Tracking, Waiting, Wake, Watcher, Word};

/// "Outdated being those that have lived through a change but not yet confirmed the new counter":
/// changes are numbered, and a file remembers the latest that it has confirmed.
#[derive(Clone, Copy, Debug)]
struct File {
    confirmed: usize,
    counter: u32,
    tracking: Tracking,
    /// It has said in this generation that it was ready.
    ready: bool,
}

impl File {
    fn is_tracked(&self) -> bool {
        self.tracking != Tracking::Untracked
    }

    fn is_required(&self) -> bool {
        self.tracking == Tracking::Required
    }
}

/// The documentation in the plainest terms: nothing is kept that can be counted.
#[derive(Debug)]
struct Model {
    word: u32,
    counter: u32,
    changes: usize,
    files: Vec<File>,
    /// Required files that have gone in this generation, outdated.
    lost: usize,
    /// Files that have gone in this generation, ready, and have no successor.
    ready_gone: usize,
}

impl Model {
    fn new(counter: u32) -> Self {
        Self {
            word: counter,
            counter,
            changes: 0,
            files: vec![],
            lost: 0,
            ready_gone: 0,
        }
    }

    fn numbers(&self) -> Numbers {
        let count = |which: &dyn Fn(&&File) -> bool| self.files.iter().filter(which).count();
        let required = count(&|file| file.is_required() && self.is_outdated(file)) + self.lost;
        let ready = count(&|file| file.ready) + self.ready_gone;
        Numbers {
            outdated: self.outdated() as u32,
            required: required as u32,
            ready: ready as u32,
        }
    }

    fn is_outdated(&self, file: &File) -> bool {
        file.confirmed < self.changes
    }

    fn outdated(&self) -> usize {
        let outdated = |file: &&File| file.is_tracked() && self.is_outdated(file);
        self.files.iter().filter(outdated).count()
    }

    fn waiting(&self, file: &File) -> Waiting {
        if self.is_outdated(file) {
            return Waiting::Outdated;
        }
        match self.outdated() {
            0 => Waiting::Done,
            _ => Waiting::Sleep,
        }
    }

    fn change(&mut self, counter: u32) {
        self.word = counter;
        self.counter = counter;
        self.changes += 1;
        (self.lost, self.ready_gone) = (0, 0);
        for file in &mut self.files {
            file.ready = false;
        }
    }

    fn close(&mut self, file: usize) {
        let file = self.files.remove(file);
        self.lost += usize::from(file.is_required() && self.is_outdated(&file));
        self.ready_gone += usize::from(file.ready);
    }

    fn ready(&mut self, file: usize, counter: u32) -> Result<(), Refusal> {
        if self.word != self.counter {
            return Err(Refusal::Moved);
        }
        if counter != self.counter {
            return Err(Refusal::Stale);
        }
        self.lost = 0;
        if !std::mem::replace(&mut self.files[file].ready, true) {
            self.ready_gone = self.ready_gone.saturating_sub(1);
        }
        Ok(())
    }

    fn open(&mut self, tracking: Tracking) {
        self.files.push(File {
            confirmed: self.changes,
            counter: self.counter,
            tracking,
            ready: false,
        });
    }

    fn acknowledge(&mut self, file: usize, counter: u32) -> Result<(), Refusal> {
        if self.word != self.counter {
            return Err(Refusal::Moved);
        }
        if counter != self.counter {
            return Err(Refusal::Stale);
        }
        self.files[file].confirmed = self.changes;
        self.files[file].counter = counter;
        Ok(())
    }

    fn begin(&mut self, seen: u32) -> Result<(), Refusal> {
        if self.word != seen {
            return Err(Refusal::Moved);
        }
        // Behind what was told lies half of the circle.
        let behind = seen.wrapping_sub(self.counter) >= 1 << 31;
        let last = if behind { self.counter } else { seen };
        self.change(if last == u32::MAX { 0 } else { last + 1 });
        Ok(())
    }

    fn force(&mut self, min: u32) -> Result<(), Refusal> {
        if self.word != self.counter {
            return Err(Refusal::Moved);
        }
        if self.counter == u32::MAX {
            return Err(Refusal::AtEnd);
        }
        self.change((self.counter + 1).max(min));
        Ok(())
    }

    fn adopt(&mut self, seen: u32) -> Result<(), Refusal> {
        if self.word != seen {
            return Err(Refusal::Moved);
        }
        if seen > self.counter {
            self.change(seen);
        }
        self.word = self.counter;
        Ok(())
    }
}

/// The counter's word, which the hypervisor may add to just before any access.
struct TestWord {
    value: Cell<u32>,
    /// Number of accesses before that with which the hypervisor comes first.
    accesses_left: Cell<Option<u32>>,
}

impl TestWord {
    fn new(value: u32) -> Self {
        Self {
            value: Cell::new(value),
            accesses_left: Cell::new(None),
        }
    }

    fn add(&self) {
        self.value.set(self.value.get().wrapping_add(1));
    }

    fn access(&self) {
        if self.accesses_left.get() == Some(0) {
            self.add();
        }
        let left = self
            .accesses_left
            .get()
            .and_then(|left| left.checked_sub(1));
        self.accesses_left.set(left);
    }
}

impl Word for TestWord {
    fn load(&self) -> u32 {
        self.access();
        self.value.get()
    }

    fn compare_exchange(&self, old: u32, new: u32) -> bool {
        self.access();
        let equal = self.value.get() == old;
        if equal {
            self.value.set(new);
        }
        equal
    }
}

/// A value near one that matters, or any.
#[derive(Clone, Copy, Debug)]
enum Value {
    Told(i32),
    Word(i32),
    Any(u32),
}

impl Value {
    fn of(self, model: &Model) -> u32 {
        match self {
            Self::Told(more) => model.counter.wrapping_add_signed(more),
            Self::Word(more) => model.word.wrapping_add_signed(more),
            Self::Any(value) => value,
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Open(Tracking),
    Close(Index),
    Track(Index, Tracking),
    Ready(Index, Value),
    Acknowledge(Index, Value),
    Begin(Value),
    Force(Value),
    Adopt(Value),
    HypervisorAdds,
}

fn counter() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(u32::MAX), u32::MAX - 4.., any::<u32>()]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => Just(Value::Told(0)),
        2 => Just(Value::Word(0)),
        2 => (-3..=3).prop_map(Value::Told),
        1 => (-3..=3).prop_map(Value::Word),
        1 => counter().prop_map(Value::Any),
    ]
}

fn tracking() -> impl Strategy<Value = Tracking> {
    prop_oneof![
        1 => Just(Tracking::Untracked),
        1 => Just(Tracking::Tracked),
        2 => Just(Tracking::Required),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    prop_oneof![
        4 => tracking().prop_map(Op::Open),
        2 => index().prop_map(Op::Close),
        3 => (index(), tracking()).prop_map(|(file, tracking)| Op::Track(file, tracking)),
        3 => (index(), value()).prop_map(|(file, value)| Op::Ready(file, value)),
        8 => (index(), value()).prop_map(|(file, value)| Op::Acknowledge(file, value)),
        3 => value().prop_map(Op::Begin),
        3 => value().prop_map(Op::Force),
        1 => value().prop_map(Op::Adopt),
        2 => Just(Op::HypervisorAdds),
    ]
}

/// Both, in step.
struct Pair {
    model: Model,
    word: TestWord,
    generations: Generations,
    watchers: Vec<Watcher>,
}

type Outcome<T> = Result<T, Refusal>;

impl Pair {
    fn new(counter: u32) -> Self {
        Self {
            model: Model::new(counter),
            word: TestWord::new(counter),
            generations: Generations::new(counter),
            watchers: vec![],
        }
    }

    /// The file that an operation is for, if there is any.
    fn file(&self, index: &Index) -> Option<usize> {
        (!self.watchers.is_empty()).then(|| index.index(self.watchers.len()))
    }

    /// What the real one answers.
    fn real(&mut self, op: &Op) -> Outcome<Wake> {
        let all = &mut self.generations;
        match *op {
            Op::Open(tracking) => self.watchers.extend(all.open(tracking)),
            Op::Close(file) => {
                let mut watcher = self.watchers.remove(file.index(self.watchers.len()));
                return Ok(all.close(&mut watcher));
            }
            Op::Track(file, tracking) => {
                return Ok(all.track(file.get_mut(&mut self.watchers), tracking));
            }
            Op::Ready(file, value) => {
                let value = value.of(&self.model);
                let watcher = file.get_mut(&mut self.watchers);
                return all
                    .ready(&self.word, watcher, value)
                    .map(|()| Wake::default());
            }
            Op::Acknowledge(file, value) => {
                let value = value.of(&self.model);
                return all.acknowledge(&self.word, file.get_mut(&mut self.watchers), value);
            }
            Op::Begin(seen) => return all.begin(&self.word, seen.of(&self.model)),
            Op::Force(min) => return all.force(&self.word, min.of(&self.model)),
            Op::Adopt(seen) => {
                let seen = seen.of(&self.model);
                self.word.value.set(seen);
                return all.adopt(&self.word, seen);
            }
            Op::HypervisorAdds => self.word.add(),
        }
        Ok(Wake::default())
    }

    /// What the model answers, where the hypervisor has added to the word `added` times meanwhile.
    fn model(&mut self, op: &Op, added: u32) -> Outcome<()> {
        let model = &mut self.model;
        let len = model.files.len();
        // Named before the hypervisor came, as the real one's were.
        let value = match op {
            Op::Acknowledge(_, value) | Op::Ready(_, value) | Op::Begin(value) => value.of(model),
            Op::Force(value) | Op::Adopt(value) => value.of(model),
            _ => 0,
        };
        if matches!(op, Op::Adopt(_)) {
            model.word = value;
        }
        model.word = model.word.wrapping_add(added);
        match op {
            Op::Open(tracking) => model.open(*tracking),
            Op::Close(file) => model.close(file.index(len)),
            Op::Track(file, tracking) => model.files[file.index(len)].tracking = *tracking,
            Op::Ready(file, _) => return model.ready(file.index(len), value),
            Op::Acknowledge(file, _) => return model.acknowledge(file.index(len), value),
            Op::Begin(_) => return model.begin(value),
            Op::Force(_) => return model.force(value),
            Op::Adopt(_) => return model.adopt(value),
            Op::HypervisorAdds => model.word = model.word.wrapping_add(1),
        }
        Ok(())
    }

    /// Who waits and sleeps, after `op` has taken its file away if it closes one.
    fn sleepers(&self, op: &Op) -> Vec<bool> {
        let mut files = self.model.files.clone();
        if let Op::Close(file) = op {
            files.remove(file.index(files.len()));
        }
        let sleeps = |file: &File| self.model.waiting(file) == Waiting::Sleep;
        files.iter().map(sleeps).collect()
    }

    /// Does `op`, in which the hypervisor adds to the word before access number `race`.
    fn step(&mut self, op: &Op, race: Option<u32>) -> Result<(), TestCaseError> {
        if let Op::Close(file) | Op::Track(file, _) | Op::Ready(file, _) | Op::Acknowledge(file, _) =
            op
            && self.file(file).is_none()
        {
            return Ok(());
        }
        let sleepers = self.sleepers(op);
        let changes = self.model.changes;
        self.word.accesses_left.set(race);
        let real = self.real(op);
        let added = race.is_some() && self.word.accesses_left.take().is_none();
        let model = self.model(op, added.into());
        prop_assert_eq!(real.map(drop), model);
        let wake = real.unwrap_or_default();
        prop_assert_eq!(wake.readers, self.model.changes != changes, "readers");
        self.check_woken(&sleepers, wake)?;
        self.check()
    }

    /// Whoever slept and has an answer now must have been woken.
    fn check_woken(&self, sleepers: &[bool], wake: Wake) -> Result<(), TestCaseError> {
        for (file, slept) in self.model.files.iter().zip(sleepers) {
            let sleeps = self.model.waiting(file) == Waiting::Sleep;
            prop_assert!(!slept || sleeps || wake.waiters, "{file:?} sleeps on");
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (model, real) = (&self.model, &self.generations);
        prop_assert_eq!(self.word.value.get(), model.word, "word");
        prop_assert_eq!(real.told(), model.counter, "told");
        prop_assert_eq!(real.watchers() as usize, model.files.len(), "watchers");
        prop_assert_eq!(real.outdated() as usize, model.outdated(), "outdated");
        prop_assert_eq!(real.numbers(), model.numbers());
        for (watcher, file) in self.watchers.iter().zip(&model.files) {
            prop_assert_eq!(real.is_outdated(watcher), model.is_outdated(file));
            prop_assert_eq!(watcher.acknowledged(), file.counter);
            prop_assert_eq!(watcher.is_tracked(), file.is_tracked());
            prop_assert_eq!(watcher.is_required(), file.is_required());
            prop_assert_eq!(real.wait(watcher), model.waiting(file));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_counter_and_its_watchers_do_what_the_documentation_says(
        start in counter(),
        ops in vec((op(), prop::option::weighted(0.2, 0..3_u32)), 0..60),
    ) {
        let mut pair = Pair::new(start);
        for (op, race) in &ops {
            pair.step(op, *race)?;
        }
    }
}

#[test]
fn a_request_sets_the_counter_to_the_minimum_or_higher() {
    let word = TestWord::new(5);
    let mut all = Generations::new(5);
    assert!(all.force(&word, 8).is_ok());
    assert_eq!(all.told(), 8);
    assert!(all.force(&word, 8).is_ok());
    assert_eq!(all.told(), 9);
}

#[test]
fn a_request_at_the_counters_end_is_refused_only_if_the_hypervisor_has_not_wrapped_it() {
    let word = TestWord::new(u32::MAX);
    let mut all = Generations::new(u32::MAX);
    assert_eq!(all.force(&word, 0), Err(Refusal::AtEnd));
    word.add();
    assert_eq!(all.force(&word, 0), Err(Refusal::Moved));
}
