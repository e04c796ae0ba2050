//! The commands that do one thing and end.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sysgenid::{Abi, AcknowledgeError, Options, Outcome, Prepared, Watcher, WatchersError};

use crate::Failure;
use crate::agent;
use crate::args::{Cli, ForkSelfArgs, ThawArgs, TriggerArgs, WaitArgs, WatchArgs};
use crate::output::line;

/// The exit status of a clone.
const CLONE: u8 = 4;
/// What the kernel says of every file.
const OF_EVERY_FILE: [&str; 4] = ["pos", "flags", "mnt_id", "ino"];

impl Cli {
    /// The device, opened as the options say.
    pub(crate) fn open(&self, tracked: bool) -> Result<Watcher, sysgenid::OpenError> {
        let options = Options::new().path(&self.device).tracked(tracked);
        match self.abi {
            Some(abi) => options.abi(abi.into()).open(),
            None => options.open(),
        }
    }
}

pub(crate) fn status(cli: &Cli) -> Result<(), Failure> {
    let watcher = cli.open(false)?;
    let generation = watcher.current()?;
    let abi = match watcher.abi() {
        Abi::Seed => 5,
        Abi::Deployed => 8,
    };
    let driver = driver_info(&watcher);
    let mut text = format!("generation: {generation}\nabi: {abi}\n");
    for (name, value) in &driver {
        let shown = value.as_str().map_or_else(|| value.to_string(), Into::into);
        text.push_str(&format!("{name}: {shown}\n"));
    }
    let value = json!({
        "device": cli.device,
        "generation": generation,
        "abi": abi,
        "driver": driver,
    });
    Ok(line(cli.json, &value, &text)?)
}

fn driver_info(watcher: &Watcher) -> Map<String, Value> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", watcher.as_raw_fd()))
        .map(|info| file_info(&info))
        .unwrap_or_default()
}

/// What the driver itself says of an open file; numbers as numbers.
fn file_info(info: &str) -> Map<String, Value> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| !OF_EVERY_FILE.contains(name))
        .map(|(name, value)| {
            let value = value.trim();
            let value = value
                .parse::<u64>()
                .map_or_else(|_| value.into(), Value::from);
            (name.to_owned(), value)
        })
        .collect()
}

pub(crate) fn watch(cli: &Cli, args: &WatchArgs) -> Result<(), Failure> {
    // Who only looks on is not waited for.
    let watcher = cli.open(false)?;
    let mut seen = watcher.current()?;
    for _ in 0..args.count.unwrap_or(u64::MAX) {
        let generation = match args.timeout {
            None => watcher.wait()?,
            Some(limit) => watcher
                .wait_for(limit)?
                .ok_or(Failure::NoGeneration(limit))?,
        };
        acknowledge(&watcher, generation)?;
        let value = json!({"previous": seen, "generation": generation});
        line(cli.json, &value, &format!("{seen} -> {generation}"))?;
        seen = generation;
    }
    Ok(())
}

/// Acknowledges; a stale generation is left to the next look.
fn acknowledge(watcher: &Watcher, generation: u32) -> Result<(), AcknowledgeError> {
    match watcher.acknowledge(generation) {
        Err(AcknowledgeError::Stale(_)) => Ok(()),
        result => result,
    }
}

pub(crate) fn wait(cli: &Cli, args: &WaitArgs) -> Result<(), Failure> {
    let watcher = cli.open(false)?;
    let start = Instant::now();
    loop {
        let left = args
            .timeout
            .map(|limit| limit.saturating_sub(start.elapsed()));
        let waited = watcher.wait_for_watchers(left);
        let timed_out = || {
            let limit = args.timeout.unwrap_or_default();
            Failure::Watchers(WatchersError::TimedOut(limit))
        };
        match waited {
            Ok(()) => break,
            Err(WatchersError::TimedOut(_)) => return Err(timed_out()),
            // A generation began: this command has nothing to adapt, and goes on waiting.
            Err(WatchersError::Outdated) => {
                if left == Some(Duration::ZERO) {
                    return Err(timed_out());
                }
                if let Some(generation) = watcher.try_next()? {
                    acknowledge(&watcher, generation)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    let value = json!({
        "generation": watcher.current()?,
        "waited_ms": u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        // Whether anybody is there, and agents have finished.
        "driver": driver_info(&watcher),
    });
    Ok(line(cli.json, &value, "Nobody is outdated.")?)
}

pub(crate) fn trigger(cli: &Cli, args: &TriggerArgs) -> Result<(), Failure> {
    let watcher = cli.open(false)?;
    let previous = watcher.current()?;
    watcher.trigger(args.min)?;
    let generation = watcher.current()?;
    let value = json!({"previous": previous, "generation": generation});
    Ok(line(
        cli.json,
        &value,
        &format!("{previous} -> {generation}"),
    )?)
}

pub(crate) fn thaw(cli: &Cli, args: &ThawArgs) -> Result<(), Failure> {
    let groups = agent::thaw(&args.run)?;
    let text = match groups {
        0 => "Nothing was frozen.".to_owned(),
        groups => format!("{groups} control groups thawed."),
    };
    Ok(line(cli.json, &json!({ "groups": groups }), &text)?)
}

/// Whoever makes this call goes on twice. Returns the status by which a script tells the two apart.
pub(crate) fn fork_self(cli: &Cli, args: &ForkSelfArgs) -> Result<ExitCode, Failure> {
    // Who only asks is not waited for.
    let watcher = cli.open(false)?;
    let fork = watcher.fork_self(args.tag, Prepared::NOTHING, Some(args.timeout))?;
    let (name, status) = match fork.outcome {
        Outcome::Original => ("original", ExitCode::SUCCESS),
        Outcome::Clone => ("clone", ExitCode::from(CLONE)),
    };
    let value = json!({"outcome": name, "tag": args.tag, "generation": fork.generation});
    line(cli.json, &value, name)?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_driver_says_of_a_file_is_shown() {
        let info = "pos:\t0\nflags:\t02\nmnt_id:\t24\nino:\t7\nacknowledged:\t5\ntracked:\tyes\n";
        let shown = file_info(info);
        assert_eq!(
            Value::from(shown),
            json!({"acknowledged": 5, "tracked": "yes"})
        );
    }
}
