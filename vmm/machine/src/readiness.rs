//! How far a machine's guest has come since the resume, and the gate that keeps a restored one from its peers until then.
//!
//! | stage | when | what the gate opens |
//! |---|---|---|
//! | identity | reseeded, reached, chained; agents have done their first stage, if there ever was one | networks; the guest's connections to the host |
//! | service | the guest has adapted as a whole | the host's connections to the guest |
//!
//! The stages are the guest's word. A guest that lies opens its own gate, and no other one.
//!
//! The guest's driver reports from a vCPU's thread, which does nothing but take note here. The event loop opens what is to be opened, and
//! clients of the API look at a copy: nobody waits for anybody.

mod stages;
#[cfg(test)]
mod stages_test;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmgenie_devices::sgen::DriverReport;

use stages::Stages;
pub use stages::{Stage, Todo, Told};

use crate::metrics::MACHINE;
use crate::request::Gate;

/// What the event loop, the vCPUs and the API share of it.
#[derive(Debug, Default)]
pub struct Readiness {
    stages: Mutex<Stages>,
    /// There is a gate that may still have to be opened: looked at in each turn of the event loop.
    pending: AtomicBool,
}

impl Readiness {
    /// A machine comes, which has not run yet. If it came out of a snapshot as another machine its stages are counted, and it may
    /// have a gate.
    pub fn begin(&self, counts: bool, gate: Option<Gate>) {
        *self.lock() = Stages::new(counts, gate);
        self.pending.store(gate.is_some(), Ordering::Release);
    }

    /// The vCPUs run from now on. It is the machine that calls this and the next two.
    pub fn resumed(&self) {
        self.lock().resumed(Instant::now());
    }

    /// The vCPUs stand still.
    pub fn paused(&self) {
        self.lock().paused(Instant::now());
    }

    /// The guest's driver has told something. True if the event loop has something to do.
    pub fn told(&self, report: &DriverReport) -> bool {
        self.act(|stages| stages.told(report, Instant::now()))
    }

    /// Whether [`Self::todo`] may have something, now or later.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// What the event loop has to do next. It is told each thing once, and asks until there is nothing.
    pub fn todo(&self) -> Option<Todo> {
        let todo = self.act(|stages| stages.todo(Instant::now()));
        if let Some(Todo::TimedOut(_)) = todo {
            MACHINE.restore.gate_timeouts.inc();
        }
        todo
    }

    /// How long the event loop may sleep before [`Self::todo`] has something though nobody calls.
    pub fn patience(&self) -> Option<Duration> {
        self.lock().patience(Instant::now())
    }

    /// How far the guest has come.
    pub fn now(&self) -> Told {
        self.lock().now()
    }

    /// Does something, and counts what of it happened for the first time.
    fn act<T>(&self, action: impl FnOnce(&mut Stages) -> T) -> T {
        let mut stages = self.lock();
        let before = stages.now();
        let done = action(&mut stages);
        let after = stages.now();
        self.pending.store(stages.is_pending(), Ordering::Release);
        drop(stages);
        if after.counts {
            count(&before, &after);
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Stages> {
        // Nothing in there panics half way.
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(before: &Told, after: &Told) {
    let metrics = &MACHINE.restore;
    for (histogram, before, after) in [
        (
            &metrics.reseeded_us,
            before.reseeded_after,
            after.reseeded_after,
        ),
        (
            &metrics.identity_us,
            before.identity_after,
            after.identity_after,
        ),
        (
            &metrics.adapted_us,
            before.adapted_after,
            after.adapted_after,
        ),
        (&metrics.ready_us, before.service_after, after.service_after),
    ] {
        if let (None, Some(after)) = (before, after) {
            histogram.record(after);
        }
    }
}
