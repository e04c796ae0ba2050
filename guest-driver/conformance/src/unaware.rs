//! What programs do after a resume before the kernel knows that this is a clone: loads of the mapped
//! counter, and draws from the kernel's random number generator.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::Subject;
use crate::clock::VmClock;
use crate::fork_point::{drawn, hex, pin_to};
use crate::outcome::{Failure, Outcome, success};
use crate::raw::Device;
use crate::restores::{mapping, tell};

/// The processors of the thread that draws and of the one that loads.
const DRAWER: usize = 0;
const LOADER: usize = 1;

/// How many draws are shown: the first after the resume.
const SHOWN: usize = 32;

/// More than any generation: nothing has been read yet.
const NONE: u64 = u64::MAX;

/// What a blocked read has returned: the generation that the kernel was reseeded in.
static SETTLED: AtomicU64 = AtomicU64::new(NONE);

/// One thread loads, one draws, and one waits in `read()`, which returns when the generator has been
/// reseeded. Ends when all of one restore has been told.
pub(crate) fn unaware(subject: Subject<'_>) -> Outcome {
    let watcher = subject.open_with(libc::O_RDWR)?;
    let current = subject.current(&subject.open()?)?;
    let begin = Barrier::new(3);
    thread::scope(|scope| {
        let threads = [
            scope.spawn(|| settle(&watcher, current)),
            scope.spawn(|| load(subject, &begin)),
            scope.spawn(|| draw(&begin)),
        ];
        begin.wait();
        tell("ready unaware")?;
        for one in threads {
            one.join()
                .map_err(|_| Failure::new("a thread panicked"))??;
        }
        tell("done")
    })
}

fn settle(watcher: &Device, current: u32) -> Outcome {
    loop {
        let new = success("read", watcher.generation())?;
        success("write", watcher.acknowledge(new))?;
        if new != current {
            SETTLED.store(new.into(), Ordering::Release);
            return Ok(());
        }
    }
}

/// Counts loads after the resume: of the old counter, and of any that is not the one that was
/// reseeded in.
fn load(subject: Subject<'_>, begin: &Barrier) -> Outcome {
    let ready = VmClock::map().and_then(|clock| Ok((mapping(subject)?, clock, pin_to(LOADER)?)));
    begin.wait();
    let (page, clock, ()) = ready?;
    let first = clock.resumes();
    let mut old = page.load();
    // In this order: what is loaded before an old clock is old.
    loop {
        let before = page.load();
        if clock.resumes() != first {
            break;
        }
        old = before;
    }
    let mut loads = Vec::<(u32, u64)>::new();
    let settled = loop {
        let now = page.load();
        match loads.last_mut() {
            Some((value, times)) if *value == now => *times += 1,
            _ => loads.push((now, 1)),
        }
        let settled = SETTLED.load(Ordering::Acquire);
        if settled != NONE {
            break settled;
        }
    };
    let times = |wanted: &dyn Fn(u32) -> bool| -> u64 {
        let of_kind = loads.iter().filter(|(value, _)| wanted(*value));
        of_kind.map(|(_, times)| times).sum()
    };
    tell(&format!(
        "loads old {} before {}",
        times(&|value| value == old),
        times(&|value| u64::from(value) != settled)
    ))
}

/// Shows the first draws that begin after the resume.
fn draw(begin: &Barrier) -> Outcome {
    let ready = VmClock::map().and_then(|clock| Ok((clock, pin_to(DRAWER)?)));
    begin.wait();
    let (clock, ()) = ready?;
    let first = clock.resumes();
    let mut draws = Vec::with_capacity(SHOWN);
    while draws.len() < SHOWN {
        let resumed = clock.resumes() != first;
        let bytes = drawn(true)?;
        if resumed {
            draws.push(bytes);
        }
    }
    for bytes in draws {
        tell(&format!("drawn {}", hex(&bytes)))?;
    }
    Ok(())
}
