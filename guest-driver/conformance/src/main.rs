//! Does a `/dev/sysgenid` keep its word? One static program for real guests: each test is a
//! subcommand, prints `ok NAME` or `FAIL NAME: why`, and exits with 1 on failure.
//!
//! The tests begin generations and wait for all watchers, so they need a machine of their own: run
//! as root, one at a time, with no other watcher that is slow to acknowledge.

mod agents;
mod clock;
mod compat;
mod concurrency;
mod descriptors;
mod files;
mod fork_point;
mod latency;
mod long_draws;
mod mapping;
mod memory;
mod observers;
mod outcome;
mod privileges;
mod process;
mod raw;
mod reseed;
mod restores;
mod taking_part;
mod unaware;
mod waiting;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use outcome::{Outcome, wanted};
use raw::Device;

/// Does a /dev/sysgenid keep its word?
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  sysgenid-test all
  sysgenid-test --abi 8 conformance
  sysgenid-test stress --seconds 60"
)]
struct Cli {
    /// The device.
    #[arg(long, global = true, default_value = sysgenid::DEVICE)]
    device: PathBuf,
    /// The numbering that the module was told to serve.
    #[arg(long, global = true, default_value = "5")]
    abi: Numbering,
    #[command(subcommand)]
    test: Test,
}

/// Which numbering is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Numbering {
    /// The default.
    #[value(name = "5")]
    Seed,
    /// Versions 6 to 8 of the original patches.
    #[value(name = "8")]
    Deployed,
}

impl Numbering {
    fn wait(self) -> u64 {
        match self {
            Self::Seed => 0xe401,
            Self::Deployed => 0xe402,
        }
    }

    fn trigger(self) -> u64 {
        0xe403
    }

    fn track(self) -> u64 {
        match self {
            Self::Seed => 0xe404,
            Self::Deployed => 0xe401,
        }
    }

    /// What a write of another size than 4 is answered with.
    fn wrong_size(self) -> i32 {
        match self {
            Self::Seed => libc::EINVAL,
            Self::Deployed => libc::ENOBUFS,
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
enum Test {
    /// Every test but `compat`, `no-memory` and `overflow`, in order.
    All(Effort),
    /// Every call and every errno: read-write, generations, wait, tracking, ioctl, library.
    Conformance,
    /// read and write: sizes, addresses, EAGAIN, stale acknowledgements.
    ReadWrite,
    /// What the counter does on request, and who is told.
    Generations,
    /// Waiting for watchers: success, ETIME, EINTR, limits.
    Wait,
    /// The tracking switch and its rule at open.
    Tracking,
    /// Requests that do not exist.
    Ioctl,
    /// The crate `sysgenid` finds the numbering out and agrees with it.
    Library,
    /// What may be mapped and how.
    Mmap,
    /// epoll, level and edge triggered.
    Epoll,
    /// A blocked read is woken by a new generation, and by a signal.
    BlockedRead,
    /// Waiting for the watcher of another process, which acknowledges or dies.
    WaitProcess,
    /// A user without privilege may do everything but begin a generation.
    Unprivileged,
    /// Root of a user namespace may not begin a generation.
    UserNamespace,
    /// Either of the two capabilities suffices to begin a generation, none does not.
    Capabilities,
    /// An agent's word, and the watchers that a host waits for.
    Ready,
    /// The calls of the fork point, where no hypervisor asks.
    Roles,
    /// For a machine that is forked meanwhile: an agent and a participant. Does not end.
    Forks,
    /// For a machine that is asked to fork: an agent that refuses for this reason, or ends with 0.
    Leaves {
        /// The reason.
        reason: u32,
    },
    /// For a machine that is asked to fork, with control groups: who counts as parked. Refuses.
    Parks,
    /// A wait without limit, of a process that is stopped and continued.
    Stopped,
    /// For a machine that is restored meanwhile: a watcher without privileges. Does not end.
    Idle,
    /// Positions, copies of a descriptor, descriptors in other processes and on their way there.
    Descriptors,
    /// What /proc and debugfs show of watchers.
    FileInfo,
    /// `select()`.
    Select,
    /// Each generation is told by one uevent.
    Uevents,
    /// The calls of 32-bit programs, on a kernel that serves them. Leaves the counter above 2^31.
    Compat,
    /// Opening without memory, on a kernel that can be told to fail allocations.
    NoMemory,
    /// Threads that open, trigger, acknowledge and close at once.
    Stress(Effort),
    /// Opens and closes ten thousand times.
    OpenClose(Effort),
    /// At 2^32-1 a request is refused. The counter stays there: run it last.
    Overflow,
    /// For a machine that is restored meanwhile: prints who learns of the new generation, and how.
    Notice,
    /// For a machine that is restored meanwhile, without its interrupt: makes one call after the
    /// first load that shows it.
    AtOnce {
        /// The call.
        call: restores::Call,
    },
    /// Keeps a mapping and prints what it shows. Does not end.
    Hold,
    /// For a machine that is restored meanwhile, again and again: counts stale loads. Does not end.
    FirstLoad,
    /// For a machine that is forked meanwhile: prints what each CPU sees of the counter. Does not end.
    Spin,
    /// For a machine that is forked meanwhile: prints what is drawn on each CPU then.
    Draw {
        /// The threads take part.
        #[arg(long)]
        park: bool,
        /// One thread draws a megabyte at a time.
        #[arg(long)]
        long: bool,
    },
    /// For a machine that is restored meanwhile: reseeds the kernel's generator on the second CPU and prints what it draws
    /// there once the kernel has reseeded for the restore as well. Needs no device.
    LateReseed {
        /// Draws only when the driver has taken its word that it has finished.
        #[arg(long)]
        agent: bool,
        /// The machine is forked, and the driver alone tells of it: draws before its word as well.
        #[arg(long, conflicts_with = "agent")]
        fork: bool,
    },
    /// For a machine that is restored meanwhile: prints how long after the first load that shows the resume
    /// a mapping and a blocked read show the new generation. Does not end.
    Latency,
    /// For a machine that is restored meanwhile: prints how often the counter was loaded before the kernel's
    /// generator was reseeded, and what was drawn first.
    Unaware,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Effort {
    /// How many seconds the threads run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How many threads there are.
    #[arg(long, default_value_t = 64)]
    threads: usize,
    /// How many times to open and close.
    #[arg(long, default_value_t = 10_000)]
    times: u32,
}

/// The device under test.
#[derive(Clone, Copy)]
struct Subject<'a> {
    path: &'a std::path::Path,
    numbering: Numbering,
}

impl Subject<'_> {
    /// A non-blocking file for reading and writing, which is tracked.
    fn open(&self) -> Outcome<Device> {
        let device = self.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
        if self.numbering == Numbering::Deployed {
            wanted("tracking on", device.track(true), Ok(0))?;
        }
        Ok(device)
    }

    fn open_with(&self, flags: i32) -> Outcome<Device> {
        Device::open(self.path, flags, self.numbering)
            .map_err(|errno| outcome::Failure::new(format!("open: errno {errno}")))
    }

    /// The current generation, by way of a mapping.
    fn current(&self, device: &Device) -> Outcome<u32> {
        outcome::success("poll", device.poll(0))?;
        let mapping = device.map(4, libc::PROT_READ, libc::MAP_SHARED, 0);
        Ok(outcome::success("mmap", mapping)?.load())
    }

    /// Begins a generation and returns it; `device` is outdated afterwards.
    fn next(&self, device: &Device) -> Outcome<u32> {
        wanted("trigger 0", device.trigger(0), Ok(0))?;
        outcome::success("read after trigger", device.generation())
    }
}

type Function = Box<dyn Fn(Subject<'_>) -> Outcome>;

/// The tests that a subcommand stands for, with their names.
fn tests(test: &Test) -> Vec<(&'static str, Function)> {
    let one = |name, function: fn(Subject<'_>) -> Outcome| -> Vec<(&'static str, Function)> {
        vec![(name, Box::new(function))]
    };
    match *test {
        Test::All(effort) => all(effort),
        Test::Conformance => [
            Test::ReadWrite,
            Test::Generations,
            Test::Wait,
            Test::Tracking,
            Test::Ioctl,
            Test::Library,
        ]
        .iter()
        .flat_map(tests)
        .collect(),
        Test::ReadWrite => one("read-write", files::read_write),
        Test::Generations => one("generations", files::generations),
        Test::Wait => one("wait", waiting::wait),
        Test::Tracking => one("tracking", waiting::tracking),
        Test::Ioctl => one("ioctl", files::unknown_requests),
        Test::Library => one("library", files::library),
        Test::Mmap => one("mmap", mapping::mmap),
        Test::Epoll => one("epoll", files::epoll),
        Test::BlockedRead => one("blocked-read", waiting::blocked_read),
        Test::WaitProcess => one("wait-process", waiting::wait_process),
        Test::Unprivileged => one("unprivileged", privileges::unprivileged),
        Test::UserNamespace => one("user-namespace", privileges::user_namespace),
        Test::Capabilities => one("capabilities", privileges::capabilities),
        Test::Ready => one("ready", agents::ready),
        Test::Roles => one("roles", taking_part::roles),
        Test::Forks => one("forks", taking_part::forks),
        Test::Leaves { reason } => vec![(
            "leaves",
            Box::new(move |subject| taking_part::leaves(subject, reason)),
        )],
        Test::Parks => one("parks", taking_part::parks),
        Test::Stopped => one("stopped", agents::stopped),
        Test::Idle => one("idle", agents::idle),
        Test::Descriptors => one("descriptors", descriptors::descriptors),
        Test::FileInfo => one("file-info", observers::file_info),
        Test::Select => one("select", observers::select),
        Test::Uevents => one("uevents", observers::uevents),
        Test::Compat => one("compat", compat::compat),
        Test::NoMemory => one("no-memory", memory::no_memory),
        Test::Stress(effort) => vec![(
            "stress",
            Box::new(move |subject| concurrency::stress(subject, effort.threads, effort.seconds)),
        )],
        Test::OpenClose(effort) => vec![(
            "open-close",
            Box::new(move |subject| concurrency::open_close(subject, effort.times)),
        )],
        Test::Overflow => one("overflow", files::overflow),
        Test::Notice => one("notice", restores::notice),
        Test::AtOnce { call } => vec![(
            "at-once",
            Box::new(move |subject| restores::at_once(subject, call)),
        )],
        Test::Hold => one("hold", restores::hold),
        Test::Latency => one("latency", latency::latency),
        Test::Unaware => one("unaware", unaware::unaware),
        Test::LateReseed { agent, fork } => one(
            "late-reseed",
            match (agent, fork) {
                (_, true) => reseed::late_reseed_of_a_fork,
                (true, false) => reseed::late_reseed_of_an_agent,
                (false, false) => reseed::late_reseed,
            },
        ),
        Test::FirstLoad => one("first-load", restores::first_load),
        Test::Spin => one("spin", fork_point::spin),
        Test::Draw { park, long } => one(
            "draw",
            match (park, long) {
                (false, false) => fork_point::draw,
                (true, false) => fork_point::draw_parked,
                (false, true) => long_draws::draw,
                (true, true) => long_draws::draw_parked,
            },
        ),
    }
}

fn all(effort: Effort) -> Vec<(&'static str, Function)> {
    [
        Test::Conformance,
        Test::Mmap,
        Test::Epoll,
        Test::BlockedRead,
        Test::WaitProcess,
        Test::Unprivileged,
        Test::UserNamespace,
        Test::Capabilities,
        Test::Ready,
        Test::Roles,
        Test::Stopped,
        Test::Descriptors,
        Test::FileInfo,
        Test::Select,
        Test::Uevents,
        Test::OpenClose(effort),
        Test::Stress(effort),
    ]
    .iter()
    .flat_map(tests)
    .collect()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let subject = Subject {
        path: &cli.device,
        numbering: cli.abi,
    };
    let mut status = ExitCode::SUCCESS;
    for (name, test) in tests(&cli.test) {
        match test(subject) {
            Ok(()) => println!("ok {name}"),
            Err(failure) => {
                println!("FAIL {name}: {failure}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_missing_device_is_a_failure_with_its_errno() {
        let subject = Subject {
            path: "/nonexistent/sysgenid".as_ref(),
            numbering: Numbering::Seed,
        };
        let failure = files::read_write(subject).unwrap_err();
        assert_eq!(failure.to_string(), "open: errno 2");
    }
}
