//! `--full`: a Debian from a disk serves a page, is snapshotted at work, and goes on as four machines on four networks.

mod download;
mod records;
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
