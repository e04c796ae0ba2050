//! Workflow 1: a thread that sleeps until a generation begins and renews the process's state.
//!
//! `watchdog [GENERATIONS]` ends after so many.
//!
//! What it closes: no generation is missed. The driver compares with what this watcher has
//! acknowledged, so one that begins before the wait is told by it, and one that begins while the
//! state is renewed makes the acknowledgement fail.
//!
//! What it does not close: until this thread has run, the others go on with the old state. Only a
//! machine whose other threads are at rest during the snapshot is safe.

mod common;

use std::error::Error;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use common::{Secret, limit};
use sysgenid::{AcknowledgeError, WaitError, Watcher};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Box<dyn Error>> {
    let limit = limit()?;
    // First the watcher, then the state, or a generation in between is lost.
    let watcher = Watcher::open()?;
    let secret = Mutex::new(Secret::make()?);
    let show = || {
        let secret = secret.lock().unwrap_or_else(PoisonError::into_inner);
        println!("secret: {secret}");
    };
    let (sender, renewed) = mpsc::channel();
    show();
    thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch(&watcher, &secret, limit, sender));
        // Stands for the rest of the program, which uses the secret.
        for generation in renewed {
            println!("generation {generation}: renewed");
            show();
        }
        let ended = watchdog.join().map_err(|_| "the watchdog panicked")?;
        ended.map_err(|error| -> Box<dyn Error> { error })
    })
}

/// Renews `secret` in every generation, until `limit` of them have been acknowledged.
fn watch(
    watcher: &Watcher,
    secret: &Mutex<Secret>,
    limit: u64,
    renewed: mpsc::Sender<u32>,
) -> Result<(), Failure> {
    let mut done = 0;
    while done < limit {
        let generation = match watcher.wait() {
            Err(WaitError::Interrupted) => continue,
            result => result?,
        };
        *secret.lock().unwrap_or_else(PoisonError::into_inner) = Secret::make()?;
        match watcher.acknowledge(generation) {
            Ok(()) => done += 1,
            // Another one has begun: the next wait returns at once.
            Err(AcknowledgeError::Stale(_)) => continue,
            Err(error) => return Err(error.into()),
        }
        renewed.send(generation)?;
    }
    Ok(())
}
