//! What the machine tells the event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Something that ends or restarts a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed its vCPU.
    TripleFault {
        /// The number of the vCPU.
        vcpu: u8,
        /// Its registers, as text.
        registers: String,
    },
    /// KVM could not go on with a vCPU.
    VcpuFailed {
        /// The number of the vCPU.
        vcpu: u8,
        /// What KVM said.
        reason: String,
    },
    /// The guest has taken input from the console, so that there is room for more.
    ConsoleRoom,
    /// Console output waits for a reader who does not keep up.
    ConsoleBehind,
    /// The guest wants the PM timer's interrupt at this instant of the monotonic clock (in nanoseconds), or none any more.
    PmTimer(Option<u64>),
}

impl fmt::Display for MachineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest asked for a reset"),
            Self::TripleFault { vcpu, registers } => {
                write!(
                    f,
                    "the guest crashed: triple fault on vCPU {vcpu} ({registers})"
                )
            }
            Self::VcpuFailed { vcpu, reason } => write!(f, "vCPU {vcpu} cannot go on: {reason}"),
            Self::ConsoleRoom => write!(f, "the console has room"),
            Self::ConsoleBehind => write!(f, "console output waits for its reader"),
            Self::PmTimer(_) => write!(f, "the PM timer was set"),
        }
    }
}

/// What has happened since the event loop last looked. Its size does not depend on how often a guest made it happen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// What ends or restarts the machine: the first such event.
    pub end: Option<MachineEvent>,
    /// [`MachineEvent::ConsoleRoom`].
    pub console_room: bool,
    /// [`MachineEvent::ConsoleBehind`].
    pub console_behind: bool,
    /// [`MachineEvent::PmTimer`]: the last one.
    pub pm_timer: Option<Option<u64>>,
}

impl Happened {
    fn note(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::ConsoleRoom => self.console_room = true,
            MachineEvent::ConsoleBehind => self.console_behind = true,
            MachineEvent::PmTimer(edge) => self.pm_timer = Some(edge),
            end => {
                self.end.get_or_insert(end);
            }
        }
    }
}

/// Sends events and wakes the event loop.
#[derive(Debug)]
pub struct EventSender {
    happened: Arc<Mutex<Happened>>,
    wake: EventFd,
}

/// The event loop's end.
#[derive(Debug)]
pub struct EventReceiver {
    happened: Arc<Mutex<Happened>>,
    wake: EventFd,
}

impl EventSender {
    /// Makes a sender and its receiver.
    pub fn new() -> io::Result<(Self, EventReceiver)> {
        let happened = Arc::new(Mutex::new(Happened::default()));
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let receiver = EventReceiver {
            happened: Arc::clone(&happened),
            wake: wake.try_clone()?,
        };
        Ok((Self { happened, wake }, receiver))
    }

    /// Another sender to the same loop.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            happened: Arc::clone(&self.happened),
            wake: self.wake.try_clone()?,
        })
    }

    /// Wakes the event loop without an event.
    pub fn wake(&self) {
        // Cannot fail but for a full counter, which wakes as well.
        let _ = self.wake.write(1);
    }

    /// Sends one event. A loop that has ended needs none.
    pub fn send(&self, event: MachineEvent) {
        lock(&self.happened).note(event);
        let _ = self.wake.write(1);
    }
}

impl EventReceiver {
    /// What ends or restarts the machine, if that has happened and was not taken yet.
    pub fn end(&self) -> Option<MachineEvent> {
        lock(&self.happened).end.clone()
    }

    /// Takes what has happened.
    pub fn take(&self) -> Happened {
        let _ = self.wake.read();
        std::mem::take(&mut *lock(&self.happened))
    }
}

impl AsRawFd for EventReceiver {
    /// Readable when something has happened.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

fn lock(happened: &Mutex<Happened>) -> MutexGuard<'_, Happened> {
    // Plain values: a panic cannot leave them half changed.
    happened.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_events_take_the_room_of_one_and_the_first_end_counts() {
        let (sender, receiver) = EventSender::new().unwrap();
        for n in 0..100_000 {
            sender.send(MachineEvent::ConsoleRoom);
            sender.send(MachineEvent::PmTimer(Some(n)));
        }
        sender.send(MachineEvent::Reset);
        sender.send(MachineEvent::PowerOff);
        let expected = Happened {
            end: Some(MachineEvent::Reset),
            console_room: true,
            console_behind: false,
            pm_timer: Some(Some(99_999)),
        };
        assert_eq!(receiver.take(), expected);
        assert_eq!(receiver.take(), Happened::default());
    }
}
