//! The tests of some libtest binaries, in the order in which they are run.

use std::collections::VecDeque;
use std::process::Command;

use vm_agent::{TestBinary, TestPlan};

/// One test to run.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) binary: String,
    pub(crate) test: String,
    pub(crate) name: String,
    pub(crate) ignored: bool,
}

/// The tests that no worker has taken yet.
#[derive(Debug)]
pub(crate) struct Queue {
    tests: VecDeque<(usize, Test)>,
    /// Taken after all others, by one worker.
    last: VecDeque<(usize, Test)>,
    /// So many at the front are taken before any other.
    first: usize,
}

impl Queue {
    /// The tests of the plan.
    pub(crate) fn of(plan: &TestPlan) -> Result<Self, String> {
        let tests = list_all(plan)?;
        // Those that are not run this time cannot be missed.
        let is_whole = plan.filter.is_none() && plan.done.is_empty();
        let unknown = |name: &&String| !tests.iter().any(|test| test.name.starts_with(*name));
        match plan.first.iter().find(unknown) {
            Some(name) if is_whole => Err(format!("no test's name begins with {name}")),
            _ => Ok(Self::new(tests, &plan.first, &plan.last)),
        }
    }

    fn new(mut tests: Vec<Test>, first: &[String], names: &[String]) -> Self {
        let rank = |test: &Test| {
            let rank = first.iter().position(|name| test.name.starts_with(name));
            rank.unwrap_or(first.len())
        };
        tests.sort_by_cached_key(|test| (rank(test), test.name.clone()));
        let (mut last, tests): (VecDeque<_>, VecDeque<_>) = tests
            .into_iter()
            .enumerate()
            .partition(|(_, test)| names.contains(&test.name));
        let rank_of = |test: &Test| names.iter().position(|name| *name == test.name);
        last.make_contiguous()
            .sort_by_key(|(_, test)| rank_of(test));
        let is_first = |(_, test): &&(usize, Test)| rank(test) < first.len();
        Self {
            first: tests.iter().filter(is_first).count(),
            tests,
            last,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.tests.len() + self.last.len()
    }

    /// The next one for this worker of the host `lane`, and its number. Every other worker takes from the end: neighbours often wait for one
    /// and the same guest to boot.
    pub(crate) fn take(&mut self, worker: usize, lane: usize) -> Option<(usize, Test)> {
        let next = if self.first == 0 && (worker + lane) % 2 == 1 {
            self.tests.pop_back()
        } else {
            self.first = self.first.saturating_sub(1);
            self.tests.pop_front()
        };
        match worker {
            0 => next.or_else(|| self.last.pop_front()),
            _ => next,
        }
    }
}

/// The tests of all binaries that match the filter and were not run before.
fn list_all(plan: &TestPlan) -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for binary in &plan.binaries {
        let ignored = list(binary, &["--ignored"])?;
        for test in list(binary, &[])? {
            let name = format!("{}::{test}", binary.name);
            let wanted = plan.filter.as_ref().is_none_or(|text| name.contains(text));
            if wanted && !plan.done.contains(&name) {
                tests.push(Test {
                    binary: binary.path.clone(),
                    ignored: ignored.contains(&test),
                    test,
                    name,
                });
            }
        }
    }
    Ok(tests)
}

fn list(binary: &TestBinary, options: &[&str]) -> Result<Vec<String>, String> {
    let output = Command::new(&binary.path)
        .args(["--list", "--format", "terse"])
        .args(options)
        .output()
        .map_err(|e| format!("could not list the tests of {}: {e}", binary.path))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{} --list ended with {}: {errors}",
            binary.path, output.status
        ));
    }
    Ok(parse_list(&String::from_utf8_lossy(&output.stdout)))
}

/// The names in libtest's terse list, whose lines read `NAME: test`.
fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_are_taken_from_a_list() {
        let text = "a::b: test\nfast: benchmark\nc: test\n\n";
        assert_eq!(parse_list(text), ["a::b", "c"]);
    }

    fn queue(names: &[&str], first: &[&str], last: &[&str]) -> Queue {
        let test = |name: &&str| Test {
            binary: String::new(),
            test: String::new(),
            name: (*name).to_owned(),
            ignored: false,
        };
        let owned = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let tests = names.iter().map(test).collect();
        Queue::new(tests, &owned(first), &owned(last))
    }

    #[test]
    fn the_first_are_taken_by_all_and_the_others_from_both_ends() {
        let names = ["a::1", "b::1", "c::long", "b::2", "a::2", "b::long"];
        let mut queue = queue(&names, &["c::long", "b::l"], &[]);
        let mut order = Vec::new();
        for worker in [1, 0, 0, 1, 1, 0, 1] {
            order.extend(queue.take(worker, 0).map(|(_, test)| test.name));
        }
        let expected = ["c::long", "b::long", "a::1", "b::2", "b::1", "a::2"];
        assert_eq!(order, expected);
    }

    #[test]
    fn the_last_are_taken_by_one_worker_when_no_other_is_left() {
        let mut queue = queue(&["a", "b", "c", "d"], &["a", "c"], &["c", "a"]);
        assert_eq!(queue.len(), 4);
        let mut order = Vec::new();
        for worker in [1, 0, 1, 0, 1, 0, 0] {
            order.push(queue.take(worker, 0).map(|(_, test)| test.name));
        }
        let order: Vec<_> = order.iter().map(Option::as_deref).collect();
        let expected = [Some("d"), Some("b"), None, Some("c"), None, Some("a"), None];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_first_test_that_is_none_is_an_error_unless_only_some_are_run() {
        let plan = |filter: Option<&str>| TestPlan {
            binaries: Vec::new(),
            filter: filter.map(str::to_owned),
            first: vec!["gone::".to_owned()],
            last: Vec::new(),
            done: Vec::new(),
            failed: Vec::new(),
            jobs: 1,
            lane: None,
            limit_secs: 1,
            attempts: 1,
        };
        assert!(Queue::of(&plan(None)).unwrap_err().contains("gone::"));
        assert_eq!(Queue::of(&plan(Some("other"))).unwrap().len(), 0);
    }
}
