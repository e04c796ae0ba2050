//! The tests on a KVM in emulated hosts: several at a time, and others for those that die.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Result, anyhow};
use vm_agent::{Report, TestPlan, TestReport};

use crate::host::{Claims, HostDied, Lane};
use crate::summary::failed;

/// How many emulated hosts may die under one test, or in a row before any began. With two processors one died every
/// few minutes, with a page fault of its kernel on its own stack; that is taken for the same fault. The next host goes
/// on with the tests that had not ended. The one that ran comes last there, so that a test that takes its host with it
/// keeps no other from running.
const HOST_ATTEMPTS: u32 = 6;

/// Runs the tests in as many emulated hosts as tests are to run at once: a host has one processor. A lane that has no
/// hosts any more, and a test that was begun and has no result, are failures; what the other lanes have run counts.
pub(crate) fn run_in_lanes(
    plan: TestPlan,
    run: impl Fn(&TestPlan, Option<&Lane>) -> Result<Report> + Sync,
) -> Result<Report> {
    let claims = Arc::new(Claims::default());
    let (run, plan) = (&run, &plan);
    let reports: Vec<Result<Report>> = thread::scope(|scope| {
        let begin = |number| {
            let claims = Arc::clone(&claims);
            let lane = Lane { claims, number };
            let plan = TestPlan {
                jobs: 1,
                lane: Some(number),
                ..plan.clone()
            };
            scope.spawn(move || run_patiently(plan, |plan| run(plan, Some(&lane))))
        };
        let lanes: Vec<_> = (0..plan.jobs.max(1)).map(begin).collect();
        let panicked = |_| Err(anyhow!("a thread that runs tests has panicked"));
        let join = |lane: ScopedJoinHandle<'_, _>| lane.join().unwrap_or_else(panicked);
        lanes.into_iter().map(join).collect()
    });
    let mut whole = Report::of_status(0);
    for report in reports {
        match report {
            Ok(report) => {
                whole.status |= report.status;
                whole.tests.extend(report.tests);
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                whole.status = 1;
            }
        }
    }
    for name in claims.names() {
        if whole.tests.iter().all(|test| test.name != name) {
            eprintln!("error: {name} was begun and has no result");
            whole.status = 1;
        }
    }
    Ok(whole)
}

/// Runs the tests of one host, and those that had not ended again if the emulated host itself dies.
fn run_patiently(
    mut plan: TestPlan,
    mut run: impl FnMut(&TestPlan) -> Result<Report>,
) -> Result<Report> {
    let mut ended = Vec::new();
    let mut idle = 0;
    let mut deaths: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        let died = match run(&plan).map_err(|error| error.downcast::<HostDied>()) {
            Ok(last) => {
                ended.extend(last.tests);
                let status = i32::from(last.status != 0 || ended.iter().any(failed));
                let tests = ended;
                return Ok(Report { status, tests });
            }
            Err(Err(error)) => return Err(error),
            Err(Ok(died)) => died,
        };
        idle = match died.cut.tests.is_empty() && died.cut.running.is_empty() {
            true => idle + 1,
            false => 0,
        };
        if idle == HOST_ATTEMPTS {
            for test in ended.iter().filter(|test| failed(test)) {
                eprintln!("failed before that: {}", test.name);
            }
            return Err(died.into());
        }
        eprintln!("NOTE: {died}\nNOTE: the tests on KVM that had not ended are run once more");
        ended.extend(died.cut.tests);
        for name in died.cut.running {
            let count = deaths.entry(name.clone()).or_default();
            *count += 1;
            if *count == HOST_ATTEMPTS {
                eprintln!("--- {name} FAILED: {count} emulated hosts died under it");
                ended.push(TestReport::of_dead_hosts(name, *count));
            }
        }
        plan.failed.extend(died.cut.failed);
        plan.done = ended.iter().map(|test| test.name.clone()).collect();
        plan.last = deaths.keys().cloned().collect();
        plan.last.retain(|name| !plan.done.contains(name));
        plan.last.sort_by_key(|name| deaths.get(name));
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use vm_agent::{Cut, Outcome};

    use super::*;

    fn plan() -> TestPlan {
        TestPlan {
            binaries: Vec::new(),
            filter: None,
            first: Vec::new(),
            last: Vec::new(),
            done: Vec::new(),
            failed: Vec::new(),
            jobs: 1,
            lane: None,
            limit_secs: 1,
            attempts: 1,
        }
    }

    fn ended(name: &str, outcome: Outcome) -> TestReport {
        TestReport {
            name: name.into(),
            outcome,
            attempts: 1,
            unexplained: 0,
            seconds: 1.0,
        }
    }

    #[test]
    fn what_ended_before_a_host_died_is_not_run_again_and_not_forgotten() {
        let mut hosts = 0;
        let report = run_patiently(plan(), |plan| {
            hosts += 1;
            match hosts {
                1 => Err(HostDied::after(cut(vec![ended("a", Outcome::Failed)], &[])).into()),
                2 => Err(HostDied::after(Cut::default()).into()),
                _ => {
                    assert_eq!(plan.done, ["a"]);
                    Ok(Report {
                        status: 0,
                        tests: vec![ended("b", Outcome::Passed)],
                    })
                }
            }
        })
        .unwrap();
        assert_eq!(report.status, 1);
        let names: Vec<_> = report.tests.iter().map(|test| &test.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    fn cut(tests: Vec<TestReport>, running: &[&str]) -> Cut {
        Cut {
            tests,
            failed: Vec::new(),
            running: running.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn each_lane_has_a_host_and_what_one_says_is_part_of_the_whole() {
        let two = TestPlan { jobs: 2, ..plan() };
        let report = run_in_lanes(two, |plan, lane| {
            assert_eq!(lane.map(|it| it.number), plan.lane);
            let (name, outcome) = match plan.lane {
                Some(0) => ("a", Outcome::Passed),
                _ => ("b", Outcome::Failed),
            };
            assert_eq!(plan.jobs, 1);
            Ok(Report {
                status: i32::from(outcome == Outcome::Failed),
                tests: vec![ended(name, outcome)],
            })
        })
        .unwrap();
        assert_eq!(report.status, 1);
        let names: Vec<_> = report.tests.iter().map(|test| &*test.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_lane_without_hosts_is_a_failure_and_hides_no_result_of_the_other() {
        let two = TestPlan { jobs: 2, ..plan() };
        let report = run_in_lanes(two, |plan, _| match plan.lane {
            Some(0) => bail!("no QEMU"),
            _ => Ok(Report {
                status: 0,
                tests: vec![ended("b", Outcome::Passed)],
            }),
        })
        .unwrap();
        assert_eq!((report.status, report.tests.len()), (1, 1));
    }

    #[test]
    fn a_test_that_was_taken_and_has_no_result_is_a_failure() {
        for ends in [true, false] {
            let report = run_in_lanes(plan(), |_, lane| {
                let lane = lane.unwrap();
                assert_eq!(lane.claims.take(lane.number, "a"), 1);
                let test = ended("a", Outcome::Passed);
                Ok(Report {
                    status: 0,
                    tests: ends.then_some(test).into_iter().collect(),
                })
            })
            .unwrap();
            assert_eq!(report.status, i32::from(!ends));
        }
    }

    #[test]
    fn hosts_that_die_before_any_test_end_the_run() {
        let mut hosts = 0;
        let result = run_patiently(plan(), |_| {
            hosts += 1;
            Err(HostDied::after(Cut::default()).into())
        });
        assert!(result.unwrap_err().is::<HostDied>());
        assert_eq!(hosts, HOST_ATTEMPTS);
    }

    #[test]
    fn a_test_that_takes_every_host_with_it_fails_alone() {
        let mut hosts = 0;
        let report = run_patiently(plan(), |plan| {
            hosts += 1;
            let done = |name: &str| plan.done.iter().any(|it| it == name);
            match hosts {
                1 => {
                    assert!(plan.last.is_empty());
                    Err(HostDied::after(cut(Vec::new(), &["bad", "beside"])).into())
                }
                2 => {
                    assert_eq!(plan.last, ["bad", "beside"]);
                    let other = vec![ended("other", Outcome::Passed)];
                    Err(HostDied::after(cut(other, &["bad"])).into())
                }
                3 => {
                    // It has more deaths than the other.
                    assert_eq!(plan.last, ["beside", "bad"]);
                    let beside = vec![ended("beside", Outcome::Passed)];
                    Err(HostDied::after(cut(beside, &["bad"])).into())
                }
                _ if done("bad") => Ok(Report::of_status(0)),
                _ => {
                    assert!(done("other") && done("beside"));
                    Err(HostDied::after(cut(Vec::new(), &["bad"])).into())
                }
            }
        })
        .unwrap();
        assert_eq!(hosts, HOST_ATTEMPTS + 1);
        assert_eq!(report.status, 1);
        let outcomes: Vec<_> = report
            .tests
            .iter()
            .map(|it| (&*it.name, it.outcome))
            .collect();
        let expected = [
            ("other", Outcome::Passed),
            ("beside", Outcome::Passed),
            ("bad", Outcome::Failed),
        ];
        assert_eq!(outcomes, expected);
    }
}
