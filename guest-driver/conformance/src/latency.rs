//! How long after a resume programs learn of the new generation, by the guest's own time-stamp counter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::Subject;
use crate::clock::{VmClock, calibrate, ticks};
use crate::outcome::{Failure, Outcome, success};
use crate::raw::{Device, Mapping};
use crate::restores::{mapping, tell};

/// The processor of the thread that loads; the interrupt is left to the first one.
const LOADER: usize = 1;

/// When the blocked read returned; 0 before.
static READ_AT: AtomicU64 = AtomicU64::new(0);
/// What it returned.
static READ: AtomicU64 = AtomicU64::new(0);

/// One thread loads VMClock's word and the mapped counter without pause, another blocks in `read()` and
/// acknowledges. The first load that shows the resume is where the time begins.
pub(crate) fn latency(subject: Subject<'_>) -> Outcome {
    let watcher = subject.open_with(libc::O_RDWR)?;
    let page = mapping(subject)?;
    let clock = VmClock::map()?;
    let tick = calibrate();
    thread::scope(|scope| {
        let reading = scope.spawn(|| read(&watcher));
        pin(LOADER)?;
        // The reader is to be asleep before anybody takes a snapshot.
        thread::sleep(Duration::from_millis(500));
        tell(&format!("ready tick {tick:.4} ns"))?;
        let mut last = (clock.resumes(), page.load());
        while !reading.is_finished() {
            watch(&page, &clock, &mut last, tick)?;
        }
        reading
            .join()
            .map_err(|_| Failure::new("the reader panicked"))?
    })
}

/// Blocks in `read()`, notes when it returns, tells, and acknowledges.
fn read(watcher: &Device) -> Outcome {
    loop {
        let new = success("read", watcher.generation())?;
        let now = ticks();
        // Where it has moved on meanwhile, the next read tells.
        if watcher.acknowledge(new) == Ok(4) {
            // First this line, whose arrival the host takes the time of, then that of the other thread.
            tell("read")?;
            READ.store(new.into(), Ordering::Relaxed);
            READ_AT.store(now, Ordering::Release);
        }
    }
}

/// Waits for a resume and tells of it. `last` is what was loaded before: VMClock's word and the counter.
fn watch(page: &Mapping, clock: &VmClock, last: &mut (u32, u32), tick: f64) -> Outcome {
    let (resumes, mut counter) = *last;
    // In this order: what is loaded before an old clock is old.
    let now = loop {
        let before = page.load();
        let now = clock.resumes();
        if now != resumes {
            break now;
        }
        counter = before;
    };
    let start = ticks();
    let mut stale = 0u64;
    let (loaded, mapped) = loop {
        let (loaded, at) = (page.load(), ticks());
        if loaded != counter {
            break (loaded, at);
        }
        stale += 1;
    };
    let read_at = loop {
        match READ_AT.swap(0, Ordering::Acquire) {
            0 => std::hint::spin_loop(),
            at => break at,
        }
    };
    let since = |at: u64| (at.wrapping_sub(start) as i64 as f64 * tick) as i64;
    let read = READ.load(Ordering::Relaxed);
    tell(&format!(
        "resume counter {counter} {loaded} {read} stale {stale} mapped {} read {}",
        since(mapped),
        since(read_at)
    ))?;
    *last = (now, page.load());
    Ok(())
}

/// Keeps this thread on one processor, if the machine has it.
fn pin(cpu: usize) -> Outcome {
    // SAFETY: an all-zero set is an empty one, and the calls write and read no more than it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    match result {
        0 => Ok(()),
        _ => Err(Failure::new(
            "could not pin a thread: it needs two processors",
        )),
    }
}
