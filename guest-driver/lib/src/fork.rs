//! The fork point: a snapshot of a running machine that the host asks for first.
//!
//! The host's request comes to the machine's *agent*. It has programs come to rest, and then has all CPUs
//! stand still in the kernel while the snapshot is taken. *Participants* are programs that are
//! waited for before that.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::BitOr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::abi::{Call, RawForkPoint, RawRefusal, RawRequest, Request, exchange, io};
use crate::error::{
    ForkPointError, IdentityError, ParkError, ParkedError, RefuseError, RequestError, RoleError,
    WaitError,
};
use crate::watcher::{Watcher, milliseconds};

/// What an open file is at a fork point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Not concerned, as every file is from `open` on.
    None,
    /// Waited for until it is [parked](Watcher::park).
    Participant,
    /// Told of the host's requests. There is one agent at a time, and it needs
    /// `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN` in the initial user namespace.
    Agent,
}

impl Role {
    const fn number(self) -> usize {
        match self {
            Self::None => 0,
            Self::Participant => 1,
            Self::Agent => 2,
        }
    }
}

/// Which participants are parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parked {
    /// All of them.
    All,
    /// Those that a fork point has to wait for. Some other has not parked in time.
    Required,
}

/// Who goes on after a fork point.
///
/// By name, as the numbers of `fork(2)` mean the reverse: there 0 is the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The machine that was asked. Nothing of it has changed.
    Original,
    /// A machine that was restored from the snapshot. The counter has moved, and the kernel's random
    /// number generator was reseeded before any program ran.
    Clone,
}

/// What the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForkRequest {
    /// Names the request; each has another one.
    pub ticket: NonZeroU32,
    /// What was left of the host's time for it when it was looked at.
    pub limit: Duration,
}

impl ForkRequest {
    /// A request as the driver tells it: for stand-ins of a driver in tests.
    #[must_use]
    pub const fn new(ticket: NonZeroU32, limit: Duration) -> Self {
        Self { ticket, limit }
    }
}

/// What was done before a fork point; the host tells it to whoever asked for the snapshot.
///
/// ```
/// use sysgenid::Prepared;
///
/// let prepared = Prepared::QUIESCED | Prepared::FROZEN;
/// assert!(prepared.contains(Prepared::FROZEN) && !prepared.contains(Prepared::PARKED));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prepared(u32);

impl Prepared {
    /// Nothing.
    pub const NOTHING: Self = Self(0);
    /// Hooks have brought services to rest.
    pub const QUIESCED: Self = Self(1);
    /// All programs but a few are frozen: no system call is under way in them.
    pub const FROZEN: Self = Self(2);
    /// All participants are parked.
    pub const PARKED: Self = Self(4);

    /// Whether all of `other` is part of it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Prepared {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a fork point ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForkPoint {
    /// Who goes on.
    pub outcome: Outcome,
    /// The generation that goes on: in the original the one before.
    pub generation: u32,
    /// The time of day when the CPUs ran again, in a clone after the clock was set.
    pub realtime: SystemTime,
}

/// Why an agent refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A hook failed.
    HookFailed,
    /// A hook took too long.
    HookHung,
    /// Programs could not be frozen in time.
    NotFrozen,
    /// Something else is under way, such as the adaptation to a generation.
    Busy,
    /// The agent ends.
    AgentGone,
    /// A participant has not parked in time.
    NotParked,
    /// Anything else; the agent's log says what.
    Other,
}

impl Reason {
    const fn number(self) -> u32 {
        match self {
            Self::HookFailed => 1,
            Self::HookHung => 2,
            Self::NotFrozen => 3,
            Self::Busy => 6,
            Self::AgentGone => 7,
            Self::NotParked => 8,
            Self::Other => 10,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HookFailed => "a hook failed",
            Self::HookHung => "a hook took too long",
            Self::NotFrozen => "programs could not be frozen",
            Self::Busy => "something else is under way",
            Self::AgentGone => "the agent ends",
            Self::NotParked => "a program has not parked",
            Self::Other => "there is another reason",
        })
    }
}

/// The fork point.
impl Watcher {
    fn send(&self, call: Call, argument: usize) -> Result<i32, Errno> {
        Request::new(self.abi(), call, argument).send(self)
    }

    /// Says what this file is at a fork point. The role goes with the file's end.
    ///
    /// # Errors
    /// [`RoleError::Unsupported`], [`RoleError::Busy`], [`RoleError::NotPermitted`], or what else the
    /// driver said.
    pub fn set_role(&self, role: Role) -> Result<(), RoleError> {
        match self.send(Call::SetRole, role.number()) {
            Ok(_) => Ok(()),
            // All that is asked for are roles that there are.
            Err(Errno::INVAL | Errno::NOTTY) => Err(RoleError::Unsupported),
            Err(Errno::BUSY) => Err(RoleError::Busy),
            Err(Errno::ACCESS | Errno::PERM) => Err(RoleError::NotPermitted),
            Err(errno) => Err(RoleError::Os(io(errno))),
        }
    }

    /// Sleeps until a file with a role is asked for something (`POLLPRI`), for at most `limit`, and
    /// says whether it is.
    ///
    /// An agent is, while the host's request is another one than [`request`](Self::request) last
    /// said, also when it was withdrawn. A participant is, from a request on until it has parked.
    /// A file without a role is never asked.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when a signal handler ran; when the device cannot be polled.
    pub fn asked(&self, limit: Option<Duration>) -> Result<bool, WaitError> {
        self.polled(PollFlags::PRI, limit)
    }

    /// The host's request, if there is one now. For the agent. Never blocks.
    ///
    /// Which race this closes: a request that is withdrawn, or made anew, after this call is told of
    /// by [`asked`](Self::asked), and [`fork_point`](Self::fork_point) refuses the old ticket.
    ///
    /// # Errors
    /// [`RequestError::NotAgent`], [`RequestError::Unsupported`], or what else the driver said.
    pub fn request(&self) -> Result<Option<ForkRequest>, RequestError> {
        let mut raw = RawRequest::default();
        match exchange(self, &mut raw) {
            Ok(()) => Ok(NonZeroU32::new(raw.ticket).map(|ticket| ForkRequest {
                ticket,
                limit: Duration::from_millis(raw.limit_ms.into()),
            })),
            Err(Errno::PERM | Errno::ACCESS) => Err(RequestError::NotAgent),
            Err(Errno::INVAL | Errno::NOTTY) => Err(RequestError::Unsupported),
            Err(errno) => Err(RequestError::Os(io(errno))),
        }
    }

    /// Says, as a participant, that nothing unique is in flight, and sleeps until the request is over.
    ///
    /// [`Outcome::Clone`]: read, renew and acknowledge as in every new generation.
    /// [`Outcome::Original`]: go on as before. So it is too when there is no request, or nothing
    /// came of it.
    ///
    /// Which race this closes: the machine is cloned with this thread inside of this call, with
    /// nothing in hand, so no two clones do the same with it. Which it does not: other threads of the process,
    /// unless this one has brought them to rest; a snapshot that is taken without a request.
    ///
    /// # Errors
    /// [`ParkError::Interrupted`], [`ParkError::NotParticipant`], [`ParkError::Unsupported`], or what
    /// else the driver said.
    pub fn park(&self) -> Result<Outcome, ParkError> {
        match self.send(Call::Park, 0) {
            Ok(0) => Ok(Outcome::Original),
            Ok(_) => Ok(Outcome::Clone),
            Err(Errno::INTR) => Err(ParkError::Interrupted),
            Err(Errno::PERM | Errno::ACCESS) => Err(ParkError::NotParticipant),
            Err(Errno::INVAL | Errno::NOTTY) => Err(ParkError::Unsupported),
            Err(errno) => Err(ParkError::Os(io(errno))),
        }
    }

    /// Sleeps, as the agent, until all participants are parked, for at most `limit` (rounded up to
    /// milliseconds; zero looks once).
    ///
    /// [`Parked::Required`] when the time is over and all are that a fork point has to wait for. Then
    /// [`Prepared::PARKED`] is not the truth.
    ///
    /// # Errors
    /// [`ParkedError::TimedOut`], [`ParkedError::NoRequest`], [`ParkedError::Interrupted`],
    /// [`ParkedError::NotAgent`], [`ParkedError::Unsupported`], or what else the driver said.
    pub fn wait_parked(&self, limit: Duration) -> Result<Parked, ParkedError> {
        let argument = match limit.is_zero() {
            true => 0,
            false => milliseconds(Some(limit)),
        };
        match self.send(Call::WaitParked, argument) {
            Ok(0) => Ok(Parked::All),
            Ok(_) => Ok(Parked::Required),
            Err(Errno::TIME) => Err(ParkedError::TimedOut(limit)),
            Err(Errno::STALE) => Err(ParkedError::NoRequest),
            Err(Errno::INTR) => Err(ParkedError::Interrupted),
            Err(Errno::PERM | Errno::ACCESS) => Err(ParkedError::NotAgent),
            Err(Errno::INVAL | Errno::NOTTY) => Err(ParkedError::Unsupported),
            Err(errno) => Err(ParkedError::Os(io(errno))),
        }
    }

    /// Has all CPUs stand still in the kernel, as the agent, while the host takes the snapshot that it
    /// has asked for by `ticket`.
    ///
    /// **Every thread of the machine is cloned with the caller; this is no `fork(2)` of a process.** It
    /// returns in the original and in each clone, and says which it is. `standstill` is how long the
    /// CPUs may stand: at most 10 s; `None` is 2 s.
    ///
    /// Which race this closes: in a clone no program runs before the kernel's random number generator
    /// was reseeded and the counter moved. Which it does not: what a program had in hand. Who must
    /// not act on it twice is [parked](Self::park), or was brought to rest.
    ///
    /// # Errors
    /// See [`ForkPointError`]; whatever it is, no snapshot was taken. [`ForkPointError::Busy`] also says
    /// that [`Prepared::PARKED`] is not the truth any more: wait for the participants again.
    pub fn fork_point(
        &self,
        ticket: NonZeroU32,
        prepared: Prepared,
        standstill: Option<Duration>,
    ) -> Result<ForkPoint, ForkPointError> {
        self.stand_still(prepared.0, ticket, standstill)
    }

    /// Asks the host for a snapshot of this machine, and has all CPUs stand still in the kernel while the
    /// host takes it.
    ///
    /// **Every other thread of the machine is cloned with the caller; this is no `fork(2)` of a process.**
    /// It returns in the original and, in each clone that is made of the snapshot, once more, and says
    /// which it is. Where snapshots go and how many there may be is the host's; `tag` is a number for
    /// those who read its log. `limit` is how long the host may take to agree, and then the CPUs may
    /// stand: at most 10 s; `None` is 2 s. The process needs the capability as for
    /// [`trigger`](Self::trigger), and no role: an agent is not asked, and nothing is brought to rest but
    /// what the caller has, which it says by `prepared`.
    ///
    /// Which race this closes, and which it does not: as [`fork_point`](Self::fork_point).
    ///
    /// # Errors
    /// See [`ForkPointError`]; whatever it is, no snapshot was taken. An older driver says
    /// [`Refused`](ForkPointError::Refused) always.
    pub fn fork_self(
        &self,
        tag: NonZeroU32,
        prepared: Prepared,
        limit: Option<Duration>,
    ) -> Result<ForkPoint, ForkPointError> {
        const SELF: u32 = 0x100;
        self.stand_still(prepared.0 | SELF, tag, limit)
    }

    fn stand_still(
        &self,
        flags: u32,
        ticket: NonZeroU32,
        limit: Option<Duration>,
    ) -> Result<ForkPoint, ForkPointError> {
        let limit = limit.map_or(0, |limit| milliseconds(Some(limit)));
        let mut raw = RawForkPoint {
            size: size_of::<RawForkPoint>() as u32,
            flags,
            ticket: ticket.get(),
            timeout_ms: u32::try_from(limit).unwrap_or(u32::MAX),
            ..RawForkPoint::default()
        };
        match exchange(self, &mut raw) {
            Ok(()) => ForkPoint::from_raw(raw),
            Err(Errno::STALE) => Err(ForkPointError::Stale),
            Err(Errno::CANCELED) => Err(ForkPointError::Cancelled),
            Err(Errno::TIME) => Err(ForkPointError::TimedOut),
            Err(Errno::BUSY) => Err(ForkPointError::Busy),
            Err(Errno::AGAIN) => Err(ForkPointError::NotReady),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => Err(ForkPointError::Unsupported),
            Err(Errno::PERM) => Err(ForkPointError::Refused),
            Err(Errno::ACCESS) => Err(ForkPointError::NotPermitted),
            Err(errno) => Err(ForkPointError::Os(io(errno))),
        }
    }

    /// Says, as the agent, that the machine is another one to its neighbours in `generation`: names,
    /// addresses and keys have been renewed. The host may open its network then.
    ///
    /// Which race this closes: as [`acknowledge`](Self::acknowledge).
    ///
    /// # Errors
    /// [`IdentityError::Stale`], [`IdentityError::NotPermitted`], [`IdentityError::Unsupported`], or what
    /// else the driver said.
    pub fn identity(&self, generation: u32) -> Result<(), IdentityError> {
        match self.send(Call::Identity, generation as usize) {
            Ok(_) => Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => Err(IdentityError::NotPermitted),
            Err(Errno::NOTTY) => Err(IdentityError::Unsupported),
            // An older driver says the same of a call that it does not know.
            Err(Errno::INVAL) => match self.current() {
                Ok(current) if current == generation => Err(IdentityError::Unsupported),
                _ => Err(IdentityError::Stale(generation)),
            },
            Err(Errno::AGAIN | Errno::INTR) => Err(IdentityError::Unfinished(generation)),
            Err(errno) => Err(IdentityError::Os {
                generation,
                source: io(errno),
            }),
        }
    }

    /// Refuses, as the agent, the host's request: it is over, and no snapshot is taken by it.
    ///
    /// # Errors
    /// [`RefuseError::Stale`], [`RefuseError::NotAgent`], [`RefuseError::Unsupported`], or what else the
    /// driver said.
    pub fn refuse(&self, ticket: NonZeroU32, reason: Reason) -> Result<(), RefuseError> {
        let mut raw = RawRefusal {
            ticket: ticket.get(),
            reason: reason.number(),
        };
        match exchange(self, &mut raw) {
            Ok(()) => Ok(()),
            Err(Errno::STALE) => Err(RefuseError::Stale),
            Err(Errno::PERM | Errno::ACCESS) => Err(RefuseError::NotAgent),
            Err(Errno::INVAL | Errno::NOTTY) => Err(RefuseError::Unsupported),
            Err(errno) => Err(RefuseError::Os(io(errno))),
        }
    }
}

impl ForkPoint {
    /// An end as the driver tells it: for stand-ins of a driver in tests.
    #[must_use]
    pub const fn new(outcome: Outcome, generation: u32, realtime: SystemTime) -> Self {
        Self {
            outcome,
            generation,
            realtime,
        }
    }

    fn from_raw(raw: RawForkPoint) -> Result<Self, ForkPointError> {
        let outcome = match raw.result {
            1 => Outcome::Original,
            2 => Outcome::Clone,
            other => {
                let text = format!("the driver gave back the unknown result {other}");
                return Err(ForkPointError::Os(std::io::Error::other(text)));
            }
        };
        Ok(Self {
            outcome,
            generation: raw.counter,
            realtime: UNIX_EPOCH + Duration::from_nanos(raw.realtime),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{Abi, Counter, Options};

    /// A file in the place of the device, with a counter and the word behind it.
    fn stand_in(words: &[u32]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for word in words {
            file.write_all(&word.to_ne_bytes()).unwrap();
        }
        file
    }

    #[test]
    fn the_word_behind_the_counter_tells_of_a_request_and_is_none_where_it_is_missing() {
        for (words, pending) in [
            (&[7, 0][..], false),
            (&[7, 1], true),
            (&[7, 1 << 31], true),
            (&[7], false),
        ] {
            let file = stand_in(words);
            let counter = Counter::open_at(file.path()).unwrap();
            assert_eq!(
                (counter.get(), counter.pending()),
                (7, pending),
                "{words:?}"
            );
        }
    }

    #[test]
    fn a_device_that_knows_no_fork_points_is_told_from_one_that_refuses() {
        let file = stand_in(&[7]);
        let options = Options::new().path(file.path()).abi(Abi::Seed);
        let watcher = options.open().unwrap();
        let ticket = NonZeroU32::MIN;
        assert!(matches!(
            watcher.set_role(Role::Agent),
            Err(RoleError::Unsupported)
        ));
        assert!(matches!(watcher.request(), Err(RequestError::Unsupported)));
        assert!(matches!(watcher.park(), Err(ParkError::Unsupported)));
        assert!(matches!(
            watcher.wait_parked(Duration::ZERO),
            Err(ParkedError::Unsupported)
        ));
        assert!(matches!(
            watcher.fork_point(ticket, Prepared::NOTHING, None),
            Err(ForkPointError::Unsupported)
        ));
        assert!(matches!(
            watcher.fork_self(ticket, Prepared::NOTHING, None),
            Err(ForkPointError::Unsupported)
        ));
        assert!(matches!(
            watcher.identity(7),
            Err(IdentityError::Unsupported)
        ));
        assert!(matches!(
            watcher.refuse(ticket, Reason::Other),
            Err(RefuseError::Unsupported)
        ));
    }

    #[test]
    fn original_and_clone_are_told_by_name_and_nothing_else_is_taken_for_either() {
        let of = |result| {
            ForkPoint::from_raw(RawForkPoint {
                result,
                counter: 9,
                realtime: 1_500_000_000,
                ..RawForkPoint::default()
            })
        };
        let original = of(1).unwrap();
        assert_eq!(
            (original.outcome, original.generation),
            (Outcome::Original, 9)
        );
        assert_eq!(
            original.realtime.duration_since(UNIX_EPOCH).unwrap(),
            Duration::from_millis(1500)
        );
        assert_eq!(of(2).unwrap().outcome, Outcome::Clone);
        for unknown in [0, 3, u32::MAX] {
            assert!(matches!(of(unknown), Err(ForkPointError::Os(_))));
        }
    }
}
