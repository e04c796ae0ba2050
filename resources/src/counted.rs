//! Commands that run tests.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::lifetime;
use crate::summary::Count;

/// Runs a command, shows its output, and counts the tests in it, by the lines in which `of` finds numbers. Whether it
/// succeeded, and how many tests there were, if any.
pub(crate) fn counted(
    command: &mut Command,
    of: impl Fn(&str) -> Option<Count>,
) -> Result<(bool, Option<Count>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let name = command.get_program().display().to_string();
    let mut child = lifetime::bind(command)
        .spawn()
        .with_context(|| format!("could not run {name}"))?;
    let output = child
        .stdout
        .take()
        .with_context(|| format!("{name} has no output"))?;
    let mut count: Option<Count> = None;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("could not read what {name} says"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(more) = of(&line) {
            count = Some(count.unwrap_or_default().plus(more));
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("could not wait for {name}"))?;
    Ok((status.success(), count))
}
