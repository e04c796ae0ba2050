//! A snapshot in which the guest takes part. The event loop waits for nobody: each step of the guest's wakes it, and so does the deadline.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vmgenie_devices::sgen::{AskError, ForkProgress, ForkRefusal, ForkStage};
use vmgenie_machine::ForkError;
use vmgenie_machine::metrics::MACHINE;
use vmgenie_machine::request::{Cooperative, CreateSnapshot, Fallback};

use super::command::{
    CommandError, CommandResult, Cooperation, How, Reply, SelfSnapshot, SnapshotCreated, WaitedFor,
};
use super::monitoring::Measured;
use super::snapshots::{AtForkPoint, NotCreated, create_snapshot};
use super::{Controller, refused};

/// How long the guest's driver may take to say that it has heard. A guest that is there answers within milliseconds.
const ACK_LIMIT: Duration = Duration::from_secs(5);

/// A snapshot that waits for the guest.
#[derive(Debug)]
pub(crate) struct Forking {
    request: CreateSnapshot,
    fallback: Fallback,
    begun: Instant,
    deadline: Instant,
    measured: Measured,
    asker: Asker,
}

/// Who wants a snapshot.
#[derive(Debug)]
enum Asker {
    Client(oneshot::Sender<CommandResult>),
    /// The guest itself.
    Guest(SelfSnapshot),
}

impl Asker {
    fn has_gone(&self) -> bool {
        match self {
            Self::Client(answer) => answer.is_closed(),
            Self::Guest(_) => false,
        }
    }
}

/// Why the guest does not take part.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Without {
    NoDriver,
    NoForkPoint,
    Silent,
    Late { agent: bool },
    Refused(ForkRefusal),
    Paused,
    GaveUp,
    OtherGeneration,
    Gone,
    ClientGone,
}

impl Without {
    /// What was wrong, for the client.
    fn why(&self) -> &'static str {
        match self {
            Self::NoDriver => "it has no sysgenid driver",
            Self::NoForkPoint => {
                "its sysgenid driver has no fork point: it is an older one, or its kernel is one of PREEMPT_RT"
            }
            Self::Silent => "its driver did not answer",
            Self::Late { agent: true } => {
                "its programs were not quiet in time: see the log of its agent, or give it longer (quiesce_ms)"
            }
            Self::Late { agent: false } => "its kernel did not come to stand still in time",
            Self::Refused(refusal) => match refusal {
                ForkRefusal::HookFailed => {
                    "one of its quiesce hooks failed: its agent's log names it"
                }
                ForkRefusal::HookHung => {
                    "one of its quiesce hooks did not end in time: its agent's log names it"
                }
                ForkRefusal::NotFrozen => "its programs could not be frozen",
                ForkRefusal::NotReady => {
                    "its kernel's random number generator is not ready yet: try again when it has booted"
                }
                ForkRefusal::Unsupported => "its kernel cannot be stopped at a fork point",
                ForkRefusal::Busy => "another fork point is under way in it",
                ForkRefusal::AgentGone => "its agent has ended meanwhile",
                ForkRefusal::NotParked => "programs that take part have not parked in time",
                ForkRefusal::ReseedRefused => {
                    "its kernel does not let its random number generator be reseeded"
                }
                ForkRefusal::DriverGone => {
                    "its driver has gone meanwhile: it reboots or powers off, or has unloaded the module"
                }
                ForkRefusal::Other => "its log says why",
            },
            Self::Paused => "the microVM was paused meanwhile",
            Self::GaveUp => "it stood still, but was not snapshotted in time",
            Self::OtherGeneration => "another generation of it began meanwhile",
            Self::Gone => "it has ended or rebooted meanwhile",
            Self::ClientGone => "whoever asked for it has gone meanwhile",
        }
    }

    /// Whether there is a machine that can be snapshotted without its part, and somebody who wants it.
    fn leaves_a_machine(&self) -> bool {
        !matches!(
            self,
            Self::Gone | Self::ClientGone | Self::Refused(ForkRefusal::DriverGone)
        )
    }
}

impl Controller {
    /// Asks the guest to take part in a snapshot. `answer` has the result, at once or when the guest has come to stand still:
    /// [`Self::step_fork`].
    pub(crate) fn begin_fork(
        &mut self,
        request: CreateSnapshot,
        cooperative: Cooperative,
        answer: oneshot::Sender<CommandResult>,
    ) {
        let measured = Measured::of_snapshot();
        let now = Instant::now();
        let forking = Forking {
            request,
            fallback: cooperative.fallback,
            begun: now,
            deadline: now + cooperative.quiesce,
            measured,
            asker: Asker::Client(answer),
        };
        if self.forking.is_some() {
            let busy = "a snapshot waits for the guest already: try again when it is done";
            return forking.end(Err(CommandError(busy.to_owned())));
        }
        let asked = self.with_machine("take a snapshot of", |_, machine| {
            if !machine.is_running() {
                return Err(CommandError(
                    "the microVM is paused, and cannot take part in its snapshot: resume it (PATCH /vm {\"state\": \"Resumed\"}), or leave \
                     \"cooperative\" out"
                        .to_owned(),
                ));
            }
            Ok(Reply::Done)
        });
        if let Err(error) = asked {
            return forking.end(Err(error));
        }
        // There is one: see above.
        let Some(machine) = &mut self.machine else {
            return forking.end(Err(CommandError("there is no microVM".to_owned())));
        };
        match machine.ask_for_fork(cooperative.quiesce) {
            Ok(()) => self.forking = Some(forking),
            Err(ForkError::Ask(AskError::NoDriver)) => {
                self.go_without(forking, &Without::NoDriver, ForkProgress::default());
            }
            Err(ForkError::Ask(AskError::NoForkPoint)) => {
                self.go_without(forking, &Without::NoForkPoint, ForkProgress::default());
            }
            Err(error) => forking.end(Err(refused(error))),
        }
    }

    /// Whether a snapshot waits for the guest; how long it may still be left alone.
    pub(crate) fn fork_patience(&self) -> Option<Duration> {
        let forking = self.forking.as_ref()?;
        let heard = self
            .machine
            .as_ref()
            .is_none_or(|machine| machine.fork_progress().stage != ForkStage::Asked);
        let until = match heard {
            true => forking.deadline,
            false => forking.deadline.min(forking.begun + ACK_LIMIT),
        };
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Looks how far the guest has come, and goes on with the snapshot that waits for it; or begins one that it asks for.
    pub(crate) fn step_fork(&mut self) {
        let Some(forking) = &self.forking else {
            return self.look_at_guests_ask();
        };
        if forking.asker.has_gone() {
            return self.end_fork(&Without::ClientGone);
        }
        let Some(machine) = &self.machine else {
            return self.end_fork(&Without::Gone);
        };
        let progress = machine.fork_progress();
        let now = Instant::now();
        match progress.stage {
            ForkStage::Stopped => self.snapshot_at_fork_point(progress),
            ForkStage::Aborted => {
                let without = progress.refused.map_or(Without::GaveUp, Without::Refused);
                self.end_fork(&without);
            }
            ForkStage::Clone => self.end_fork(&Without::OtherGeneration),
            ForkStage::Idle | ForkStage::Original => self.end_fork(&Without::Gone),
            ForkStage::Asked if now < forking.deadline.min(forking.begun + ACK_LIMIT) => {}
            ForkStage::Acked if now < forking.deadline => {}
            ForkStage::Asked | ForkStage::Acked if !machine.is_running() => {
                self.end_fork(&Without::Paused);
            }
            ForkStage::Asked => self.end_fork(&Without::Silent),
            ForkStage::Acked => self.end_fork(&Without::Late {
                agent: progress.agent,
            }),
        }
    }

    /// The guest asks for a snapshot of itself: it gets one as a client does, if the host's rules say so.
    fn look_at_guests_ask(&mut self) {
        let (Some(machine), Some(rules)) = (&mut self.machine, &mut self.self_snapshots) else {
            return;
        };
        // One that is paused could not answer.
        let Some(tag) = machine.self_asked().filter(|_| machine.is_running()) else {
            return;
        };
        let now = Instant::now();
        let number = match rules.grant(now) {
            Ok(number) => number,
            Err(why) => {
                rules.complain(tag, &why);
                machine.refuse_self_fork();
                return;
            }
        };
        if let Err(why) = machine.grant_self_fork(rules.quiesce()) {
            rules.complain(tag, &why);
            machine.refuse_self_fork();
            return;
        }
        tracing::info!(tag, number, "the guest asks for a snapshot of itself");
        self.forking = Some(Forking {
            request: rules.request(number),
            fallback: Fallback::Refuse,
            begun: now,
            deadline: now + rules.quiesce(),
            measured: Measured::of_snapshot(),
            asker: Asker::Guest(SelfSnapshot { number, tag }),
        });
    }

    fn snapshot_at_fork_point(&mut self, progress: ForkProgress) {
        let (Some(forking), Some(machine)) = (self.forking.take(), &mut self.machine) else {
            return;
        };
        let waited = forking.begun.elapsed();
        let place = match (&forking.asker, &mut self.self_snapshots) {
            (Asker::Guest(own), Some(rules)) => rules.make_place(own.number).map_err(refused),
            _ => Ok(()),
        };
        let made = match place {
            Ok(()) => create_snapshot(&self.host, machine, &forking.request, AtForkPoint::Yes),
            Err(error) => {
                machine.call_fork_off();
                Err(NotCreated::Failed(error))
            }
        };
        if let (Asker::Guest(own), Some(rules)) = (&forking.asker, &mut self.self_snapshots) {
            rules.end(*own, made.is_ok());
        }
        let made = match made {
            // It had all the time until the standstill to give up.
            Err(NotCreated::GaveUp) => {
                return self.go_without(forking, &Without::GaveUp, progress);
            }
            Err(NotCreated::Failed(error)) => Err(error),
            Ok(made) => Ok(made),
        };
        let how = match progress.agent {
            true => How::ForkPoint,
            false => How::KernelOnly,
        };
        // It stands since its word, and nobody may have been there to hear it.
        let stood = waited.saturating_sub(progress.stopped_after.unwrap_or(waited));
        let made = made.map(|mut made| {
            made.standstill += stood;
            with_cooperation(made, how, None, waited, progress)
        });
        if let Ok(Reply::SnapshotCreated(made)) = &made {
            let quiesce = progress.stopped_after.unwrap_or(waited);
            MACHINE.fork.quiesce_us.record(quiesce);
            MACHINE.fork.stop_us.record(made.standstill);
            tracing::info!(?made, "snapshot written at the guest's fork point");
        }
        forking.end(made);
        self.tidy_up();
    }

    /// The guest does not take part in the snapshot that waits for it.
    fn end_fork(&mut self, without: &Without) {
        let mut progress = ForkProgress::default();
        if let Some(machine) = &mut self.machine {
            progress = machine.fork_progress();
            machine.call_fork_off();
        }
        if let Some(forking) = self.forking.take() {
            self.go_without(forking, without, progress);
        }
    }

    /// `progress` is how far this request has come.
    fn go_without(&mut self, mut forking: Forking, without: &Without, progress: ForkProgress) {
        let why = without.why();
        MACHINE.fork.refused_count.inc();
        tracing::warn!(why, "the guest does not take part in its snapshot");
        let told =
            format!("the guest does not take part in its snapshot: {why}. Nothing was taken");
        if !without.leaves_a_machine() {
            return forking.end(Err(CommandError(told)));
        }
        let (Fallback::Plain, Some(machine)) = (forking.fallback, &mut self.machine) else {
            return forking.end(Err(CommandError(format!(
                "{told}; \"fallback\": \"plain\" takes it nevertheless"
            ))));
        };
        let waited = forking.begun.elapsed();
        forking.request.pause = true;
        let made = create_snapshot(&self.host, machine, &forking.request, AtForkPoint::No);
        let made = made.map_err(CommandError::from);
        let plain = |made| with_cooperation(made, How::Plain, Some(why), waited, progress);
        forking.end(made.map(plain));
        self.tidy_up();
    }
}

impl Forking {
    fn end(self, result: CommandResult) {
        self.measured.end(&result);
        match (self.asker, result) {
            // A client that has gone needs no answer.
            (Asker::Client(answer), result) => drop(answer.send(result)),
            (Asker::Guest(SelfSnapshot { number, tag }), Ok(_)) => {
                tracing::info!(tag, number, "the guest has a snapshot of itself");
            }
            (Asker::Guest(SelfSnapshot { number, tag }), Err(why)) => {
                tracing::warn!(tag, number, %why, "nothing came of a snapshot that the guest asked for");
            }
        }
    }
}

fn with_cooperation(
    mut made: SnapshotCreated,
    how: How,
    why_plain: Option<&'static str>,
    waited: Duration,
    progress: ForkProgress,
) -> Reply {
    made.total += waited;
    made.cooperation = Some(Cooperation {
        how,
        why_plain,
        heard_after: progress.acked_after,
        stopped_after: progress.stopped_after,
        waited_for: WaitedFor {
            agent: progress.agent,
            hooks: progress.quiesced.hooks,
            frozen: progress.quiesced.frozen,
            parked: progress.quiesced.parked,
        },
    });
    Reply::SnapshotCreated(made)
}
