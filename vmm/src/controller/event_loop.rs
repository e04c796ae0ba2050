//! The event loop: API commands, the machine's events, console input, signals.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;
use vmgenie_devices::throttle::Throttle;
use vmgenie_machine::Machine;
use vmgenie_machine::config::OnReboot;
use vmgenie_machine::events::{EventReceiver, MachineEvent};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::command::{Command, CommandError, CommandResult, Envelope, Reply};
use super::console_input::{AttachedInput, ConsoleInput, Input, read_some};
use super::ending::{Outcome, RunError};
use super::signals::EndSignals;
use super::{Controller, refused};
use crate::metrics::WRITE_PERIOD;
use crate::temporary;

/// The numbers under which the sources are registered.
const COMMANDS: u32 = 0;
const MACHINE: u32 = 1;
const SIGNALS: u32 = 2;
const INPUT: u32 = 3;
const PM_TIMER: u32 = 4;
const VIRTIO: u32 = 5;
const METRICS_TIMER: u32 = 6;
const LIFELINE: u32 = 7;

/// The most commands in one turn, so that busy clients leave the loop to the guest's devices and to signals.
const MAX_COMMANDS: usize = 16;
/// How often the console's reader is tried again once it did not keep up.
const CONSOLE_RETRY_MS: i32 = 20;

/// Everything that the event loop listens to.
pub(crate) struct EventLoop {
    pub(crate) controller: Controller,
    pub(crate) commands: Receiver<Envelope>,
    pub(crate) command_wake: EventFd,
    pub(crate) machine_events: EventReceiver,
    pub(crate) signals: EndSignals,
    pub(crate) pm_timer: TimerFd,
    /// Of that timer, which a guest may have set as often as it likes.
    pub(crate) pm_complaints: Throttle,
    pub(crate) metrics_timer: TimerFd,
    /// The timer for metrics runs.
    pub(crate) writes_metrics: bool,
    pub(crate) input: Option<ConsoleInput>,
    /// What those type who have attached to the console.
    pub(crate) attached: AttachedInput,
    /// Set while a parent supervises us through standard input: what to remove if it dies before it releases us.
    pub(crate) lifeline: Option<Vec<PathBuf>>,
    pub(crate) on_reboot: OnReboot,
    /// The machine that is starting has run before.
    pub(crate) restarting: bool,
    /// Who waits for the machine that is starting.
    pub(crate) waits_for_start: Option<oneshot::Sender<CommandResult>>,
    /// Console output waits for a reader who does not keep up.
    pub(crate) console_behind: bool,
    /// How the process ends, once that is known.
    pub(crate) ended: Option<Result<Outcome, RunError>>,
}

impl EventLoop {
    /// How long the loop may sleep, in milliseconds; -1 without a limit.
    pub(crate) fn patience_ms(&self) -> i32 {
        let console = self.console_behind.then_some(CONSOLE_RETRY_MS);
        let fork = self.controller.fork_patience();
        let gate = self.controller.gate_patience();
        // Rounded up: who wakes too early looks in vain.
        let rounded = |left: Duration| {
            let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            ms.saturating_add(1)
        };
        let machine = self.controller.machine().and_then(Machine::patience);
        let others = [fork, gate, machine].into_iter().flatten().map(rounded);
        console.into_iter().chain(others).min().unwrap_or(-1)
    }

    /// After each turn: what no event tells of.
    pub(crate) fn after_turn(&mut self) {
        // What has just ended is not snapshotted.
        if self.ended.is_none() && self.check_alive().is_ok() {
            self.controller.step_fork();
        }
        if self.console_behind {
            let machine = self.controller.machine();
            let output_waits = machine.is_some_and(Machine::flush_console);
            self.console_behind = !self.give_input() || output_waits;
        }
        self.controller.tend_machine();
        if let Err(end) = self.controller.tend_gate() {
            self.end(Err(end));
        }
    }

    fn run_commands(&mut self) {
        let _ = self.command_wake.read();
        for _ in 0..MAX_COMMANDS {
            let Ok(envelope) = self.commands.try_recv() else {
                return self.start_metrics();
            };
            let Envelope {
                command, answer, ..
            } = envelope;
            self.run_command(command, answer);
        }
        // What is left is for the next turn.
        let _ = self.command_wake.write(1);
        self.start_metrics();
    }

    fn run_command(&mut self, command: Command, answer: oneshot::Sender<CommandResult>) {
        if let Command::ConsoleInput(bytes) = command {
            return self.attached.push(bytes, answer);
        }
        let starts = command == Command::Start;
        let alive = match command {
            Command::CreateSnapshot(_) => self.check_alive(),
            _ => Ok(()),
        };
        if let (Ok(()), Command::CreateSnapshot(request)) = (&alive, &command)
            && let Some(cooperative) = request.cooperative
        {
            let request = request.clone();
            return self.controller.begin_fork(request, cooperative, answer);
        }
        let result = alive.and_then(|()| self.controller.execute(command));
        if starts && result.is_ok() && self.controller.is_starting() {
            self.waits_for_start = Some(answer);
            return;
        }
        // A client that has gone needs no answer.
        let _ = answer.send(result);
        self.controller.tidy_up();
    }

    /// A guest that has just ended has nothing left to say that a snapshot could have: what comes out of it would wait for ever.
    fn check_alive(&self) -> Result<(), CommandError> {
        match self.machine_events.end() {
            None => Ok(()),
            Some(end) => Err(CommandError(format!(
                "there is no microVM to take a snapshot of any more: {end}"
            ))),
        }
    }

    /// The image of a machine that is starting may have been read.
    fn look_at_start(&mut self) {
        let Some(started) = self.controller.finish_start() else {
            return;
        };
        let restarting = std::mem::take(&mut self.restarting);
        match (self.waits_for_start.take(), started) {
            (Some(answer), started) => {
                let _ = answer.send(started.map(|()| Reply::Done).map_err(refused));
                self.controller.tidy_up();
            }
            (None, Ok(())) => {}
            (None, Err(error)) if restarting => self.end(Err(RunError::Restart(error))),
            (None, Err(error)) => self.end(Err(RunError::Start(error))),
        }
    }

    /// Lets the timer for metrics run once there is a file for them; a process without one is never woken by it.
    fn start_metrics(&mut self) {
        if self.writes_metrics || !self.controller.has_metrics() {
            return;
        }
        self.writes_metrics = true;
        if let Err(error) = self.metrics_timer.reset(WRITE_PERIOD, Some(WRITE_PERIOD)) {
            tracing::warn!(%error, "could not start the timer for metrics");
        }
    }

    fn handle_machine_events(&mut self, ops: &mut EventOps) {
        let happened = self.machine_events.take();
        self.look_at_start();
        self.console_behind |= happened.console_behind;
        if happened.console_room {
            self.pump_input(ops);
        }
        if let Some(edge) = happened.pm_timer {
            self.arm_pm_timer(edge);
        }
        match happened.end {
            None => {}
            Some(MachineEvent::PowerOff) => self.end(Ok(Outcome::PoweredOff)),
            Some(MachineEvent::Reset) => self.reset(),
            Some(failure) => {
                let loss = self.controller.machine().and_then(Machine::memory_loss);
                self.end(Err(match loss {
                    Some(loss) => RunError::Memory(failure, Box::new(loss)),
                    None => RunError::Guest(failure),
                }));
            }
        }
    }

    fn end(&mut self, how: Result<Outcome, RunError>) {
        self.ended.get_or_insert(how);
    }

    fn reset(&mut self) {
        if self.controller.cannot_boot_again() {
            tracing::warn!(
                "the guest has rebooted; a machine that came from a snapshot does not boot again: it ends here, with status 0"
            );
            return self.end(Ok(Outcome::Rebooted));
        }
        if self.on_reboot == OnReboot::Exit {
            return self.end(Ok(Outcome::Rebooted));
        }
        let Some(last) = self.controller.stop_for_restart() else {
            return self.end(Ok(Outcome::Rebooted));
        };
        // Whatever the machine that is gone has still said.
        drop(self.machine_events.take());
        if let Err(error) = self.controller.start_again(last) {
            return self.end(Err(RunError::Restart(error)));
        }
        self.restarting = self.controller.is_starting();
    }

    /// Gives the guest as much input as it takes; false if a vCPU was busy with the serial port, so that this is to be tried again.
    fn give_input(&mut self) -> bool {
        let Some(machine) = self.controller.machine() else {
            return true;
        };
        let mut taken = Some(0);
        if let Some(input) = &mut self.input
            && self.controller.reads_input()
        {
            taken = machine.console_input(&input.waiting);
            input.waiting.drain(..taken.unwrap_or(0));
        }
        taken.is_some() && self.attached.give(|bytes| machine.console_input(bytes))
    }

    /// Moves console input to the guest, as much as it takes, and reads more only when it has taken all.
    fn pump_input(&mut self, ops: &mut EventOps) {
        loop {
            self.console_behind |= !self.give_input();
            let Some(input) = &mut self.input else { return };
            let wants_more =
                input.waiting.is_empty() && !input.ended && self.controller.reads_input();
            if input.pollable {
                set_registered(input, wants_more, ops);
                return;
            }
            if !wants_more {
                return;
            }
            // A regular file: what it holds and its end are read at once, as the guest takes it.
            match read_some(input) {
                Ok(Input::Some | Input::Ended) => {}
                Ok(Input::None) => return,
                Ok(Input::Quit) => return self.end(Ok(Outcome::Quit)),
                Err(error) => {
                    tracing::warn!(%error, "console input ended");
                    input.ended = true;
                }
            }
        }
    }

    fn read_input(&mut self, ops: &mut EventOps) {
        let Some(input) = &mut self.input else { return };
        match read_some(input) {
            Ok(Input::Quit) => self.end(Ok(Outcome::Quit)),
            Ok(_) => self.pump_input(ops),
            Err(error) => {
                tracing::warn!(%error, "console input ended");
                input.ended = true;
                self.pump_input(ops);
            }
        }
    }

    /// A word came through the lifeline, or it was cut.
    fn look_at_lifeline(&mut self, ops: &mut EventOps) {
        let released = match rustix::io::read(io::stdin(), &mut [0_u8]) {
            Err(Errno::INTR | Errno::AGAIN) => return,
            read => read.is_ok_and(|len| len > 0),
        };
        let _ = ops.remove(Events::with_data(&io::stdin(), LIFELINE, EventSet::IN));
        let doomed = self.lifeline.take();
        if !released {
            tracing::warn!("who has started this machine has gone before it was released: ending");
            for doomed in doomed.into_iter().flatten() {
                temporary::remove(&doomed);
            }
            self.quit();
        }
    }

    /// Ends, and takes along what was made for a machine that was not released. That is known by what it is and not by its name: somebody else
    /// may have been faster to make a file of that name.
    fn quit(&mut self) {
        if let Some(machine) = self.controller.machine() {
            machine.remove_made_files();
        }
        self.end(Ok(Outcome::Quit));
    }

    /// A signal has come that ends the process.
    fn told_to_end(&mut self, ops: &mut EventOps) {
        if self.lifeline.is_some() && is_readable(&io::stdin()) {
            // The word came before the signal.
            self.look_at_lifeline(ops);
        }
        match self.lifeline {
            Some(_) => self.quit(),
            None => self.end(Ok(Outcome::Quit)),
        }
    }

    fn arm_pm_timer(&mut self, edge_ns: Option<u64>) {
        let armed = match edge_ns {
            Some(edge) => {
                let left = edge.saturating_sub(vmgenie_machine::monotonic_ns()).max(1);
                self.pm_timer.reset(Duration::from_nanos(left), None)
            }
            None => self.pm_timer.clear(),
        };
        if let Err(error) = armed
            && let Some(more) = self.pm_complaints.allows(Instant::now())
        {
            tracing::warn!(%error, more, "could not arm the PM timer");
        }
    }

    fn pm_timer_due(&mut self) {
        // The timer is not read: that would block if an event of this very turn has set it anew. Setting it makes it unreadable.
        let next = self.controller.machine().and_then(Machine::pm_timer_tick);
        self.arm_pm_timer(next);
    }
}

fn is_readable(file: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(file, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn set_registered(input: &mut ConsoleInput, wanted: bool, ops: &mut EventOps) {
    if wanted == input.registered {
        return;
    }
    let events = Events::with_data(&io::stdin(), INPUT, EventSet::IN);
    let done = if wanted {
        ops.add(events)
    } else {
        ops.remove(events)
    };
    match done {
        Ok(()) => input.registered = wanted,
        Err(_) => {
            // A regular file or /dev/null: always readable, and read whenever the guest has room.
            input.pollable = false;
        }
    }
}

impl MutEventSubscriber for EventLoop {
    fn init(&mut self, ops: &mut EventOps) {
        let sources = [
            (self.command_wake.as_raw_fd(), COMMANDS),
            (self.machine_events.as_raw_fd(), MACHINE),
            (self.signals.as_raw_fd(), SIGNALS),
            (self.pm_timer.as_raw_fd(), PM_TIMER),
            (self.controller.virtio_events().as_raw_fd(), VIRTIO),
            (self.metrics_timer.as_raw_fd(), METRICS_TIMER),
        ];
        for (fd, number) in sources {
            if let Err(error) = ops.add(Events::with_data_raw(fd, number, EventSet::IN)) {
                self.end(Err(RunError::EventLoop(error)));
            }
        }
        if self.lifeline.is_some()
            && let Err(error) = ops.add(Events::with_data(&io::stdin(), LIFELINE, EventSet::IN))
        {
            self.end(Err(RunError::EventLoop(error)));
        }
        self.pump_input(ops);
        self.pump_input(ops);
        self.start_metrics();
        // As Firecracker does, so that the start can be seen: a file that is named later gets its first line later.
        self.controller.write_metrics();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            COMMANDS => {
                self.run_commands();
                self.pump_input(ops);
            }
            MACHINE => self.handle_machine_events(ops),
            SIGNALS if self.signals.take() => self.told_to_end(ops),
            INPUT => self.read_input(ops),
            PM_TIMER => self.pm_timer_due(),
            LIFELINE => self.look_at_lifeline(ops),
            VIRTIO => self.controller.virtio_work(),
            METRICS_TIMER => {
                // Readable until it is read; nobody else reads it.
                let _ = self.metrics_timer.wait();
                self.controller.write_metrics();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "event_loop_test.rs"]
mod tests;
