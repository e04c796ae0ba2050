//! What is said at the end of `cargo xtask test`.

use vm_agent::{Outcome, TestReport};

/// How many tests are shown as the slowest, among more than twice as many.
const SLOWEST: usize = 5;

/// The result of one line of the summary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// What it is of.
    pub(crate) name: String,
    /// Whether all went well.
    pub(crate) passed: bool,
    /// How long it took.
    pub(crate) seconds: f64,
    /// The tests that it stands for; none for a step that is not made of tests.
    pub(crate) count: Option<Count>,
}

/// How many tests ended in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    /// As they should.
    pub(crate) passed: usize,
    /// In another way.
    pub(crate) failed: usize,
    /// Without a beginning.
    pub(crate) ignored: usize,
}

/// The numbers in libtest's last line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
pub(crate) fn libtest_result(line: &str) -> Option<Count> {
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

/// Whether it has failed.
pub(crate) fn failed(test: &TestReport) -> bool {
    matches!(test.outcome, Outcome::Failed | Outcome::TimedOut)
}

/// How many of them ended in which way.
pub(crate) fn count(tests: &[TestReport]) -> Count {
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
    /// Those of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// The table at the end, and the line with the totals.
pub(crate) fn summary(lines: &[Line], tests: &[TestReport]) -> String {
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
    if tests.len() > 2 * SLOWEST {
        let mut tests: Vec<_> = tests.iter().collect();
        tests.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        for test in &tests[..SLOWEST] {
            text += &format!("slowest: {:>5.1} s {}\n", test.seconds, test.name);
        }
    }
    for test in tests.iter().filter(|test| failed(test)) {
        text += &format!("failed: {}\n", test.name);
    }
    let again = tests
        .iter()
        .filter(|test| !failed(test) && test.attempts > 1);
    for test in again {
        let why = match test.unexplained {
            0 => "a guest crashed or fell silent",
            _ => "it FAILED once (see its output) and passed twice after that",
        };
        text += &format!(
            "run {} times, because {why}: {}\n",
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
    fn the_last_line_holds_the_totals_of_all_steps() {
        let lines = [
            line(true, None),
            line(true, Some((3, 0))),
            line(false, Some((2, 1))),
        ];
        assert!(summary(&lines, &[]).ends_with("\n5 passed, 1 failed\n"));
    }

    #[test]
    fn the_slowest_of_many_tests_are_told() {
        let tests: Vec<_> = (0..=2 * SLOWEST)
            .map(|n| TestReport {
                name: format!("t{n}"),
                outcome: Outcome::Passed,
                attempts: 1,
                unexplained: 0,
                seconds: n as f64,
            })
            .collect();
        let text = summary(&[], &tests);
        assert!(text.contains("slowest:  10.0 s t10\nslowest:   9.0 s t9\n"));
        assert_eq!(text.matches("slowest").count(), SLOWEST);
        assert!(!summary(&[], &tests[1..]).contains("slowest"));
    }

    #[test]
    fn a_step_that_failed_without_a_test_counts_as_a_failure() {
        let lines = [line(false, None), line(false, Some((0, 0)))];
        assert!(summary(&lines, &[]).ends_with("\n0 passed, 2 failed\n"));
    }
}
