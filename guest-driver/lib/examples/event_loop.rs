//! Workflow 2: an event loop that has the device among its files.
//!
//! `event_loop [GENERATIONS]` ends after so many.
//!
//! What it closes: the loop asks the device before it handles any event. The events of one
//! `epoll_wait` come in no useful order, and some may have been there when the machine was
//! snapshotted. The driver looks at the hypervisor's page in that call, so no event of a new
//! generation is handled with the old state because an interrupt is late.
//!
//! What it does not close: a generation that begins while an event is being handled is noticed at
//! the next turn.

mod common;

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::{Secret, limit};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use sysgenid::{AcknowledgeError, Watcher};

const DEVICE: u64 = 0;
const WORK: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let limit = limit()?;
    // First the watcher, then the state.
    let watcher = Watcher::open()?;
    let mut secret = Secret::make()?;
    let mut work = work()?;
    println!("secret: {secret}");

    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &watcher, EventData::new_u64(DEVICE), EventFlags::IN)?;
    epoll::add(&epoll, &work, EventData::new_u64(WORK), EventFlags::IN)?;
    let mut events = Vec::with_capacity(8);
    let mut done = 0;
    while done < limit {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        done += renew(&watcher, &mut secret)?;
        for event in &events {
            // The device had its turn.
            if event.data.u64() == WORK {
                work.read_exact(&mut [0])?;
            }
        }
    }
    Ok(())
}

/// Makes another secret if a generation has begun. Returns how many were acknowledged: 0 or 1.
fn renew(watcher: &Watcher, secret: &mut Secret) -> Result<u64, Box<dyn Error>> {
    while let Some(generation) = watcher.try_next()? {
        *secret = Secret::make()?;
        match watcher.acknowledge(generation) {
            Ok(()) => {
                println!("generation {generation}: renewed");
                println!("secret: {secret}");
                return Ok(1);
            }
            // Another one has begun: once more.
            Err(AcknowledgeError::Stale(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(0)
}

/// Stands for the rest of the program: a socket on which a byte arrives twice a second.
fn work() -> std::io::Result<UnixStream> {
    let (work, mut peer) = UnixStream::pair()?;
    thread::spawn(move || {
        while peer.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(500));
        }
    });
    Ok(work)
}
