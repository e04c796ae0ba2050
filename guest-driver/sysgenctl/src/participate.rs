//! `sysgenctl participate`: takes part for a program whose language has no ioctl(2), by lines over pipes.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};
use sysgenid::{AcknowledgeError, Outcome, ParkError, Role, RoleError, WaitError, Watcher};

use crate::args::Cli;

/// How often is looked whether a request is over, of which no event tells; and at a generation that was not
/// acknowledged, whose readiness stays.
const SOON: Duration = Duration::from_millis(20);
/// More than any answer needs.
const LONGEST_LINE: usize = 64;

/// Why taking part failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ParticipateError {
    #[error(transparent)]
    Open(#[from] sysgenid::OpenError),
    #[error("could not take the role of a participant")]
    Role(#[source] RoleError),
    #[error("could not wait for the device")]
    Wait(#[source] WaitError),
    #[error("could not park")]
    Park(#[source] ParkError),
    #[error(transparent)]
    Acknowledge(#[from] AcknowledgeError),
    #[error("could not read the standard input")]
    Input(#[source] io::Error),
    #[error("could not write the standard output")]
    Output(#[source] io::Error),
    #[error("the program said {0:?}, and can say: parked REQUEST, adapted GENERATION")]
    Said(String),
}

impl ParticipateError {
    /// Whether nobody reads what is said any more: the program has ended.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

pub(crate) fn participate(cli: &Cli) -> Result<(), ParticipateError> {
    let watcher = cli.open(true)?;
    let parks = match watcher.set_role(Role::Participant) {
        Ok(()) => true,
        // An older driver tells of generations all the same.
        Err(RoleError::Unsupported) => false,
        Err(error) => return Err(ParticipateError::Role(error)),
    };
    let device = Device {
        watcher,
        lines: Lines::default(),
    };
    Session::new(device, io::stdout()).run(parks)
}

/// What happens next.
#[derive(Debug, PartialEq, Eq)]
enum Happening {
    /// The host asks for a snapshot.
    Asked,
    /// Its request is over, and this process did not park.
    Over,
    /// A generation that was not told yet has begun.
    Moved(u32),
    /// The program has said this line.
    Said(String),
    /// The program has ended.
    End,
}

/// The program's answers.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Parked(u32),
    Adapted(u32),
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.trim_end().split_once(' ')?;
        let number = number.parse().ok()?;
        match word {
            "parked" => Some(Self::Parked(number)),
            "adapted" => Some(Self::Adapted(number)),
            _ => None,
        }
    }
}

/// What a session needs of the device and the program: a trait, so that its tests can be both.
trait Source {
    /// Sleeps until something happens. `pending`: a request was told of. `told`: so was this generation.
    fn next(&mut self, pending: bool, told: Option<u32>) -> Result<Happening, ParticipateError>;
    fn current(&self) -> Result<u32, ParticipateError>;
    /// The generation, if it was not acknowledged yet.
    fn unacknowledged(&self) -> Result<Option<u32>, ParticipateError>;
    fn park(&self) -> Result<Outcome, ParkError>;
    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError>;
}

struct Session<S, W> {
    source: S,
    out: W,
    /// How many requests were told of.
    requests: u32,
    /// One of them stands.
    pending: bool,
    /// The generation that was told of and not acknowledged.
    told: Option<u32>,
}

impl<S: Source, W: Write> Session<S, W> {
    fn new(source: S, out: W) -> Self {
        Self {
            source,
            out,
            requests: 0,
            pending: false,
            told: None,
        }
    }

    fn run(&mut self, parks: bool) -> Result<(), ParticipateError> {
        let generation = self.source.current()?;
        self.say(&json!({"event": "ready", "generation": generation, "parks": parks}))?;
        loop {
            match self.source.next(self.pending, self.told)? {
                Happening::End => return Ok(()),
                Happening::Asked => {
                    self.requests = self.requests.wrapping_add(1);
                    self.pending = true;
                    self.say(&json!({"event": "pending", "request": self.requests}))?;
                }
                Happening::Over => {
                    self.pending = false;
                    self.call_off(self.requests)?;
                }
                Happening::Moved(generation) => self.tell(generation)?,
                Happening::Said(line) => self.answer(line)?,
            }
        }
    }

    fn answer(&mut self, line: String) -> Result<(), ParticipateError> {
        match Answer::parse(&line) {
            Some(Answer::Parked(request)) if self.pending && request == self.requests => {
                self.park()
            }
            Some(Answer::Adapted(generation)) if self.told == Some(generation) => {
                self.told = None;
                match self.source.acknowledge(generation) {
                    // Another one has begun, which comes next.
                    Err(AcknowledgeError::Stale(_)) => Ok(()),
                    result => Ok(result?),
                }
            }
            // The request was over when it was said, and the program stands still.
            Some(Answer::Parked(request)) => self.call_off(request),
            // Another one has begun, or it was acknowledged before.
            Some(Answer::Adapted(_)) => Ok(()),
            None => Err(ParticipateError::Said(line)),
        }
    }

    fn tell(&mut self, generation: u32) -> Result<(), ParticipateError> {
        self.told = Some(generation);
        self.say(&json!({"event": "generation", "generation": generation}))
    }

    /// A clone hears of its generation first, so that it does not go on as the original.
    fn call_off(&mut self, request: u32) -> Result<(), ParticipateError> {
        match self.source.unacknowledged()? {
            Some(generation) if self.told != Some(generation) => self.tell(generation)?,
            _ => {}
        }
        self.say(&json!({"event": "called-off", "request": request}))
    }

    fn park(&mut self) -> Result<(), ParticipateError> {
        let outcome = loop {
            match self.source.park() {
                Err(ParkError::Interrupted) => {}
                result => break result.map_err(ParticipateError::Park)?,
            }
        };
        self.pending = false;
        // After the park: what is told is never older than the clone.
        let generation = self.source.current()?;
        // A park that begins when the request is over ends at once, as in an original.
        let late = self.source.unacknowledged()?.is_some();
        let role = match outcome {
            Outcome::Original if !late => "original",
            _ => {
                self.told = Some(generation);
                "clone"
            }
        };
        self.say(&json!({"event": "forked", "role": role, "generation": generation}))
    }

    fn say(&mut self, value: &Value) -> Result<(), ParticipateError> {
        writeln!(self.out, "{value}")
            .and_then(|()| self.out.flush())
            .map_err(ParticipateError::Output)
    }
}

/// The device, and the program on the standard input.
struct Device {
    watcher: Watcher,
    lines: Lines,
}

impl Source for Device {
    fn next(&mut self, pending: bool, told: Option<u32>) -> Result<Happening, ParticipateError> {
        loop {
            if let Some(line) = self.lines.take() {
                return Ok(Happening::Said(line));
            }
            let mut ways = PollFlags::empty();
            ways.set(PollFlags::PRI, !pending);
            ways.set(PollFlags::IN, told.is_none());
            let limit = (pending || told.is_some()).then_some(SOON);
            let (device, input) = self.wait(ways, limit)?;
            if input {
                match self.lines.read().map_err(ParticipateError::Input)? {
                    true => continue,
                    false => return Ok(Happening::End),
                }
            }
            if device.contains(PollFlags::PRI) {
                return Ok(Happening::Asked);
            }
            let none = Some(Duration::ZERO);
            if pending && !self.watcher.asked(none).map_err(ParticipateError::Wait)? {
                return Ok(Happening::Over);
            }
            match self.unacknowledged()? {
                Some(generation) if told != Some(generation) => {
                    return Ok(Happening::Moved(generation));
                }
                _ => {}
            }
        }
    }

    fn current(&self) -> Result<u32, ParticipateError> {
        self.watcher.current().map_err(ParticipateError::Wait)
    }

    fn unacknowledged(&self) -> Result<Option<u32>, ParticipateError> {
        self.watcher.try_next().map_err(ParticipateError::Wait)
    }

    fn park(&self) -> Result<Outcome, ParkError> {
        self.watcher.park()
    }

    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError> {
        self.watcher.acknowledge(generation)
    }
}

impl Device {
    /// How the device is ready, and whether there is something to read of the program.
    fn wait(
        &self,
        ways: PollFlags,
        limit: Option<Duration>,
    ) -> Result<(PollFlags, bool), ParticipateError> {
        let input = io::stdin();
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut files = [
            PollFd::from_borrowed_fd(self.watcher.as_fd(), ways),
            PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN),
        ];
        loop {
            match poll(&mut files, limit.as_ref()) {
                Ok(_) => return Ok((files[0].revents(), !files[1].revents().is_empty())),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ParticipateError::Input(errno.into())),
            }
        }
    }
}

/// Lines of the standard input, of which no more is read than has come.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.0.drain(..=end).collect::<Vec<_>>();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Reads once. `false`: there is nothing more to come.
    fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; LONGEST_LINE];
        // Not through a buffer that poll(2) would not see.
        let read = rustix::io::read(io::stdin(), &mut bytes)?;
        self.0.extend_from_slice(&bytes[..read]);
        match self.0.len() > LONGEST_LINE && !self.0.contains(&b'\n') {
            true => Err(io::ErrorKind::InvalidData.into()),
            false => Ok(read > 0),
        }
    }
}

#[cfg(test)]
#[path = "participate_test.rs"]
mod tests;
