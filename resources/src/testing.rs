//! `cargo xtask test`: every check there is, in order, with one summary at the end.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use vm_agent::{Report, TestPlan, TestReport, Work};

use crate::build::{self, Profile, TESTS_PACKAGE, Wanted};
use crate::counted::counted;
use crate::detect::{self, Kvm};
use crate::driver_patch;
use crate::host::{self, Lane, Request};
use crate::lanes::run_in_lanes;
use crate::languages;
use crate::package;
use crate::progress::Progress;
use crate::setup::{self, Guests, Resources};
use crate::small::Flavor;
use crate::summary::{Line, count, libtest_result, summary};

/// How often a test is tried in the emulated host if its guest ends in a triple fault or falls silent. With two
/// processors the emulator at times finds none of a guest's kernel pages right after a `vmrun`: its log has the page
/// faults that the guest then cannot take. With the one that hosts have now that was not seen. A test that was run again
/// is named in the summary. A guest can also fail in other ways there (a program of it crashes, or a line is lost): a
/// test that fails without a lost guest has to pass twice after it, and is named, too. On a KVM of the machine's own
/// each of these is a failure.
const EMULATED_ATTEMPTS: u32 = 3;

/// The tests on a KVM that take longest. They come first, so that none of them is left when the others are done.
const LONGEST: &[&str] = &[
    "clock::realtime::both_kernels",
    "image::",
    "load::",
    "driver::stress",
    "generation::ten_restores",
];

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
    /// The time limit of a test on a KVM, in seconds of a quiet machine.
    pub(crate) limit_secs: u64,
    /// The small kernel that guests boot.
    pub(crate) kernel: Flavor,
}

/// Runs the tests; the status is 0 if all passed.
pub(crate) fn run(options: Options) -> Result<i32> {
    let unit = options.filter.is_none() && options.only != Some(Part::Vm);
    let vm = options.only != Some(Part::Unit);
    let mut tests = Vec::new();
    let mut lines = parts(
        unit.then_some(unit_part),
        vm.then_some(|| Place::make(&options, unit)),
        |place| {
            let (line, ended) = on_kvm(&options, &place);
            tests = ended;
            line
        },
        options.filter.is_none().then_some(driver_patch_part),
    );
    if options.filter.is_none() && vm {
        lines.push(packages_part(options.kernel));
    }
    print!("{}", summary(&lines, &tests));
    Ok(i32::from(lines.iter().any(|line| !line.passed)))
}

/// Runs the unit part, and makes the place for the tests on a KVM beside it: downloads and packages keep one processor busy at most.
/// In that place it does `on_kvm`, and beside that what comes `last`, which needs what was made as well. The lines of all of them.
fn parts<T: Send>(
    unit: Option<impl FnOnce() -> Vec<Line>>,
    make: Option<impl FnOnce() -> Result<T> + Send>,
    on_kvm: impl FnOnce(T) -> Line,
    last: Option<impl FnOnce() -> (Line, String) + Send>,
) -> Vec<Line> {
    thread::scope(|scope| {
        let (is_made, made) = mpsc::channel();
        let beside = make.map(|make| {
            scope.spawn(move || {
                // Its receiver has gone only if this program is about to end.
                let _ = is_made.send(timed_make(make));
                last.map(|last| last())
            })
        });
        let mut lines = unit.map(|unit| unit()).unwrap_or_default();
        if let Ok((line, place)) = made.recv() {
            lines.push(line);
            match place {
                Ok(place) => lines.push(on_kvm(place)),
                // Once more, where it is read: the unit part has told a lot since.
                Err(error) => {
                    eprintln!("error: no tests on KVM, because the setup failed: {error:#}");
                }
            }
        }
        let last = beside.and_then(|beside| {
            let ended = beside.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Some((line, said)) = last {
            println!("=== {}\n{said}", line.name);
            lines.push(line);
        }
        lines
    })
}

/// Makes something, and the line of the setup.
fn timed_make<T>(make: impl FnOnce() -> Result<T>) -> (Line, Result<T>) {
    let begun = Instant::now();
    let made = make();
    if let Err(error) = &made {
        eprintln!("error: setup: {error:#}");
    }
    let line = Line {
        name: "setup".into(),
        passed: made.is_ok(),
        seconds: begun.elapsed().as_secs_f64(),
        count: None,
    };
    (line, made)
}

/// Runs the tests on a KVM: their line, and what became of each.
fn on_kvm(options: &Options, place: &Place) -> (Line, Vec<TestReport>) {
    let begun = Instant::now();
    let result = vm_part(options, place);
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
    }
    let tests = result.as_ref().map(|r| r.tests.clone()).unwrap_or_default();
    let line = Line {
        name: "tests on KVM".into(),
        passed: result.is_ok_and(|report| report.status == 0),
        seconds: begun.elapsed().as_secs_f64(),
        count: Some(count(&tests)),
    };
    (line, tests)
}

/// Where the tests on a KVM run.
struct Place {
    kvm: Kvm,
    resources: Resources,
}

impl Place {
    /// Makes what is missing of it, `beside` the unit part or alone.
    fn make(options: &Options, beside: bool) -> Result<Self> {
        let progress = match beside {
            true => Progress::beside("setup"),
            false => Progress::default(),
        };
        let kvm = detect::detect()?;
        let resources = setup::setup(Guests::All(options.kernel), true, &progress)?;
        Ok(Self {
            kvm,
            resources: resources.with_runtimes(&progress)?,
        })
    }
}

/// The steps before the tests on a KVM; a failure of one does not spare the others.
fn unit_part() -> Vec<Line> {
    let steps: [(&str, &[&str]); 6] = [
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
        // Those of the package with the tests on a KVM, too: they need none.
        ("unit tests", &["test", "--workspace", "--lib", "--bins"]),
        // As others build it: with all of the workspace it is built for the server.
        (
            "unit tests of the API's client",
            &["test", "--package", "vmgenie-api", "--lib"],
        ),
        (
            "tests of programs",
            &[
                "test",
                "--workspace",
                "--exclude",
                TESTS_PACKAGE,
                "--test",
                "*",
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
            let result = counted(&mut build::cargo(args), libtest_result);
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
        .chain([languages::part()])
        .collect()
}

/// Makes the guest driver's patch series, applies it, and builds it in the kernel's tree: its line, and what there is to say.
fn driver_patch_part() -> (Line, String) {
    let begun = Instant::now();
    let result = driver_patch::check(&Progress::beside("driver's patch series"));
    let line = Line {
        name: "driver-patch".into(),
        passed: result.is_ok(),
        seconds: begun.elapsed().as_secs_f64(),
        count: None,
    };
    (
        line,
        result.unwrap_or_else(|error| format!("error: {error:#}")),
    )
}

/// Installs the Debian packages in a fresh Debian, with the program that the tests on a KVM have.
fn packages_part(kernel: Flavor) -> Line {
    println!("=== Debian packages");
    let begun = Instant::now();
    let result = package::check(kernel, Wanted::Tests);
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
    }
    Line {
        name: "packages".into(),
        passed: result.is_ok(),
        seconds: begun.elapsed().as_secs_f64(),
        count: None,
    }
}

/// Builds the tests on a KVM and runs them.
fn vm_part(options: &Options, place: &Place) -> Result<Report> {
    println!("=== tests on KVM");
    let Place { kvm, resources } = place;
    let built = build::build(Profile::VmTest, Wanted::Tests)?;
    let plan = TestPlan {
        binaries: built.tests,
        filter: options.filter.clone(),
        first: LONGEST.iter().map(|name| (*name).to_owned()).collect(),
        last: Vec::new(),
        done: Vec::new(),
        failed: Vec::new(),
        jobs: options.jobs,
        lane: None,
        limit_secs: options.limit_secs,
        attempts: match kvm {
            Kvm::Native => 1,
            Kvm::Emulated => EMULATED_ATTEMPTS,
        },
    };
    let run = |plan: &TestPlan, lane: Option<&Lane>| {
        let request = Request {
            agent: built.agent.clone(),
            vmgenie: built.vmgenie.clone(),
            work: Work::Tests(plan.clone()),
            files: Vec::new(),
            timeout_secs: None,
            lane: lane.cloned(),
        };
        host::run(*kvm, resources, &request)
    };
    let report = match kvm {
        Kvm::Native => run(&plan, None)?,
        Kvm::Emulated => run_in_lanes(plan, run)?,
    };
    if report.tests.is_empty() {
        match &options.filter {
            Some(filter) => bail!("no test's name contains {filter:?}"),
            None => bail!("no test on a KVM was run"),
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            name: "x".into(),
            passed: true,
            seconds: 1.0,
            count: None,
        }
    }

    #[test]
    fn a_place_is_made_beside_the_unit_part_and_its_failure_has_a_line() {
        let (told, hears) = mpsc::channel();
        let unit = move || {
            hears.recv().unwrap();
            vec![line()]
        };
        let make = move || -> Result<()> {
            told.send(()).unwrap();
            bail!("no such package")
        };
        let never = |()| panic!("there is no place");
        let last = || (line(), String::new());
        let passed = |lines: Vec<Line>| lines.iter().map(|l| l.passed).collect::<Vec<_>>();
        let lines = parts(Some(unit), Some(make), never, Some(last));
        assert_eq!(passed(lines), [true, false, true]);
        let lines = parts(
            Some(|| vec![line()]),
            None::<fn() -> Result<()>>,
            never,
            Some(last),
        );
        assert_eq!(passed(lines), [true]);
    }

    #[test]
    fn what_comes_last_goes_on_beside_the_tests_in_the_place() {
        let (told, hears) = mpsc::channel();
        let on_kvm = |place| {
            assert_eq!(place, 7);
            // Hangs where what comes last waits for its end.
            hears.recv().unwrap();
            line()
        };
        let last = move || {
            told.send(()).unwrap();
            (line(), String::new())
        };
        let lines = parts(
            None::<fn() -> Vec<Line>>,
            Some(|| Ok(7)),
            on_kvm,
            Some(last),
        );
        assert_eq!(lines.len(), 3);
    }
}
