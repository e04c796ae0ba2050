//! What the tests of several devices share.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::InterruptLine;

/// An interrupt line that remembers its level, counts rising edges and fails on demand.
#[derive(Clone, Default)]
pub(crate) struct TestLine {
    level: Arc<AtomicBool>,
    edges: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl TestLine {
    pub(crate) fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }

    pub(crate) fn rising_edges(&self) -> u64 {
        self.edges.load(Ordering::Relaxed)
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn break_it(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }
}

impl InterruptLine for TestLine {
    fn set_level(&self, asserted: bool) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("the test broke the line"));
        }
        let was = self.level.swap(asserted, Ordering::Relaxed);
        if asserted && !was {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
