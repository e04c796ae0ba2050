//! Every test of some libtest binaries, each in a process of its own.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use vm_agent::{Entry, Failure, HEARTBEAT, Outcome, TestPlan, TestReport};

use crate::queue::{Queue, Test};
use crate::supervise::{self, die_with_parent};
use crate::write_entry;

/// What vmgenie says when its guest has ended in a triple fault.
const TRIPLE_FAULT: &[u8] = b"the guest crashed: triple fault";
/// What it says when KVM believes that an event was being delivered as the guest reached for a device. The emulated processor has told it so:
/// its EXITINTINFO held half of a guest physical address then, with the bit that makes it valid.
const LOST_EVENT: &[u8] = b"KVM could not deliver an event to the guest (KVM_EXIT_INTERNAL_ERROR";
/// What the tests say of a guest that did not answer on its console in time.
const SILENCE: &[u8] = b"on the console: time is up";
/// How often a test has to pass after a failure that nothing explains.
const CONFIRMATIONS: u32 = 2;

/// Runs the plan's tests, prints the output of each in one piece when it has ended, and enters it in the
/// report. Returns the exit status.
pub(crate) fn run(plan: &TestPlan, report: &File) -> i32 {
    let lines = Lines::new(report);
    // From here on it is watched.
    lines.write(&Entry::Alive);
    let queue = match Queue::of(plan) {
        Ok(queue) => queue,
        Err(message) => {
            eprintln!("vm-agent: {message}");
            return 1;
        }
    };
    // Those that ended in hosts that died are numbered as well.
    let total = queue.len() + plan.done.len();
    let queue = Mutex::new(queue);
    let done = Mutex::new(Done::default());
    let (ended, all_ended) = mpsc::channel();
    let work = &|worker: usize| {
        loop {
            // The lock is free again by the end of this statement.
            let next = lock(&queue).take(worker, plan.lane.unwrap_or(0));
            let Some((index, test)) = next else { break };
            let test = &test;
            let number = match plan.lane.map(|_| ask(&lines, &test.name)) {
                None => None,
                Some(Some(0)) => continue,
                Some(Some(number)) => Some(number),
                Some(None) => {
                    eprintln!("vm-agent: nobody says who runs {}", test.name);
                    lock(&done).bad = true;
                    break;
                }
            };
            lines.write(&Entry::Began(test.name.clone()));
            let attempt = || attempt(test, plan.limit_secs, index);
            // What is printed may wait for a reader, and this host die meanwhile: the report comes first.
            let (ended, output) = run_one(test, plan, attempt, |lost, output| {
                let name = test.name.clone();
                lines.write(&Entry::Failed(Failure { name, lost }));
                let _one = lock(&done);
                print_failure(&test.name, output);
            });
            let entered = lines.write(&Entry::Test(ended.clone()));
            let mut done = lock(&done);
            done.count += 1;
            done.bad |= !entered;
            done.bad |= matches!(ended.outcome, Outcome::Failed | Outcome::TimedOut);
            print_one(&ended, &output, number.unwrap_or(done.count), total);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| tell_alive(all_ended, &lines));
        let workers: Vec<_> = (0..plan.jobs.max(1))
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        let panics = workers.into_iter().filter_map(|it| it.join().err());
        lock(&done).bad |= panics.count() > 0;
        drop::<Sender<Infallible>>(ended);
    });
    i32::from(lock(&done).bad)
}

/// The report, one line after the other. It does not wait for those who print.
struct Lines<'a> {
    report: Mutex<&'a File>,
    /// There is a question without an answer: if none comes, this host is one that hangs.
    asks: AtomicBool,
}

impl<'a> Lines<'a> {
    fn new(report: &'a File) -> Self {
        Self {
            report: Mutex::new(report),
            asks: AtomicBool::new(false),
        }
    }

    /// Writes one. Whoever reads it misses the end if that fails.
    fn write(&self, entry: &Entry) -> bool {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let written = write_entry(&report, entry);
        if let Err(message) = &written {
            eprintln!("vm-agent: {message}");
        }
        written.is_ok()
    }
}

/// Asks whether this host may run a test, and reads the number that it has; 0 if another host has it. None if there is no
/// answer.
fn ask(lines: &Lines<'_>, name: &str) -> Option<usize> {
    lines.asks.store(true, Ordering::Relaxed);
    let mut line = String::new();
    let asked = lines.write(&Entry::Ask(name.to_owned()));
    let read = asked && io::stdin().read_line(&mut line).is_ok();
    lines.asks.store(false, Ordering::Relaxed);
    read.then(|| line.trim_end().parse().ok()).flatten()
}

/// Reports each [`HEARTBEAT`] that this host is there, until all tests have ended. Not while it waits for an answer.
fn tell_alive(all_ended: Receiver<Infallible>, lines: &Lines<'_>) {
    while all_ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
        if !lines.asks.load(Ordering::Relaxed) {
            lines.write(&Entry::Alive);
        }
    }
}

/// A worker that panicked leaves numbers that are true of the tests before, and whole tests.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the workers know together.
#[derive(Debug, Default)]
struct Done {
    count: usize,
    /// Whether a test has failed.
    bad: bool,
}

/// Runs one test by `attempt`, again as [`next_step`] wants it. Returns the output of the last run; that of one before it, and whether its guest
/// was lost, goes to `on_failure` at once, unless it passed.
fn run_one(
    test: &Test,
    plan: &TestPlan,
    mut attempt: impl FnMut() -> (Outcome, Vec<u8>),
    on_failure: impl Fn(bool, &[u8]),
) -> (TestReport, Vec<u8>) {
    let begun = Instant::now();
    let mut runs = Runs::default();
    for failure in plan.failed.iter().filter(|it| it.name == test.name) {
        match failure.lost {
            true => runs.lost += 1,
            false => runs.unexplained += 1,
        }
    }
    let (outcome, output) = loop {
        let (outcome, mut output) = attempt();
        let lost = runs.lost;
        runs.note(outcome, &output);
        match next_step(runs, outcome, plan.attempts) {
            Step::End(outcome) => break (outcome, output),
            Step::Again(why) => {
                output.extend(format!("--- {why}; the test is run again\n").bytes());
                if outcome == Outcome::Failed {
                    on_failure(runs.lost > lost, &output);
                }
            }
        }
    };
    let report = TestReport {
        name: test.name.clone(),
        outcome,
        attempts: runs.passed + runs.lost + runs.unexplained,
        unexplained: runs.unexplained,
        seconds: begun.elapsed().as_secs_f64(),
    };
    (report, output)
}

/// The runs of one test so far.
#[derive(Debug, Default, Clone, Copy)]
struct Runs {
    passed: u32,
    /// Failures with a guest that crashed or fell silent.
    lost: u32,
    /// All other failures.
    unexplained: u32,
}

impl Runs {
    fn note(&mut self, outcome: Outcome, output: &[u8]) {
        match outcome {
            Outcome::Passed | Outcome::Ignored => self.passed += 1,
            Outcome::Failed if guest_was_lost(output) => self.lost += 1,
            Outcome::Failed | Outcome::TimedOut => self.unexplained += 1,
        }
    }
}

/// What follows a run.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Another, for this reason.
    Again(&'static str),
    /// Nothing: the test has ended so.
    End(Outcome),
}

/// What follows the last of these runs. A test whose guest was lost is tried until `attempts` have lost theirs. Any other failure counts,
/// unless it was the only one and the test passes [`CONFIRMATIONS`] times after it: an emulated processor that errs is not always found out.
/// With one attempt, on a processor that is to be trusted, a failure is a failure.
fn next_step(runs: Runs, last: Outcome, attempts: u32) -> Step {
    match last {
        Outcome::Passed if runs.unexplained > 0 && runs.passed < CONFIRMATIONS => {
            Step::Again("it has to pass once more after its failure")
        }
        Outcome::Failed if attempts > 1 && runs.unexplained == 0 && runs.lost < attempts => {
            Step::Again("a guest crashed or fell silent")
        }
        Outcome::Failed if attempts > 1 && runs.unexplained == 1 && runs.lost < attempts => {
            Step::Again("it has to pass twice after its failure")
        }
        _ => Step::End(last),
    }
}

/// Whether a failed test's output shows that a guest of it ended by the emulated processor's doing or fell silent.
fn guest_was_lost(output: &[u8]) -> bool {
    let says = |text: &[u8]| output.windows(text.len()).any(|bytes| bytes == text);
    [TRIPLE_FAULT, LOST_EVENT, SILENCE].into_iter().any(says)
}

/// Runs one test in a directory for temporary files of its own, which goes when it ends.
fn attempt(test: &Test, limit_secs: u64, index: usize) -> (Outcome, Vec<u8>) {
    if test.ignored {
        return (Outcome::Ignored, Vec::new());
    }
    let scratch = std::env::temp_dir().join(format!("t{}-{index}", std::process::id()));
    let result = fs::create_dir_all(&scratch).and_then(|()| execute(test, limit_secs, &scratch));
    let _ = fs::remove_dir_all(&scratch);
    result.unwrap_or_else(|error| {
        let message = format!("could not run {}: {error}\n", test.binary);
        (Outcome::Failed, message.into_bytes())
    })
}

/// Starts the test under a supervisor, which ends it at its limit, and waits for it.
fn execute(test: &Test, limit_secs: u64, scratch: &Path) -> io::Result<(Outcome, Vec<u8>)> {
    let path = scratch.join(".output");
    let log = fs::File::create(&path)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("supervise")
        .arg(limit_secs.to_string())
        .args([&test.binary, "--exact", &test.test, "--nocapture"])
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    die_with_parent(&mut command);
    let outcome = match command.spawn()?.wait()?.code() {
        Some(0) => Outcome::Passed,
        Some(supervise::STATUS_TIME_LIMIT) => Outcome::TimedOut,
        _ => Outcome::Failed,
    };
    Ok((outcome, fs::read(&path)?))
}

/// Prints what a test said that has failed and is run again: the host may die before it ends.
fn print_failure(name: &str, output: &[u8]) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "--- {name} FAILED and said:");
    let _ = out.write_all(output);
    let _ = out.flush();
}

/// Prints the test's output between its name and its outcome. Nobody to print to is no error.
fn print_one(report: &TestReport, output: &[u8], number: usize, total: usize) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "--- [{number}/{total}] {}", report.name);
    let _ = out.write_all(output);
    if !output.is_empty() && !output.ends_with(b"\n") {
        let _ = writeln!(out);
    }
    let word = match report.outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::TimedOut => "FAILED (time limit)",
        Outcome::Ignored => "ignored",
    };
    let _ = writeln!(out, "--- {} {word} in {:.1} s", report.name, report.seconds);
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn shell_test(script: &str) -> Test {
        // `sh -c` ignores the libtest options, which become its positional parameters.
        let dir = tempdir();
        let path = dir.join("script");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Test {
            binary: path.to_str().unwrap().to_owned(),
            test: "x".into(),
            name: "b::x".into(),
            ignored: false,
        }
    }

    fn tempdir() -> std::path::PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("vm-agent-test-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn plan(attempts: u32) -> TestPlan {
        TestPlan {
            binaries: Vec::new(),
            filter: None,
            first: Vec::new(),
            last: Vec::new(),
            done: Vec::new(),
            failed: Vec::new(),
            jobs: 1,
            lane: None,
            limit_secs: 5,
            attempts,
        }
    }

    #[test]
    fn a_lost_guest_is_known_by_what_is_said_of_it() {
        let crash = b"error: the guest crashed: triple fault on vCPU 1 (rip 0xfff0)\n";
        let silence = b"waited 60s for \"@@exit:\" on the console: time is up. All of it:\n";
        let event = b"vCPU 0 cannot go on: KVM could not deliver an event to the guest (KVM_EXIT_INTERNAL_ERROR, suberror 3)\n";
        assert!(guest_was_lost(crash));
        assert!(guest_was_lost(silence));
        assert!(guest_was_lost(event));
        assert!(!guest_was_lost(b"a line is wrong"));
    }

    /// What becomes of a test whose runs end so, and how many of them there are: `P`assed, `F`ailed, `L`ost its guest, `T`imed out.
    fn outcome(runs: &str, attempts: u32) -> (Outcome, usize) {
        let mut so_far = Runs::default();
        for (index, run) in runs.bytes().enumerate() {
            let (outcome, output): (_, &[u8]) = match run {
                b'P' => (Outcome::Passed, b""),
                b'F' => (Outcome::Failed, b"a line is wrong"),
                b'L' => (Outcome::Failed, TRIPLE_FAULT),
                _ => (Outcome::TimedOut, b""),
            };
            so_far.note(outcome, output);
            if let Step::End(outcome) = next_step(so_far, outcome, attempts) {
                return (outcome, index + 1);
            }
        }
        panic!("{runs:?} decides nothing");
    }

    #[test]
    fn on_a_processor_to_be_trusted_the_first_run_decides() {
        assert_eq!(outcome("P", 1), (Outcome::Passed, 1));
        assert_eq!(outcome("F", 1), (Outcome::Failed, 1));
        assert_eq!(outcome("L", 1), (Outcome::Failed, 1));
        assert_eq!(outcome("T", 1), (Outcome::TimedOut, 1));
    }

    #[test]
    fn a_failure_in_emulation_counts_unless_the_test_passes_twice_after_it() {
        assert_eq!(outcome("P", 3), (Outcome::Passed, 1));
        assert_eq!(outcome("FPP", 3), (Outcome::Passed, 3));
        assert_eq!(outcome("FPF", 3), (Outcome::Failed, 3));
        assert_eq!(outcome("FF", 3), (Outcome::Failed, 2));
        assert_eq!(outcome("T", 3), (Outcome::TimedOut, 1));
        assert_eq!(outcome("FPT", 3), (Outcome::TimedOut, 3));
    }

    #[test]
    fn a_lost_guest_is_no_failure_until_three_are_lost() {
        assert_eq!(outcome("LP", 3), (Outcome::Passed, 2));
        assert_eq!(outcome("LLP", 3), (Outcome::Passed, 3));
        assert_eq!(outcome("LLL", 3), (Outcome::Failed, 3));
        assert_eq!(outcome("LFPP", 3), (Outcome::Passed, 4));
        assert_eq!(outcome("FLPLP", 3), (Outcome::Passed, 5));
        assert_eq!(outcome("FLPLL", 3), (Outcome::Failed, 5));
    }

    #[test]
    fn a_failure_is_told_at_once_and_counts_after_the_host_has_died() {
        let test = Test {
            binary: String::new(),
            test: "x".into(),
            name: "b::x".into(),
            ignored: false,
        };
        let fails = || (Outcome::Failed, b"wrong".to_vec());
        let told = Mutex::new(Vec::new());
        let on_failure = |lost: bool, output: &[u8]| {
            assert!(!lost);
            told.lock().unwrap().extend_from_slice(output);
        };
        let (report, last) = run_one(&test, &plan(3), fails, on_failure);
        assert_eq!((report.outcome, report.unexplained), (Outcome::Failed, 2));
        assert!(told.lock().unwrap().starts_with(b"wrong---"));
        assert_eq!(last, b"wrong");
        // The next host: one failure more is the second, and one success is not enough.
        let after = TestPlan {
            failed: failures(&[false]),
            ..plan(3)
        };
        let (report, _) = run_one(&test, &after, fails, |_, _| panic!("it is the last"));
        assert_eq!((report.outcome, report.attempts), (Outcome::Failed, 2));
        let passes = || (Outcome::Passed, Vec::new());
        let (report, _) = run_one(&test, &after, passes, |_, _| {});
        assert_eq!((report.outcome, report.attempts), (Outcome::Passed, 3));
        // Guests that were lost are counted on as well.
        let after = TestPlan {
            failed: failures(&[true, true]),
            ..plan(3)
        };
        let (report, _) = run_one(&test, &after, passes, |_, _| {});
        assert_eq!((report.outcome, report.attempts), (Outcome::Passed, 3));
        let loses = || (Outcome::Failed, TRIPLE_FAULT.to_vec());
        let (report, _) = run_one(&test, &after, loses, |_, _| panic!("it is the last"));
        assert_eq!((report.outcome, report.unexplained), (Outcome::Failed, 0));
    }

    /// Failures of the test, with a guest that was lost or without.
    fn failures(lost: &[bool]) -> Vec<Failure> {
        let failure = |lost: &bool| Failure {
            name: "b::x".into(),
            lost: *lost,
        };
        lost.iter().map(failure).collect()
    }

    #[test]
    fn an_ignored_test_is_reported_and_does_not_run() {
        let mut test = shell_test("exit 1");
        test.ignored = true;
        let attempt = || attempt(&test, 5, 900);
        let (report, output) = run_one(&test, &plan(3), attempt, |_, _| {});
        assert_eq!((report.outcome, output.len()), (Outcome::Ignored, 0));
        fs::remove_dir_all(Path::new(&test.binary).parent().unwrap()).unwrap();
    }
}
