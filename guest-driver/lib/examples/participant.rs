//! Workflow 5: a program that has nothing in flight when the host snapshots the running machine.
//!
//! `participant [SNAPSHOTS]` ends after so many that it was parked for.
//!
//! It works in small pieces, each of which would do harm if two clones did it. Before the next piece it
//! looks whether it is asked to park.
//!
//! What it closes: the machine is cloned while this program is parked, with no piece begun and not
//! ended. So no two clones do the same piece, and each renews its secret before the next.
//!
//! What it does not close: a snapshot that the host takes without asking. Then it is as workflow 2: a
//! piece that is under way is done by every clone.

mod common;

use std::error::Error;
use std::time::Duration;

use common::{Secret, limit};
use sysgenid::{AcknowledgeError, Outcome, ParkError, Role, WaitError, Watcher};

const PIECE: Duration = Duration::from_millis(50);

fn main() -> Result<(), Box<dyn Error>> {
    let limit = limit()?;
    // First the watcher, then the state, or a generation in between is lost.
    let watcher = Watcher::open()?;
    watcher.set_role(Role::Participant)?;
    println!("secret: {}", Secret::make()?);
    let mut parked = 0;
    while parked < limit {
        // The piece, of which this stands for the time in between.
        let asked = match watcher.asked(Some(PIECE)) {
            Err(WaitError::Interrupted) => false,
            asked => asked?,
        };
        if asked {
            match watcher.park() {
                Ok(Outcome::Original) => println!("parked: goes on"),
                Ok(Outcome::Clone) => println!("parked: a clone"),
                Err(ParkError::Interrupted) => continue,
                Err(error) => return Err(error.into()),
            }
            parked += 1;
        }
        renew(&watcher)?;
    }
    Ok(())
}

/// Renews the secret if another generation has begun.
fn renew(watcher: &Watcher) -> Result<(), Box<dyn Error>> {
    while let Some(generation) = watcher.try_next()? {
        let secret = Secret::make()?;
        match watcher.acknowledge(generation) {
            Ok(()) => println!("generation {generation}: renewed\nsecret: {secret}"),
            // Another one has begun.
            Err(AcknowledgeError::Stale(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
