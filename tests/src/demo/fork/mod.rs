//! `--fork`: a Debian serves a page to a client that asks without pause, and is forked into three by one command. All are on one bridge.
//!
//! The control is two machines that are restored from one snapshot and are told of no new generation: they have to give the same nonces,
//! or the demo fails.

mod asking;
mod report;
mod show;
mod verdict;

use anyhow::Result;

use crate::ending;
use crate::steps::Steps;

/// Shows it; returns whether all was as it should be.
pub(crate) fn run(steps: &Steps, json: bool) -> Result<bool> {
    let facts = show::show(steps)?;
    // The VMMs have ended; this is for what they may have left.
    ending::clean();
    let failures = verdict::failures(&facts);
    report::print(&facts, &failures, json);
    Ok(failures.is_empty())
}
