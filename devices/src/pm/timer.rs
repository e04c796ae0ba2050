//! The PM timer, without the event that it makes.

use super::{MonotonicClock, TIMER_HZ};

const NANOS_PER_SEC: u128 = 1_000_000_000;
/// Log2 of the ticks between two changes of the timer's most significant bit.
const TIMER_EDGE_SHIFT: u32 = 31;

/// The PM timer (section 4.8.2.1): counts up, and wraps after 20 minutes.
pub(super) struct Timer {
    clock: Box<dyn MonotonicClock>,
    /// The clock, and how old the timer was, when its age was last set.
    base_now: u64,
    base_age: u64,
    /// It stands still at that age otherwise.
    runs: bool,
    /// Edges that have become events already.
    seen_edges: u128,
}

impl Timer {
    pub(super) fn new(clock: Box<dyn MonotonicClock>) -> Self {
        let base_now = clock.now_ns();
        Self {
            clock,
            base_now,
            base_age: 0,
            runs: true,
            seen_edges: 0,
        }
    }

    /// Nanoseconds since the timer was 0.
    pub(super) fn age_ns(&self) -> u64 {
        if !self.runs {
            return self.base_age;
        }
        let since = self.clock.now_ns().saturating_sub(self.base_now);
        self.base_age.saturating_add(since)
    }

    pub(super) fn set_age(&mut self, age_ns: u64) {
        self.base_now = self.clock.now_ns();
        // A file may say anything; beyond this age, 146 years, there would soon be no next edge to count to.
        self.base_age = age_ns.min(1 << 62);
        self.seen_edges = ticks(self.base_age) >> TIMER_EDGE_SHIFT;
    }

    pub(super) fn runs(&self) -> bool {
        self.runs
    }

    /// The edges that have not become events yet still do.
    pub(super) fn let_run(&mut self, run: bool) {
        self.base_age = self.age_ns();
        self.base_now = self.clock.now_ns();
        self.runs = run;
    }

    /// The register.
    pub(super) fn value(&self) -> u32 {
        // A 32-bit counter: the upper bits are not there.
        ticks(self.age_ns()) as u32
    }

    /// Whether the most significant bit has changed since the last [`Self::take_edge`].
    pub(super) fn edge_is_due(&self) -> bool {
        ticks(self.age_ns()) >> TIMER_EDGE_SHIFT != self.seen_edges
    }

    pub(super) fn take_edge(&mut self) -> bool {
        let edges = ticks(self.age_ns()) >> TIMER_EDGE_SHIFT;
        std::mem::replace(&mut self.seen_edges, edges) != edges
    }

    /// When the most significant bit changes next, in the clock's nanoseconds.
    pub(super) fn next_edge_ns(&self) -> u64 {
        let tick = (self.seen_edges + 1) << TIMER_EDGE_SHIFT;
        // Rounded up: at that nanosecond the tick has been counted.
        let age = (tick * NANOS_PER_SEC).div_ceil(u128::from(TIMER_HZ));
        let wait = age.saturating_sub(u128::from(self.base_age));
        u64::try_from(u128::from(self.base_now) + wait).unwrap_or(u64::MAX)
    }
}

/// Ticks of the PM timer in `ns` nanoseconds.
fn ticks(ns: u64) -> u128 {
    u128::from(ns) * u128::from(TIMER_HZ) / NANOS_PER_SEC
}
