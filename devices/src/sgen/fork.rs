//! The fork point: how host and driver agree on an instant at which the guest stands still in its
//! kernel, so that a snapshot of it holds no user instruction that is half way.
//!
//! The host asks with a ticket; the driver answers, has all CPUs stand still, writes the ticket to
//! FORK and reads who it is until it is told. The snapshot is taken in between. A ticket that is over
//! is answered ABORTED, so that nobody waits for a host that has given up. Everything that is decided
//! is decided with the device locked: of an abort and a snapshot at once one comes first.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::random;

use super::{FEATURE_FORK, FORK, OnFork, REQUEST, SysGen};

/// What the driver answered by REQUEST: `state << 24 | detail << 16 | low half of the ticket`.
pub(super) const ANSWER_ACK: u8 = 1;
pub(super) const ANSWER_REFUSED: u8 = 2;
pub(super) const ANSWER_QUIESCED: u8 = 3;
pub(super) const ANSWER_IDENTITY: u8 = 4;

/// What FORK reads.
const PENDING: u32 = 0;
const ORIGINAL: u32 = 1;
const CLONE: u32 = 2;
const ABORTED: u32 = 3;

/// How far a request for a fork point has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForkStage {
    /// There was none yet.
    #[default]
    Idle,
    /// The host has asked.
    Asked,
    /// The driver has heard.
    Acked,
    /// All CPUs of the guest stand still in its kernel, and ask who they are.
    Stopped,
    /// The guest has been told that it is the one that was asked.
    Original,
    /// The guest has been told that it is a clone.
    Clone,
    /// It was called off, by host or guest.
    Aborted,
}

impl ForkStage {
    /// Whether host and guest are still at it.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Asked | Self::Acked | Self::Stopped)
    }
}

/// Why a guest refuses to be forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkRefusal {
    /// A quiesce hook failed.
    HookFailed,
    /// A quiesce hook did not end in time.
    HookHung,
    /// The programs could not be frozen.
    NotFrozen,
    /// The kernel's random number generator is not ready.
    NotReady,
    /// The guest's kernel cannot.
    Unsupported,
    /// Another fork point is under way in the guest.
    Busy,
    /// The agent has gone.
    AgentGone,
    /// Programs that take part have not parked.
    NotParked,
    /// The kernel's random number generator refuses to be reseeded.
    ReseedRefused,
    /// The driver has gone: the guest reboots or powers off, or unloads it. Seen, not answered.
    DriverGone,
    /// Something else; the guest's log says what.
    Other,
}

impl ForkRefusal {
    fn from_detail(detail: u8) -> Self {
        match detail {
            1 => Self::HookFailed,
            2 => Self::HookHung,
            3 => Self::NotFrozen,
            4 => Self::NotReady,
            5 => Self::Unsupported,
            6 => Self::Busy,
            7 => Self::AgentGone,
            8 => Self::NotParked,
            9 => Self::ReseedRefused,
            _ => Self::Other,
        }
    }
}

/// How the guest has made itself quiet for the fork point, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quiesced {
    /// The hooks have run.
    pub hooks: bool,
    /// Programs were frozen.
    pub frozen: bool,
    /// All programs that take part have parked.
    pub parked: bool,
}

impl Quiesced {
    fn from_detail(detail: u8) -> Self {
        Self {
            hooks: detail & 1 != 0,
            frozen: detail & 2 != 0,
            parked: detail & 4 != 0,
        }
    }
}

/// Why the guest cannot be asked for a fork point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody is there to hear of it.
    #[error("the guest has no sysgenid driver")]
    NoDriver,
    /// The driver is an older one, or its kernel is one of PREEMPT_RT.
    #[error("the guest's sysgenid driver has no fork point")]
    NoForkPoint,
    /// A request is under way.
    #[error("a fork point is under way already")]
    Busy,
    /// It had asked by itself.
    #[error("the guest does not ask for a snapshot of itself any more")]
    NotWanted,
}

/// What the host sees of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkProgress {
    /// How far it has come.
    pub stage: ForkStage,
    /// An agent in the guest has it; else the driver acts alone.
    pub agent: bool,
    /// The guest has refused.
    pub refused: Option<ForkRefusal>,
    /// How the guest has made itself quiet.
    pub quiesced: Quiesced,
    /// From the request to the driver's first answer.
    pub acked_after: Option<Duration>,
    /// From the request to the standstill of all CPUs.
    pub stopped_after: Option<Duration>,
}

/// What a snapshot holds of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkState {
    /// The ticket of the last request; 0 before the first.
    pub ticket: u32,
    /// How far that has come.
    pub stage: ForkStage,
    /// The ticket that the guest last wrote to FORK.
    pub written: u32,
}

/// The registers of the fork point.
#[derive(Debug, Default)]
pub(super) struct ForkPoint {
    state: ForkState,
    progress: ForkProgress,
    asked: Option<Instant>,
    deadline: Option<Instant>,
}

impl ForkPoint {
    /// What was saved. Nobody waits any more for an answer to a request that was under way; a guest
    /// that stands still is told who it is by [`Self::settle`].
    pub(super) fn from_state(state: ForkState) -> Self {
        let stage = match state.stage {
            ForkStage::Asked | ForkStage::Acked => ForkStage::Aborted,
            other => other,
        };
        Self {
            state: ForkState { stage, ..state },
            progress: ForkProgress {
                stage,
                ..ForkProgress::default()
            },
            ..Self::default()
        }
    }

    pub(super) fn save(&self) -> ForkState {
        self.state
    }

    pub(super) fn progress(&self) -> ForkProgress {
        self.progress
    }

    /// Whether a request is under way.
    pub(super) fn is_open(&self) -> bool {
        self.state.stage.is_open()
    }

    /// Asks for a fork point within `limit`.
    pub(super) fn ask(&mut self, ticket: u32, limit: Duration) -> Result<(), AskError> {
        if self.state.stage.is_open() {
            return Err(AskError::Busy);
        }
        let now = Instant::now();
        *self = Self {
            state: ForkState {
                ticket,
                ..self.state
            },
            progress: ForkProgress::default(),
            asked: Some(now),
            deadline: now.checked_add(limit),
        };
        self.move_to(ForkStage::Asked);
        Ok(())
    }

    /// Ends a request that is under way; false if none is.
    pub(super) fn settle(&mut self, stage: ForkStage) -> bool {
        let open = self.state.stage.is_open();
        if open {
            self.move_to(stage);
        }
        open
    }

    /// Ends the wait of a guest that stands still; false if it does not.
    pub(super) fn answer(&mut self, stage: ForkStage) -> bool {
        let stopped = self.state.stage == ForkStage::Stopped;
        if stopped {
            self.move_to(stage);
        }
        stopped
    }

    fn move_to(&mut self, stage: ForkStage) {
        self.state.stage = stage;
        self.progress.stage = stage;
    }

    fn since(&self) -> Option<Duration> {
        self.asked.map(|asked| asked.elapsed())
    }

    /// The driver's answer by REQUEST. True if there is something new.
    pub(super) fn answered(&mut self, answer: u8, detail: u8, half: u16) -> bool {
        let before = self.progress;
        if half != self.state.ticket as u16
            || !matches!(self.state.stage, ForkStage::Asked | ForkStage::Acked)
        {
            return false;
        }
        match answer {
            ANSWER_ACK => {
                self.move_to(ForkStage::Acked);
                self.progress.agent = detail & 1 != 0;
                self.progress.acked_after = self.progress.acked_after.or_else(|| self.since());
            }
            ANSWER_REFUSED => {
                self.progress.refused = Some(ForkRefusal::from_detail(detail));
                self.move_to(ForkStage::Aborted);
            }
            ANSWER_QUIESCED => self.progress.quiesced = Quiesced::from_detail(detail),
            _ => {}
        }
        self.progress != before
    }

    /// The guest says that all CPUs stand. True if that is what the host waits for.
    pub(super) fn stands(&mut self, ticket: u32) -> bool {
        self.state.written = ticket;
        let waited_for = ticket == self.state.ticket
            && matches!(self.state.stage, ForkStage::Asked | ForkStage::Acked);
        if waited_for {
            self.progress.stopped_after = self.since();
            self.move_to(ForkStage::Stopped);
        }
        waited_for
    }

    /// The guest gives up. True if the host still waits.
    pub(super) fn gives_up(&mut self, ticket: u32) -> bool {
        ticket == self.state.ticket && self.answer(ForkStage::Aborted)
    }

    /// REQUEST.
    pub(super) fn request(&self) -> u32 {
        match self.state.stage.is_open() {
            true => self.state.ticket,
            false => 0,
        }
    }

    /// LIMIT: what is left in ms, not 0 while there is a request.
    pub(super) fn limit(&self) -> u32 {
        let left = match self.deadline {
            Some(deadline) if self.state.stage.is_open() => {
                deadline.saturating_duration_since(Instant::now())
            }
            _ => return 0,
        };
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1)
    }

    /// FORK.
    pub(super) fn who(&self) -> u32 {
        if self.state.ticket == 0 || self.state.written != self.state.ticket {
            return ABORTED;
        }
        match self.state.stage {
            ForkStage::Stopped => PENDING,
            ForkStage::Original => ORIGINAL,
            ForkStage::Clone => CLONE,
            ForkStage::Idle | ForkStage::Asked | ForkStage::Acked | ForkStage::Aborted => ABORTED,
        }
    }
}

impl SysGen {
    /// Has `on_fork` called when a request for a fork point has come further.
    pub fn on_fork(&mut self, on_fork: OnFork) {
        self.on_fork = Some(on_fork);
    }

    /// Asks the guest for a fork point: it shall stand still in its kernel within `limit`. `ticket` has a
    /// low half that is not 0, and differs from the last one's. *Afterwards:* the driver is notified.
    ///
    /// # Errors
    /// [`AskError`]: there is nobody to ask, or a request is under way.
    pub fn ask_for_fork(&mut self, ticket: u32, limit: Duration) -> Result<(), AskError> {
        if !self.report.present() {
            return Err(AskError::NoDriver);
        }
        if self.state.later.features & FEATURE_FORK == 0 {
            return Err(AskError::NoForkPoint);
        }
        self.fork.ask(ticket, limit)?;
        self.own.other_asked();
        Ok(())
    }

    /// The ticket of the last request; 0 before the first.
    pub fn fork_ticket(&self) -> u32 {
        self.fork.save().ticket
    }

    /// How far the last request has come.
    pub fn fork_progress(&self) -> ForkProgress {
        self.fork.progress()
    }

    /// Calls a request off; false if none is under way. *Afterwards:* the driver is notified.
    pub fn withdraw_fork(&mut self) -> bool {
        self.fork.settle(ForkStage::Aborted)
    }

    /// Tells a guest that stands still at the fork point that it goes on as itself. False if it does not.
    pub fn is_original(&mut self) -> bool {
        self.fork.answer(ForkStage::Original)
    }

    pub(super) fn tell_of_fork(&self) {
        if let Some(on_fork) = &self.on_fork {
            on_fork();
        }
    }

    /// The driver has gone, and with it who could answer.
    pub(super) fn driver_went(&mut self) {
        self.own.forget();
        if self.fork.settle(ForkStage::Aborted) {
            self.fork.progress.refused = Some(ForkRefusal::DriverGone);
            self.tell_of_fork();
        }
    }

    /// The registers of the fork point.
    pub(super) fn write_fork(&mut self, offset: u16, value: u32) {
        let [low, high, detail, answer] = value.to_le_bytes();
        let half = u16::from_le_bytes([low, high]);
        let news = match (offset, answer) {
            (REQUEST, ANSWER_IDENTITY) => {
                let beyond = half.wrapping_sub(self.state.base as u16).cast_signed();
                self.state.identity |= beyond >= i16::from(self.state.step);
                false
            }
            (REQUEST, _) => self.fork.answered(answer, detail, half),
            (FORK, _) => self.fork.stands(value),
            _ => self.fork.gives_up(value),
        };
        if news {
            self.tell_of_fork();
        }
    }
}

/// 32 bits that nobody has seen. A host that has none gives ones, which add nothing to a generator.
pub(super) fn seed() -> u32 {
    let mut seed = [0xff; 4];
    // Checked when the machine's generation ID was made; the guest mixes the ID in as well.
    let _ = random::fill(&mut seed);
    u32::from_le_bytes(seed)
}

#[cfg(test)]
#[path = "fork_test.rs"]
mod tests;
