//! The state machine of it: what was told and what was done, and what follows. It has no clock, no lock and no thread.

use std::time::{Duration, Instant};

use vmgenie_devices::sgen::DriverReport;

use crate::request::{Gate, OnTimeout};

/// How far a guest has come with its generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It may take itself for another machine.
    #[default]
    None,
    /// It knows who it is.
    Identity,
    /// It has adapted as a whole.
    Service,
}

/// What the event loop has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Open the networks, and let the guest connect to the host.
    OpenNetworks,
    /// Let the host connect to the guest.
    OpenToHost,
    /// The guest has not adapted in time. With [`OnTimeout::Open`], all is opened next.
    TimedOut(OnTimeout),
}

/// How far it has come. All times are those in which the vCPUs ran, since they first did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// The machine came out of a snapshot as another one, and its stages are counted.
    pub counts: bool,
    /// Its gate, if it has one.
    pub gate: Option<Gate>,
    /// How far the guest has come with its present generation, by its own word.
    pub reached: Stage,
    /// What of the gate is open. It is never shut again.
    pub opened: Stage,
    /// The guest has not adapted before the gate's time-out.
    pub timed_out: bool,
    /// That has opened the gate, and not the guest.
    pub forced: bool,
    /// When the guest's random number generator was first reseeded.
    pub reseeded_after: Option<Duration>,
    /// When the guest first knew who it is.
    pub identity_after: Option<Duration>,
    /// When it first had adapted.
    pub adapted_after: Option<Duration>,
    /// When the gate, if there is one, opened to the host; else the same.
    pub service_after: Option<Duration>,
}

impl Told {
    /// How far the machine has come, its gate included.
    pub fn stage(&self) -> Stage {
        match self.gate {
            None => self.reached,
            Some(_) if self.forced => self.opened,
            // A later generation begins anew behind an open gate.
            Some(_) => self.reached.min(self.opened),
        }
    }

    /// Whether it may be sent work.
    pub fn is_ready(&self) -> bool {
        self.stage() == Stage::Service
    }

    /// How many agents have to be ready.
    pub fn agents(&self, report: &DriverReport) -> u32 {
        let asked = self.gate.and_then(|gate| gate.agents);
        asked.unwrap_or(report.agents)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Stages {
    told: Told,
    /// For how long the vCPUs ran, but for this time.
    ran: Duration,
    /// Since when they run.
    since: Option<Instant>,
    /// They have run.
    ever: bool,
}

impl Stages {
    pub(super) fn new(counts: bool, gate: Option<Gate>) -> Self {
        Self {
            told: Told {
                counts,
                gate,
                ..Told::default()
            },
            ..Self::default()
        }
    }

    pub(super) fn resumed(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        if !std::mem::replace(&mut self.ever, true) {
            // What was so already was so at once.
            self.mark(now);
        }
    }

    pub(super) fn paused(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.ran += now.saturating_duration_since(since);
        }
    }

    /// True if the event loop has something to do.
    pub(super) fn told(&mut self, report: &DriverReport, now: Instant) -> bool {
        self.told.reached = stage_of(report, self.told.agents(report));
        self.mark(now);
        if report.reseeded
            && let Some(after) = self.ran_until(now)
        {
            self.told.reseeded_after.get_or_insert(after);
        }
        self.is_pending() && self.target() > self.told.opened
    }

    pub(super) fn todo(&mut self, now: Instant) -> Option<Todo> {
        // A machine that stands still stays as it is.
        let (gate, _) = (self.told.gate?, self.since?);
        let ran = self.ran_until(now)?;
        let target = self.target();
        if self.told.opened < Stage::Identity && target >= Stage::Identity {
            self.told.opened = Stage::Identity;
            return Some(Todo::OpenNetworks);
        }
        if self.told.opened < Stage::Service && target >= Stage::Service {
            self.told.opened = Stage::Service;
            self.told.service_after = Some(ran);
            return Some(Todo::OpenToHost);
        }
        if self.is_pending() && !self.told.timed_out && ran >= gate.timeout {
            self.told.timed_out = true;
            self.told.forced = gate.on_timeout == OnTimeout::Open;
            return Some(Todo::TimedOut(gate.on_timeout));
        }
        None
    }

    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let (gate, _) = (self.told.gate?, self.since?);
        if self.target() > self.told.opened {
            return Some(Duration::ZERO);
        }
        let waits = self.is_pending() && !self.told.timed_out;
        waits.then(|| {
            gate.timeout
                .saturating_sub(self.ran_until(now).unwrap_or_default())
        })
    }

    /// The gate may still have to be opened.
    pub(super) fn is_pending(&self) -> bool {
        self.told.gate.is_some() && self.told.opened < Stage::Service
    }

    pub(super) fn now(&self) -> Told {
        self.told
    }

    /// How far the gate is to be open.
    fn target(&self) -> Stage {
        match self.told.forced {
            true => Stage::Service,
            false => self.told.reached,
        }
    }

    /// How long the vCPUs had run by `now`; none if they never did.
    fn ran_until(&self, now: Instant) -> Option<Duration> {
        let this_time = self.since.map(|since| now.saturating_duration_since(since));
        self.ever.then(|| self.ran + this_time.unwrap_or_default())
    }

    /// Takes down when the guest has first come as far as it has.
    fn mark(&mut self, now: Instant) {
        let Some(after) = self.ran_until(now) else {
            return;
        };
        if self.told.reached >= Stage::Identity {
            self.told.identity_after.get_or_insert(after);
        }
        if self.told.reached >= Stage::Service {
            self.told.adapted_after.get_or_insert(after);
            if self.told.gate.is_none() {
                self.told.service_after.get_or_insert(after);
            }
        }
    }
}

/// How far a guest has come that is expected to have `agents` agents.
fn stage_of(report: &DriverReport, agents: u32) -> Stage {
    let lacks = |agents, outdated| report.lacks(agents, outdated).next().is_some();
    if !lacks(agents, report.required) {
        return Stage::Service;
    }
    // Of several agents, one speaks for the machine's names. Those of old tell only that they are ready.
    if !lacks(0, 0) && (report.identity || report.ready >= agents) {
        return Stage::Identity;
    }
    Stage::None
}
