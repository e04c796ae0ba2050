//! What `cargo xtask` and the agent inside the KVM host say to each other.
//!
//! The job travels as one JSON file into the host, the report as JSON lines out of it, an [`Entry`] each. Both
//! ends are built from the same tree in the same run, so neither carries a version.

pub mod patience;

use serde::{Deserialize, Serialize};

/// Where the job lies in the emulated host's file system.
pub const JOB_PATH: &str = "/job.json";
/// Where the emulated host keeps its kernel modules; `order` there lists them, one name a line.
pub const MODULES_DIR: &str = "/modules";
/// The emulated host's disk, which has the guests' files.
pub const GUEST_DISK: &str = "/dev/vda";
/// Where that disk is mounted.
pub const GUEST_DIR: &str = "/guest";
/// The emulated host's second disk, which has a QEMU for guests.
pub const QEMU_DISK: &str = "/dev/vdb";
/// Where that disk is mounted.
pub const QEMU_DIR: &str = "/qemu";
/// The program there.
pub const QEMU_PROGRAM: &str = "qemu";
/// The emulated host's third disk, if the job asks for one: the run's own, with room to write.
pub const WORK_DISK: &str = "/dev/vdc";
/// Where that disk is mounted.
pub const WORK_DIR: &str = "/work";
/// The emulated host's fourth disk, if a job has it: the runtimes that guests mount. It is not mounted here.
pub const RUNTIMES_DISK: &str = "/dev/vdd";
/// The name of the virtio port that carries the command's input.
pub const PORT_STDIN: &str = "vmgenie.stdin";
/// The name of the virtio port that carries the command's output.
pub const PORT_STDOUT: &str = "vmgenie.stdout";
/// The name of the virtio port that carries the command's standard error.
pub const PORT_STDERR: &str = "vmgenie.stderr";
/// The name of the virtio port that carries the [`Report`].
pub const PORT_REPORT: &str = "vmgenie.report";
/// What the console of the emulated host says when the host is up.
pub const HOST_IS_UP: &str = "vm-agent: the host is up";
/// The I/O port at which the emulated host can be ended at once.
pub const EXIT_PORT: u16 = 0xf4;
/// The exit status that says that a command could not be started, as a shell has it.
pub const STATUS_CANNOT_RUN: i32 = 127;

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Environment variables for every program that the job starts.
    pub env: Vec<(String, String)>,
    /// The work itself.
    pub work: Work,
    /// Whether the emulated host has a disk at [`WORK_DISK`].
    pub work_disk: bool,
}

/// The kinds of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// One program; its exit status is the job's.
    Command {
        /// The program and its arguments; never empty.
        argv: Vec<String>,
    },
    /// One program on a terminal of its own that is connected to the standard streams.
    Terminal {
        /// The program and its arguments; never empty.
        argv: Vec<String>,
        /// The size of the terminal in character cells.
        rows: u16,
        /// See `rows`.
        columns: u16,
    },
    /// Every test of some libtest binaries, each in a process of its own.
    Tests(TestPlan),
}

/// Which tests run, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPlan {
    /// The test binaries.
    pub binaries: Vec<TestBinary>,
    /// Only tests whose `binary::name` contains this text.
    pub filter: Option<String>,
    /// Tests whose `binary::name` begins with one of these come before all others, in this order: those that take longest.
    pub first: Vec<String>,
    /// `binary::name` of tests that come after all others, each alone: those that ran when a host died.
    pub last: Vec<String>,
    /// `binary::name` of tests that are not run, because they were before.
    pub done: Vec<String>,
    /// The failures of tests in hosts that died before these had ended.
    pub failed: Vec<Failure>,
    /// How many tests run at once; at least 1.
    pub jobs: usize,
    /// The number of this host where others run tests of the same plan at the same time: it asks before each, by
    /// [`Entry::Ask`]. The answer is a line on the job's standard input: a number for the test, or 0 if another host
    /// has it.
    pub lane: Option<usize>,
    /// A test that takes longer than so many seconds of a quiet machine is killed and has failed.
    pub limit_secs: u64,
    /// How many times a test is run whose guest crashes or falls silent each time; at least 1. With more than 1, a failure without such
    /// a guest is none if the test passes twice after it.
    pub attempts: u32,
}

/// One libtest binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestBinary {
    /// The name of the test target, as reports show it.
    pub name: String,
    /// The path of the file on the machine where the agent runs.
    pub path: String,
}

/// How often a host that runs tests tells that it is there.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(10);

/// A line of the report on its way out of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// Tests are being run: said each [`HEARTBEAT`], so that a host that hangs is told from a long test.
    Alive,
    /// May this host run the test `binary::name`?
    Ask(String),
    /// This test, `binary::name`, begins.
    Began(String),
    /// A test has failed and is run again. If this host dies, the next one has to know.
    Failed(Failure),
    /// A test has ended.
    Test(TestReport),
    /// The job has ended, with this exit status: of its command, or 0 or 1 for tests.
    End(i32),
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The exit status of the job: of its command, or 0 or 1 for tests.
    pub status: i32,
    /// One entry for each test of a [`Work::Tests`] job.
    pub tests: Vec<TestReport>,
}

/// What is left of a report whose host has died.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cut {
    /// The tests that had ended.
    pub tests: Vec<TestReport>,
    /// The failures of tests that had not ended.
    pub failed: Vec<Failure>,
    /// The tests that had begun and not ended.
    pub running: Vec<String>,
}

/// A failure of a test that is run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `binary::name`.
    pub name: String,
    /// A guest crashed or fell silent.
    pub lost: bool,
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestReport {
    /// `binary::name`.
    pub name: String,
    /// How it ended, the last time.
    pub outcome: Outcome,
    /// How often it ran.
    pub attempts: u32,
    /// How often it failed without a guest that crashed or fell silent.
    pub unexplained: u32,
    /// How long it ran, in seconds.
    pub seconds: f64,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It ended with status 0.
    Passed,
    /// It ended with another status, or by a signal.
    Failed,
    /// It was killed at its time limit.
    TimedOut,
    /// It is marked `#[ignore]` and did not run.
    Ignored,
}

impl TestReport {
    /// A test that failed because so many hosts died while it ran.
    pub fn of_dead_hosts(name: String, hosts: u32) -> Self {
        Self {
            name,
            outcome: Outcome::Failed,
            attempts: hosts,
            unexplained: 0,
            seconds: 0.0,
        }
    }
}

impl Report {
    /// A report of a job that is only an exit status.
    pub fn of_status(status: i32) -> Self {
        Self {
            status,
            tests: Vec::new(),
        }
    }

    /// Reads the lines that a host wrote.
    ///
    /// # Errors
    /// Where the end is missing or cut short, which is what the death of a host in the middle looks like: the
    /// tests that had ended before.
    pub fn parse(text: &str) -> Result<Self, Cut> {
        let mut tests = Vec::new();
        let mut failed: Vec<Failure> = Vec::new();
        let mut running: Vec<String> = Vec::new();
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Entry::Alive | Entry::Ask(_)) => {}
                Ok(Entry::Began(name)) => running.push(name),
                Ok(Entry::Failed(failure)) => failed.push(failure),
                Ok(Entry::Test(test)) => tests.push(test),
                Ok(Entry::End(status)) => return Ok(Self { status, tests }),
                Err(_) => break,
            }
        }
        let open = |name: &str| tests.iter().all(|test| test.name != name);
        failed.retain(|failure| open(&failure.name));
        running.retain(|name| open(name));
        Err(Cut {
            tests,
            failed,
            running,
        })
    }
}

impl Entry {
    /// The line that [`Report::parse`] reads.
    ///
    /// # Errors
    /// None in practice: the types hold nothing that JSON cannot.
    pub fn to_line(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

/// The exit status that stands for a wait status, as a shell counts: a signal is 128 and its number.
pub fn exit_status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn lines(entries: &[Entry]) -> String {
        entries.iter().map(|e| e.to_line().unwrap()).collect()
    }

    fn test(name: &str) -> TestReport {
        TestReport {
            name: name.into(),
            outcome: Outcome::TimedOut,
            attempts: 1,
            unexplained: 0,
            seconds: 1.5,
        }
    }

    #[test]
    fn a_report_survives_the_trip_over_the_port() {
        let text = lines(&[Entry::Alive, Entry::Test(test("host::a")), Entry::End(77)]);
        let report = Report {
            status: 77,
            tests: vec![test("host::a")],
        };
        assert_eq!(Report::parse(&text), Ok(report));
    }

    #[test]
    fn of_a_report_cut_short_what_ran_and_its_failures_are_left() {
        let failed = |name: &str| Failure {
            name: name.into(),
            lost: true,
        };
        let text = lines(&[
            Entry::Began("a".into()),
            Entry::Began("b".into()),
            Entry::Failed(failed("a")),
            Entry::Failed(failed("b")),
            Entry::Alive,
            Entry::Test(test("a")),
        ]);
        let cut = Report::parse(&text).unwrap_err();
        assert_eq!(cut.failed, [failed("b")]);
        assert_eq!(cut.running, ["b"]);
        assert_eq!(cut.tests, [test("a")]);
    }

    #[test]
    fn of_a_report_cut_short_at_any_byte_the_ended_tests_are_left() {
        let begin = lines(&[Entry::Test(test("a")), Entry::Test(test("b"))]);
        let whole = begin.clone() + &lines(&[Entry::End(0)]);
        for end in 0..whole.len() - 1 {
            let tests = Report::parse(&whole[..end]).unwrap_err().tests;
            let ended = whole[..end].matches("}}").count();
            assert_eq!(tests.len(), ended, "{:?}", &whole[..end]);
        }
    }

    #[test]
    fn a_job_survives_the_trip_into_the_host() {
        let job = Job {
            env: vec![("A".into(), "b c".into())],
            work: Work::Terminal {
                argv: vec!["/bin/sh".into()],
                rows: 24,
                columns: 80,
            },
            work_disk: true,
        };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }

    #[test]
    fn a_signal_counts_as_128_and_its_number() {
        assert_eq!(exit_status(ExitStatus::from_raw(77 << 8)), 77);
        assert_eq!(exit_status(ExitStatus::from_raw(libc::SIGKILL)), 137);
    }
}
