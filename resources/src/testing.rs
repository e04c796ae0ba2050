//! `cargo xtask test`: every check there is, in order, with one summary at the end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use vm_agent::{Outcome, Report, TestBinary, TestPlan, TestReport, Work};

use crate::build::{self, Profile, TESTS_PACKAGE, Wanted};
use crate::detect::{self, Kvm};
use crate::host::{self, HostDied, Request};
use crate::lifetime;
use crate::setup::{self, Resources};
use crate::small::Flavor;

/// How often a test is tried in the emulated host if its guest ends in a triple fault or falls silent. Right after a `vmrun` the
/// emulator at times finds none of the guest's kernel pages (its log has the page faults that the guest then cannot take): about one
/// busy guest in a hundred. A guest that answers no more, one in a thousand, is taken for the same, which is not proved. A test that
/// was run again is named in the summary. On a KVM of the machine's own either is a failure.
const EMULATED_ATTEMPTS: u32 = 3;

/// How often an emulated host is booted for the same tests if it dies itself. With two busy guests it does
/// about every two minutes, with a page fault of its kernel on its own stack; that is taken for the same fault.
const HOST_ATTEMPTS: u32 = 6;

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Format, clippy, unit and doc tests: nothing that needs a KVM.
    Unit,
    /// The tests on a KVM.
    Vm,
}

/// What to run, and how.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Only tests on a KVM whose name contains this text, and nothing else.
    pub(crate) filter: Option<String>,
    /// Only this part.
    pub(crate) only: Option<Part>,
    /// How many tests on a KVM run at once.
    pub(crate) jobs: usize,
    /// The time limit of a test on a KVM, in seconds.
    pub(crate) limit_secs: u64,
    /// The small kernel that guests boot.
    pub(crate) kernel: Flavor,
}

/// The result of one line of the summary.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    name: String,
    passed: bool,
    seconds: f64,
    /// The tests that it stands for; none for a step that is not made of tests.
    count: Option<Count>,
}

/// How many tests ended in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Runs the tests; the status is 0 if all passed.
pub(crate) fn run(options: Options) -> Result<i32> {
    let mut lines = Vec::new();
    if options.filter.is_none() && options.only != Some(Part::Vm) {
        lines.extend(unit_part());
    }
    let mut tests = Vec::new();
    if options.only != Some(Part::Unit) {
        let begun = Instant::now();
        let result = vm_part(&options);
        if let Err(error) = &result {
            eprintln!("error: {error:#}");
        }
        tests = result.as_ref().map(|r| r.tests.clone()).unwrap_or_default();
        lines.push(Line {
            name: "tests on KVM".into(),
            passed: result.is_ok_and(|report| report.status == 0),
            seconds: begun.elapsed().as_secs_f64(),
            count: Some(count(&tests)),
        });
    }
    print!("{}", summary(&lines, &tests));
    Ok(i32::from(lines.iter().any(|line| !line.passed)))
}

/// The steps before the tests on a KVM; a failure of one does not spare the others.
fn unit_part() -> Vec<Line> {
    let steps: [(&str, &[&str]); 4] = [
        ("format", &["fmt", "--all", "--check"]),
        (
            "clippy",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        (
            "unit tests",
            &[
                "test",
                "--workspace",
                "--exclude",
                TESTS_PACKAGE,
                "--lib",
                "--bins",
            ],
        ),
        (
            "doc tests",
            &["test", "--workspace", "--exclude", TESTS_PACKAGE, "--doc"],
        ),
    ];
    steps
        .iter()
        .map(|(name, args)| {
            println!("=== {name}");
            let begun = Instant::now();
            let result = step(&mut build::cargo(args));
            if let Err(error) = &result {
                eprintln!("error: {error:#}");
            }
            let (passed, count) = result.unwrap_or_default();
            Line {
                name: (*name).to_owned(),
                passed,
                seconds: begun.elapsed().as_secs_f64(),
                count,
            }
        })
        .collect()
}

/// Runs a command, shows its output, and counts the tests in it. Whether it succeeded, and how
/// many tests there were, if any.
fn step(command: &mut Command) -> Result<(bool, Option<Count>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = lifetime::bind(command)
        .spawn()
        .context("could not run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut count: Option<Count> = None;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("could not read what cargo says")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(more) = libtest_result(&line) {
            count = Some(count.unwrap_or_default().plus(more));
        }
    }
    let status = child.wait().context("could not wait for cargo")?;
    Ok((status.success(), count))
}

/// The numbers in libtest's last line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn libtest_result(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
    })
}

/// Builds the tests on a KVM and runs them. Where the host is emulated each module of each binary has one of
/// its own, so that a host that dies takes few tests with it.
fn vm_part(options: &Options) -> Result<Report> {
    println!("=== tests on KVM");
    let kvm = detect::detect()?;
    let resources = setup::setup_with(options.kernel)?;
    let mut built = build::build(Profile::VmTest, Wanted::Tests)?;
    let binaries = std::mem::take(&mut built.tests);
    let batches = match kvm {
        Kvm::Native => vec![(binaries, options.filter.clone())],
        Kvm::Emulated => binaries
            .into_iter()
            .flat_map(|binary| batches(&binary, options.filter.as_deref()))
            .collect(),
    };
    let mut all = Report {
        status: 0,
        tests: Vec::new(),
    };
    for (binaries, filter) in batches {
        let request = Request {
            agent: built.agent.clone(),
            vmgenie: built.vmgenie.clone(),
            work: Work::Tests(TestPlan {
                binaries,
                filter,
                jobs: options.jobs,
                limit_secs: options.limit_secs,
                attempts: match kvm {
                    Kvm::Native => 1,
                    Kvm::Emulated => EMULATED_ATTEMPTS,
                },
            }),
            files: Vec::new(),
            timeout_secs: None,
        };
        let report = run_patiently(kvm, &resources, &request)?;
        all.status = all.status.max(report.status);
        all.tests.extend(report.tests);
    }
    if let (Some(filter), true) = (&options.filter, all.tests.is_empty()) {
        bail!("no test's name contains {filter:?}");
    }
    Ok(all)
}

/// What is run of a binary, with the filter for it: a module at a time, or what a filter of the user's is
/// in. One that cannot be asked for its tests is run as a whole.
fn batches(binary: &TestBinary, filter: Option<&str>) -> Vec<(Vec<TestBinary>, Option<String>)> {
    let one = |filter: Option<String>| (vec![binary.clone()], filter);
    let tests = match Command::new(&binary.path).arg("--list").output() {
        Ok(output) if output.status.success() => {
            names(&binary.name, &String::from_utf8_lossy(&output.stdout))
        }
        _ => return vec![one(filter.map(str::to_owned))],
    };
    match filter {
        Some(filter) if tests.iter().any(|name| name.contains(filter)) => {
            vec![one(Some(filter.to_owned()))]
        }
        Some(_) => Vec::new(),
        None => modules(&tests).into_iter().map(Some).map(one).collect(),
    }
}

/// The `binary::name` of each test in libtest's list.
fn names(binary: &str, list: &str) -> Vec<String> {
    list.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(|test| format!("{binary}::{test}"))
        .collect()
}

/// Filters that take each test once: a module of the binary each or, where a test is in none, the binary.
fn modules(tests: &[String]) -> BTreeSet<String> {
    let module = |name: &String| {
        let mut parts = name.splitn(3, "::");
        match (parts.next(), parts.next(), parts.next()) {
            (Some(binary), Some(module), Some(_)) => Some(format!("{binary}::{module}::")),
            _ => None,
        }
    };
    match tests.iter().map(module).collect::<Option<BTreeSet<_>>>() {
        Some(modules) => modules,
        None => tests
            .iter()
            .filter_map(|name| Some(format!("{}::", name.split_once("::")?.0)))
            .collect(),
    }
}

/// Runs a batch, and runs it again if the emulated host itself dies.
fn run_patiently(kvm: Kvm, resources: &Resources, request: &Request) -> Result<Report> {
    for _ in 1..HOST_ATTEMPTS {
        match host::run(kvm, resources, request) {
            Err(error) if error.is::<HostDied>() => {
                eprintln!("NOTE: {error:#}\nNOTE: these tests on KVM are run once more");
            }
            result => return result,
        }
    }
    host::run(kvm, resources, request)
}

fn failed(test: &TestReport) -> bool {
    matches!(test.outcome, Outcome::Failed | Outcome::TimedOut)
}

fn count(tests: &[TestReport]) -> Count {
    let passed = tests
        .iter()
        .filter(|test| test.outcome == Outcome::Passed)
        .count();
    let failed = tests.iter().filter(|test| failed(test)).count();
    Count {
        passed,
        failed,
        ignored: tests.len() - passed - failed,
    }
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// The table at the end, and the line with the totals.
fn summary(lines: &[Line], tests: &[TestReport]) -> String {
    let mut text = String::from("\n=== summary\n");
    for line in lines {
        let word = if line.passed { "ok" } else { "FAILED" };
        let note = line.count.map_or(String::new(), |count| {
            format!(
                "  ({} passed, {} failed, {} ignored)",
                count.passed, count.failed, count.ignored
            )
        });
        text += &format!(
            "{:<14} {word:<6} {:>7.1} s{note}\n",
            line.name, line.seconds
        );
    }
    for test in tests.iter().filter(|test| failed(test)) {
        text += &format!("failed: {}\n", test.name);
    }
    for test in tests.iter().filter(|test| test.attempts > 1) {
        text += &format!(
            "run {} times, because a guest crashed or fell silent: {}\n",
            test.attempts, test.name
        );
    }
    for test in tests.iter().filter(|t| t.outcome == Outcome::Ignored) {
        text += &format!("ignored: {}\n", test.name);
    }
    let total = totals(lines);
    text + &format!("{} passed, {} failed\n", total.passed, total.failed)
}

/// All tests. A step counts as one failure if it failed without a failed test, so that the totals
/// never claim a success that is none.
fn totals(lines: &[Line]) -> Count {
    lines.iter().fold(Count::default(), |total, line| {
        let mut count = line.count.unwrap_or_default();
        if !line.passed && count.failed == 0 {
            count.failed = 1;
        }
        total.plus(count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(passed: bool, count: Option<(usize, usize)>) -> Line {
        Line {
            name: "x".into(),
            passed,
            seconds: 1.0,
            count: count.map(|(passed, failed)| Count {
                passed,
                failed,
                ignored: 0,
            }),
        }
    }

    #[test]
    fn libtest_s_totals_are_read_whatever_the_outcome() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        let count = libtest_result(line).unwrap();
        assert_eq!((count.passed, count.failed, count.ignored), (3, 2, 1));
        assert_eq!(libtest_result("test a ... ok"), None);
    }

    #[test]
    fn batches_take_each_test_once() {
        let list = "agent::a: test\nagent::b: test\nwaiting::x::c: test\n\n3 tests, 0 benchmarks\n";
        let tests = names("driver", list);
        assert_eq!(tests[2], "driver::waiting::x::c");
        let batches: Vec<_> = modules(&tests).into_iter().collect();
        assert_eq!(batches, ["driver::agent::", "driver::waiting::"]);
        let mixed = names("boot", "a: test\nmodule::b: test\n");
        assert_eq!(modules(&mixed).into_iter().collect::<Vec<_>>(), ["boot::"]);
    }

    #[test]
    fn the_last_line_holds_the_totals_of_all_steps() {
        let lines = [
            line(true, None),
            line(true, Some((3, 0))),
            line(false, Some((2, 1))),
        ];
        assert!(summary(&lines, &[]).ends_with("\n5 passed, 1 failed\n"));
    }

    #[test]
    fn a_step_that_failed_without_a_test_counts_as_a_failure() {
        let lines = [line(false, None), line(false, Some((0, 0)))];
        assert!(summary(&lines, &[]).ends_with("\n0 passed, 2 failed\n"));
    }
}
