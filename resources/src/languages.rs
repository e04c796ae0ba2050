//! The tests of the packages for other languages, below `guest-driver`: `python`, `node` and `c`. They need no device.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::cache::Cache;
use crate::counted::counted;
use crate::progress::Progress;
use crate::summary::{Count, Line};
use crate::tools;

/// Runs the tests below this directory, and says so on the standard output.
const PYTHON: &str = "\
import sys, unittest
runner = unittest.TextTestRunner(sys.stdout)
ended = unittest.main(None, argv=['unittest', 'discover'], testRunner=runner, exit=False).result
bad = len(ended.failures) + len(ended.errors) + len(ended.unexpectedSuccesses)
print(ended.testsRun - bad - len(ended.skipped), 'passed,', bad + len(ended.skipped), 'failed')
sys.exit(bad + len(ended.skipped) > 0)";

/// What a strange compiler must not have to say of a header.
const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2"];

/// The line of all of them.
pub(crate) fn part() -> Line {
    println!("=== packages for other languages");
    let begun = Instant::now();
    let result = run();
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
    }
    let (passed, count) = match result {
        Ok(count) => (count.failed == 0, Some(count)),
        Err(_) => (false, None),
    };
    Line {
        name: "packages for other languages".into(),
        passed,
        seconds: begun.elapsed().as_secs_f64(),
        count,
    }
}

fn run() -> Result<Count> {
    tools::install_languages(&Cache::open()?, &Progress::default())?;
    let packages = build::workspace().join("guest-driver");
    let count = tests(python(&packages.join("python")))?;
    let count = count.plus(tests(node(&packages.join("node")))?);
    Ok(count.plus(c(&packages.join("c"))?))
}

/// Debian's, which has Debian's numpy.
fn python(package: &Path) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    // A tree that is built is left as it is.
    command.args(["-B", "-c", PYTHON]).current_dir(package);
    command
}

fn node(package: &Path) -> Command {
    let mut command = Command::new("/usr/bin/node");
    command.args(["--test", "--test-reporter=tap"]);
    command.current_dir(package).env_remove("NODE_OPTIONS");
    command
}

/// Compiles the test as C and as C++, runs both, and compiles the example.
fn c(package: &Path) -> Result<Count> {
    let out = build::workspace().join("target/languages");
    fs::create_dir_all(&out).context("could not make target/languages")?;
    let mut count = Count::default();
    for (compiler, args, source, program) in [
        ("cc", &["-std=c11"][..], "test.c", "test-c"),
        ("c++", &["-std=c++17", "-x", "c++"], "test.c", "test-c++"),
        (
            "cc",
            &["-std=gnu11", "-pthread"],
            "examples/draws.c",
            "draws",
        ),
    ] {
        let program = out.join(program);
        let mut compile = Command::new(compiler);
        compile.current_dir(package).args(STRICT).args(["-I", "."]);
        compile.args(args).arg("-o").arg(&program).arg(source);
        if source == "test.c" {
            // A program of two files that include the header.
            compile.arg("test_other.c");
        }
        let (compiled, _) = counted(&mut compile, |_| None)?;
        ensure!(compiled, "{compiler} does not take {source}");
        if source == "test.c" {
            count = count.plus(tests(Command::new(&program))?);
        }
    }
    Ok(count)
}

/// Runs tests whose last lines say how many there were.
fn tests(mut command: Command) -> Result<Count> {
    let (well, count) = counted(&mut command, totals)?;
    let count = count.context("nobody said how many tests there were")?;
    ensure!(count.passed > 0, "there was no test");
    ensure!(
        // A skipped test of Node's is no failure to Node.
        well || count.failed > 0,
        "the status does not say what the last line says"
    );
    Ok(count)
}

/// The numbers in `18 passed, 0 failed`, and in each of Node's last lines: `# pass 18`, `# fail 0`, `# skipped 0`.
fn totals(line: &str) -> Option<Count> {
    if let Some((word, number)) = line
        .strip_prefix("# ")
        .and_then(|rest| rest.split_once(' '))
    {
        let number = number.parse().ok()?;
        return match word {
            "pass" => Some(passed(number)),
            // One that was left out is none that passed.
            "fail" | "cancelled" | "skipped" | "todo" => Some(failed(number)),
            _ => None,
        };
    }
    let (good, bad) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some(passed(good.parse().ok()?).plus(failed(bad.parse().ok()?)))
}

fn passed(passed: usize) -> Count {
    Count {
        passed,
        ..Count::default()
    }
}

fn failed(failed: usize) -> Count {
    Count {
        failed,
        ..Count::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<Count> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        tests(command)
    }

    #[test]
    fn tests_are_counted_by_their_last_line_and_its_absence_is_a_failure() {
        let count = sh("echo begun; echo 3 passed, 0 failed").unwrap();
        assert_eq!((count.passed, count.failed), (3, 0));
        assert_eq!(sh("echo 3 passed, 2 failed; exit 1").unwrap().failed, 2);
        for wrong in [
            "true",
            "echo 0 passed, 0 failed",
            "echo 3 passed, 0 failed; exit 1",
        ] {
            assert!(sh(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_test_of_node_that_was_skipped_has_failed() {
        let said = "echo '# Subtest: x'; echo '# pass 5'; echo '# fail 0'; echo '# skipped 1'";
        let count = sh(said).unwrap();
        assert_eq!((count.passed, count.failed), (5, 1));
    }
}
