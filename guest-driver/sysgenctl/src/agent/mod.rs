//! `sysgenctl agent`: in every new generation it runs hooks, then acknowledges; and it has the machine come to
//! rest for a snapshot that the host asks for.
//!
//! To the driver, opening is an acknowledgement: a watcher is up to date from `open` on. Two things
//! follow. A generation that began before is found by comparing the counter with what the
//! last agent acknowledged (`--state`), or with the counter as it was before `open`; no read tells of it.
//! And while the hooks of such a generation run or are retried, nobody waits for the agent: who must not
//! go on before them waits for its word to the service manager, which comes after them.
//!
//! An acknowledgement is the agent's own, and is given by its end as well as by its word. So the host is
//! told by another call that it is ready, and never unless all hooks have succeeded.

mod cgroup;
mod contracts;
mod cycle;
mod error;
#[cfg(test)]
mod fake;
mod follow;
mod freezer;
mod group;
mod held;
mod hooks;
mod machine;
mod net;
mod notify;
mod round;
mod runner;
mod signals;
#[cfg(test)]
mod snapshot_test;
mod source;
mod stages;
mod state;
mod steps;
#[cfg(test)]
mod trouble_test;

use serde_json::Value;
use sysgenid::Counter;

use crate::args::{AgentArgs, Cli};
use crate::output::{Log, report};
pub(crate) use error::AgentError;
use freezer::Freezer;
pub(crate) use freezer::{FreezeError, thaw};
use group::Groups;
use machine::Agent;
use signals::Signals;

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(cli: &Cli, args: &AgentArgs) -> Result<(), AgentError> {
    let signals = Signals::block().map_err(AgentError::Signals)?;
    let log = Log { json: cli.json };
    // A former agent may have been killed where nobody thaws what it has frozen.
    match thaw(&args.run) {
        Ok(0) => {}
        Ok(groups) => {
            let text = format!("thawed {groups} control groups that a former agent has frozen");
            log.say("thawed", [("groups", groups.into())], &text);
        }
        Err(error) => log.say(
            "not-thawed",
            [("error", report(&error).into())],
            &report(&error),
        ),
    }
    // Looked at before the watcher is opened, which counts as an acknowledgement.
    let old = match &args.state {
        Some(path) => state::load(path)?,
        None => None,
    };
    let (old, nothing_missed) = match old {
        Some(old) => (old, true),
        None => {
            let counter = Counter::open_at(&cli.device)?.get();
            (counter, counter == 0)
        }
    };
    let watcher = cli.open(true)?;
    stages::check(args)?;
    held::check(args)?;
    let contracts = contracts::of(args)?;
    let freezer = Freezer::of_machine(&args.run, &args.keep);
    let mut agent = Agent::new(args, log, signals, watcher, old, nothing_missed)
        .with_groups(Groups::of_service())
        .with_freezer(freezer)
        .with_contracts(contracts);
    let hooks = args.hooks.as_ref().unwrap_or(&args.directory);
    let text = format!(
        "watching from generation {old} on, hooks in {}",
        hooks.display()
    );
    log.say("started", [("generation", Value::from(old))], &text);
    let ended = agent.follow();
    notify::stopping();
    ended
}
