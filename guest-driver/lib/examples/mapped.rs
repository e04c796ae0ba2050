//! Workflow 3: a library that compares a word of mapped memory at every use.
//!
//! `mapped [CHANGES]` ends after so many.
//!
//! What it closes: a load costs no system call. On vmgenie the monitor moves the page while no CPU
//! of the machine runs, so the first load after a restore tells. The counter moves once more when the
//! kernel's random number generator has been reseeded: a secret that was made too early is made
//! again.
//!
//! What it does not close: on other hypervisors the page moves when the driver has been notified;
//! until then the old value is loaded. Nowhere does it help against a restore after the last
//! load, when the secret is already in use.
//!
//! A [`Counter`] is no watcher: nobody waits for this library.

mod common;

use std::error::Error;
use std::thread;
use std::time::Duration;

use common::{Secret, limit};
use rustix::io::Errno;
use sysgenid::Counter;

/// A library with a secret.
struct Library {
    counter: Counter,
    /// The counter before and after the secret was made.
    generation: u32,
    secret: Secret,
}

impl Library {
    fn new() -> Result<Self, Box<dyn Error>> {
        let counter = Counter::open()?;
        let (generation, secret) = counter.steady(|_| Secret::make());
        Ok(Self {
            generation,
            secret: secret?,
            counter,
        })
    }

    /// The secret of the generation that was current at the last load.
    fn secret(&mut self) -> Result<&Secret, Errno> {
        if self.counter.changed(self.generation) {
            let (generation, secret) = self.counter.steady(|_| Secret::make());
            self.secret = secret?;
            self.generation = generation;
        }
        Ok(&self.secret)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let limit = limit()?;
    let mut library = Library::new()?;
    println!("secret: {}", library.secret()?);
    let (mut seen, mut done) = (library.generation, 0);
    while done < limit {
        let secret = *library.secret()?;
        if library.generation != seen {
            seen = library.generation;
            done += 1;
            println!("generation {seen}: renewed");
            println!("secret: {secret}");
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
