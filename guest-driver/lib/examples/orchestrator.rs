//! Workflow 4: who decides that a machine may work again.
//!
//! `orchestrator [GENERATIONS]` ends after so many; `orchestrator trigger` begins one first. A
//! watcher that has not adapted after five seconds is a failure, and the service stays held back.
//!
//! What it closes: a generation that begins during the wait ends the wait, so success means that
//! everyone who is tracked has adapted to the generation that this program has acknowledged.
//!
//! What it does not close: between the resume and `pause_service` the service works with its old
//! state. Safe is only what was at rest before the snapshot already: quiesce, snapshot, restore,
//! adapt, un-quiesce. Programs that are not tracked are not waited for.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use sysgenid::{AcknowledgeError, WaitError, Watcher, WatchersError};

const LIMIT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let argument = env::args().nth(1);
    let triggers = argument.as_deref() == Some("trigger");
    let limit = match argument {
        None => u64::MAX,
        Some(_) if triggers => 1,
        Some(text) => text.parse()?,
    };
    let watcher = Watcher::open()?;
    if triggers {
        watcher.trigger(0)?;
    }
    for _ in 0..limit {
        match watcher.wait() {
            Ok(_) => {}
            Err(WaitError::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        }
        pause_service();
        let generation = everyone_adapts(&watcher)?;
        resume_service(generation);
    }
    Ok(())
}

/// Acknowledges for this program, which has nothing to adapt, and waits for the others. Returns the
/// generation that all have adapted to.
fn everyone_adapts(watcher: &Watcher) -> Result<u32, Box<dyn Error>> {
    let start = Instant::now();
    let mut adapted_to = watcher.current()?;
    loop {
        if let Some(generation) = watcher.try_next()? {
            adapted_to = generation;
            match watcher.acknowledge(generation) {
                Ok(()) => {}
                Err(AcknowledgeError::Stale(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        match watcher.wait_for_watchers(Some(LIMIT.saturating_sub(start.elapsed()))) {
            Ok(()) => return Ok(adapted_to),
            // Another generation has begun, and the time goes on; or a signal came.
            Err(WatchersError::Outdated | WatchersError::Interrupted)
                if start.elapsed() < LIMIT => {}
            Err(WatchersError::TimedOut(_)) => {
                return Err(format!("somebody has not adapted after {LIMIT:?}").into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn pause_service() {
    println!("service held back");
}

fn resume_service(generation: u32) {
    println!("generation {generation}: everyone has adapted, service resumed");
}
