//! The calls of the fork point: all there is to them without a hypervisor that asks, and programs for one
//! that does.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::Subject;
use crate::observers::Info;
use crate::outcome::{Failure, Outcome, equal, refused, success, wanted};
use crate::privileges::become_nobody;
use crate::process::{Child, isolated};
use crate::raw::{Answer, Device};
use crate::restores::{mapping, tell};

const SET_ROLE: u64 = 0xe405;
const GET_REQUEST: u64 = 0x8010_e406;
const PARK: u64 = 0xe407;
const WAIT_PARKED: u64 = 0xe408;
const FORK_POINT: u64 = 0xc020_e409;
const IDENTITY: u64 = 0xe40b;
const REFUSE: u64 = 0x4008_e40c;

const NONE: u64 = 0;
const PARTICIPANT: u64 = 1;
const AGENT: u64 = 2;

/// Hooks have run, participants are parked.
const QUIESCED: u32 = 1;
const PARKED: u32 = 4;
const SELF: u32 = 0x100;

/// `struct sysgenid_request`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Request {
    ticket: u32,
    limit_ms: u32,
    flags: u32,
    reserved: u32,
}

/// `struct sysgenid_fork_point`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ForkPoint {
    size: u32,
    flags: u32,
    ticket: u32,
    timeout_ms: u32,
    result: u32,
    counter: u32,
    realtime: u64,
}

impl ForkPoint {
    const fn of(ticket: u32, flags: u32) -> Self {
        Self {
            size: size_of::<Self>() as u32,
            flags,
            ticket,
            timeout_ms: 0,
            result: 0,
            counter: 0,
            realtime: 0,
        }
    }
}

fn request(device: &Device) -> Answer<Request> {
    let mut request = Request::default();
    device.pass(GET_REQUEST, &mut request)?;
    Ok(request)
}

fn fork_point(device: &Device, mut fork: ForkPoint) -> Answer<ForkPoint> {
    device.pass(FORK_POINT, &mut fork)?;
    Ok(fork)
}

fn refuse(device: &Device, ticket: u32, reason: u32) -> Answer {
    device.pass(REFUSE, &mut [ticket, reason])
}

/// Every call and every errno, where nobody asks.
pub(crate) fn roles(subject: Subject<'_>) -> Outcome {
    let (agent, other) = (subject.open()?, subject.open()?);
    refused("no such role", other.ioctl(SET_ROLE, 3), libc::EINVAL)?;
    wanted("an agent", agent.ioctl(SET_ROLE, AGENT), Ok(0))?;
    wanted("once more", agent.ioctl(SET_ROLE, AGENT), Ok(0))?;
    refused("a second one", other.ioctl(SET_ROLE, AGENT), libc::EBUSY)?;
    wanted("a participant", other.ioctl(SET_ROLE, PARTICIPANT), Ok(0))?;
    for device in [&agent, &other] {
        equal("poll", success("poll", device.poll(0))? & libc::POLLPRI, 0)?;
    }
    equal("pending", mapping(subject)?.word(1), 0)?;
    not_an_agent(subject, &other)?;
    an_agent(subject, &agent)?;
    wanted("park without a request", other.ioctl(PARK, 0), Ok(0))?;
    refused("an agent parks", agent.ioctl(PARK, 0), libc::EPERM)?;
    wanted("no agent", agent.ioctl(SET_ROLE, NONE), Ok(0))?;
    wanted("the next one", other.ioctl(SET_ROLE, AGENT), Ok(0))?;
    drop(other);
    wanted("its successor", agent.ioctl(SET_ROLE, AGENT), Ok(0))?;
    isolated(|| {
        become_nobody()?;
        let nobody = subject.open()?;
        wanted(
            "nobody takes part",
            nobody.ioctl(SET_ROLE, PARTICIPANT),
            Ok(0),
        )?;
        refused(
            "nobody as agent",
            nobody.ioctl(SET_ROLE, AGENT),
            libc::EACCES,
        )?;
        let fork = fork_point(&nobody, ForkPoint::of(1, 0));
        refused("nobody's fork point", fork, libc::EACCES)?;
        refused("nobody's identity", nobody.ioctl(IDENTITY, 0), libc::EACCES)
    })
}

fn not_an_agent(subject: Subject<'_>, other: &Device) -> Outcome {
    refused("request", request(other), libc::EPERM)?;
    refused("wait", other.ioctl(WAIT_PARKED, 0), libc::EPERM)?;
    refused("refuse", refuse(other, 1, 1), libc::EPERM)?;
    refused("fork", fork_point(other, ForkPoint::of(1, 0)), libc::EACCES)?;
    let current = subject.current(other)?;
    let identity = other.ioctl(IDENTITY, current.into());
    refused("identity", identity, libc::EPERM)
}

fn an_agent(subject: Subject<'_>, agent: &Device) -> Outcome {
    wanted("request", request(agent), Ok(Request::default()))?;
    refused("nowhere", agent.ioctl(GET_REQUEST, 8), libc::EFAULT)?;
    refused("from nowhere", agent.ioctl(FORK_POINT, 8), libc::EFAULT)?;
    static CONSTANT: ForkPoint = ForkPoint::of(1, 0);
    let constant = (&raw const CONSTANT).expose_provenance() as u64;
    refused(
        "to nowhere",
        agent.ioctl(FORK_POINT, constant),
        libc::EFAULT,
    )?;
    refused("wait", agent.ioctl(WAIT_PARKED, 0), libc::ESTALE)?;
    refused("refuse", refuse(agent, 1, 1), libc::ESTALE)?;
    for reason in [0, 11] {
        refused("a reason", refuse(agent, 1, reason), libc::EINVAL)?;
    }
    for (what, fork, errno) in [
        ("no request", ForkPoint::of(0, 0), libc::ESTALE),
        ("a ticket", ForkPoint::of(1, 7), libc::ESTALE),
        ("flags", ForkPoint::of(1, 8), libc::EINVAL),
        // No hypervisor lets it ask, or there is none.
        ("itself", ForkPoint::of(1, SELF), libc::EOPNOTSUPP),
        ("itself by no tag", ForkPoint::of(0, SELF), libc::EINVAL),
        (
            "a size",
            ForkPoint {
                size: 24,
                ..ForkPoint::of(1, 0)
            },
            libc::EINVAL,
        ),
    ] {
        refused(what, fork_point(agent, fork), errno)?;
    }
    let current = subject.current(agent)?;
    wanted("identity", agent.ioctl(IDENTITY, current.into()), Ok(0))?;
    let stale = agent.ioctl(IDENTITY, u64::from(current) + 1);
    refused("a stale identity", stale, libc::EINVAL)
}

/// For a hypervisor that asks: an agent and a participant, which print what becomes of it. Does not end.
pub(crate) fn forks(subject: Subject<'_>) -> Outcome {
    let (agent, other) = (subject.open()?, subject.open()?);
    wanted("an agent", agent.ioctl(SET_ROLE, AGENT), Ok(0))?;
    wanted("a participant", other.ioctl(SET_ROLE, PARTICIPANT), Ok(0))?;
    let page = mapping(subject)?;
    tell("ready")?;
    thread::scope(|scope| {
        let parking = scope.spawn(|| {
            loop {
                while success("poll", other.poll(-1))? & libc::POLLPRI == 0 {
                    thread::sleep(Duration::from_millis(10));
                }
                tell(&format!("parked {:?}", other.ioctl(PARK, 0)))?;
            }
        });
        loop {
            let ticket = asked(&agent)?;
            tell(&format!("pending {}", page.word(1)))?;
            wanted("all park", agent.ioctl(WAIT_PARKED, 10_000), Ok(0))?;
            refused(
                "another",
                fork_point(&agent, ForkPoint::of(!ticket, 0)),
                libc::ESTALE,
            )?;
            let fork = fork_point(&agent, ForkPoint::of(ticket, QUIESCED | PARKED));
            let fork = success("fork point", fork)?;
            let pending = page.word(1);
            tell(&format!(
                "forked {} {} {pending}",
                fork.result, fork.counter
            ))?;
            wanted("over", request(&agent), Ok(Request::default()))?;
            wanted(
                "identity",
                agent.ioctl(IDENTITY, fork.counter.into()),
                Ok(0),
            )?;
            if parking.is_finished() {
                break parking.join().unwrap_or(Ok(()));
            }
        }
    })
}

/// An agent that has the machine stand still once, when all participants are parked.
pub(crate) struct Agent(Device);

impl Agent {
    pub(crate) fn new(subject: Subject<'_>) -> Outcome<Self> {
        let device = subject.open()?;
        wanted("an agent", device.ioctl(SET_ROLE, AGENT), Ok(0))?;
        Ok(Self(device))
    }

    pub(crate) fn forks(&self) -> Outcome {
        let ticket = asked(&self.0)?;
        wanted("all park", self.0.ioctl(WAIT_PARKED, 10_000), Ok(0))?;
        let fork = fork_point(&self.0, ForkPoint::of(ticket, PARKED));
        success("fork point", fork).map(drop)
    }
}

/// A file of a thread that parks.
pub(crate) struct Participant(Device);

impl Participant {
    pub(crate) fn new(subject: Subject<'_>) -> Outcome<Self> {
        let device = subject.open()?;
        wanted("a participant", device.ioctl(SET_ROLE, PARTICIPANT), Ok(0))?;
        Ok(Self(device))
    }

    pub(crate) fn park(&self) -> Outcome {
        success("park", self.0.ioctl(PARK, 0)).map(drop)
    }
}

/// Waits for a request, and returns its ticket.
fn asked(agent: &Device) -> Outcome<u32> {
    loop {
        let events = success("poll", agent.poll(-1))?;
        if events & libc::POLLPRI == 0 {
            // There is a generation as well.
            let new = success("read", agent.generation())?;
            wanted("acknowledgement", agent.acknowledge(new), Ok(4))?;
            continue;
        }
        let request = success("request", request(agent))?;
        let again = success("poll", agent.poll(0))? & libc::POLLPRI;
        equal("told already", again, 0)?;
        if request.ticket != 0 {
            return Ok(request.ticket);
        }
        tell("withdrawn")?;
    }
}

/// For a hypervisor that asks: an agent that ends when it is asked, or refuses.
pub(crate) fn leaves(subject: Subject<'_>, reason: u32) -> Outcome {
    let agent = subject.open()?;
    wanted("an agent", agent.ioctl(SET_ROLE, AGENT), Ok(0))?;
    tell("ready")?;
    let ticket = asked(&agent)?;
    if reason != 0 {
        wanted("refusal", refuse(&agent, ticket, reason), Ok(0))?;
    }
    tell("left")
}

/// For a hypervisor that asks: who is parked is counted, also while it is frozen, and not if its program
/// may run; one without privileges blocks nobody. Refuses at last.
pub(crate) fn parks(subject: Subject<'_>) -> Outcome {
    let (agent, parker) = (subject.open()?, subject.open()?);
    wanted("an agent", agent.ioctl(SET_ROLE, AGENT), Ok(0))?;
    wanted("a participant", parker.ioctl(SET_ROLE, PARTICIPANT), Ok(0))?;
    let (mut heard, said) = UnixStream::pair().map_err(failure)?;
    let program = Child::spawn(|| parks_unless_interrupted(&parker, said))?;
    let group = Group::of(&program)?;
    // The program has no copy of it.
    let idle = subject.open()?;
    isolated(|| {
        become_nobody()?;
        wanted("nobody's", idle.ioctl(SET_ROLE, PARTICIPANT), Ok(0))
    })?;
    tell("ready")?;
    let ticket = asked(&agent)?;
    until_required_are_parked(&agent)?;
    let part = |device| Info::of(device).map(|info| (info.role, info.parked));
    equal("the parker's lines", part(&parker)?, (1, 1))?;
    equal("the idle one's lines", part(&idle)?, (1, 0))?;
    let fork = fork_point(&agent, ForkPoint::of(ticket, PARKED));
    refused("parked, not all", fork, libc::EBUSY)?;

    group.freeze(true)?;
    wanted("frozen", agent.ioctl(WAIT_PARKED, 0), Ok(1))?;
    program.signal(libc::SIGALRM);
    group.freeze(false)?;
    heard.read_exact(&mut [0]).map_err(failure)?;
    group.freeze(true)?;
    refused("it has run", agent.ioctl(WAIT_PARKED, 0), libc::ETIME)?;
    let asked_again = success("poll", parker.poll(0))? & libc::POLLPRI;
    equal("asked again", asked_again, libc::POLLPRI)?;

    program.signal(libc::SIGALRM);
    group.freeze(false)?;
    until_required_are_parked(&agent)?;
    drop(idle);
    wanted("all park", agent.ioctl(WAIT_PARKED, 10_000), Ok(0))?;
    wanted("refusal", refuse(&agent, ticket, 8), Ok(0))
}

/// A program that parks when it is asked. When a signal has ended that it waits for the next one, and
/// hears nothing of its file.
fn parks_unless_interrupted(device: &Device, mut said: UnixStream) -> Outcome {
    extern "C" fn handle(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGALRM, handle as *const () as libc::sighandler_t) };
    loop {
        // A signal may have come.
        if device.poll(-1).unwrap_or_default() & libc::POLLPRI == 0 {
            continue;
        }
        if device.ioctl(PARK, 0) == Err(libc::EINTR) {
            said.write_all(b".").map_err(failure)?;
            // SAFETY: the call has no requirements.
            unsafe { libc::pause() };
        }
    }
}

fn until_required_are_parked(agent: &Device) -> Outcome {
    loop {
        match agent.ioctl(WAIT_PARKED, 100) {
            Err(libc::ETIME) => {}
            answer => return wanted("the required ones park", answer, Ok(1)),
        }
    }
}

/// A control group of a process.
struct Group(&'static Path);

impl Group {
    fn of(program: &Child) -> Outcome<Self> {
        let path = Path::new("/sys/fs/cgroup/parker");
        fs::create_dir(path).map_err(failure)?;
        let id = program.id().to_string();
        fs::write(path.join("cgroup.procs"), id).map_err(failure)?;
        Ok(Self(path))
    }

    /// Freezes it, and waits until it is; or thaws it.
    fn freeze(&self, frozen: bool) -> Outcome {
        let number = u8::from(frozen).to_string();
        fs::write(self.0.join("cgroup.freeze"), number).map_err(failure)?;
        while frozen && !self.is_frozen()? {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn is_frozen(&self) -> Outcome<bool> {
        let events = fs::read_to_string(self.0.join("cgroup.events")).map_err(failure)?;
        Ok(events.contains("frozen 1"))
    }
}

fn failure(error: std::io::Error) -> Failure {
    Failure::new(error.to_string())
}
