//! Do the clocks of all processors agree, and does the clock go on forwards?
//!
//! A thread on each processor loads the latest time that any of them has read, and only then reads the clock. A time before that one is
//! a step backwards, which no program may ever see of `CLOCK_MONOTONIC`.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many times the clock is read between two looks at the rest.
const READS: u64 = 1000;

/// What the threads have seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// How many times the clock was read.
    pub reads: u64,
    /// How many times it was before a time that had been read already.
    pub backwards: u64,
    /// By how many nanoseconds at most.
    pub worst_ns: u64,
    /// The largest step forwards on one processor, in nanoseconds.
    pub largest_step_ns: u64,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            backwards: self.backwards + other.backwards,
            worst_ns: self.worst_ns.max(other.worst_ns),
            largest_step_ns: self.largest_step_ns.max(other.largest_step_ns),
        }
    }
}

/// Reads the clock on `processors` for so long, and until the file `stop` is there, if there is to be one.
///
/// # Errors
/// A thread cannot be bound to its processor.
pub fn watch(processors: usize, time: Duration, stop: Option<&Path>) -> io::Result<Seen> {
    let (latest, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..processors)
            .map(|processor| {
                let (latest, over) = (&latest, &over);
                scope.spawn(move || {
                    bind(processor)?;
                    Ok::<_, io::Error>(watch_on_one(latest, over))
                })
            })
            .collect();
        while begun.elapsed() < time || stop.is_some_and(|stop| !stop.exists()) {
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for thread in threads {
            let of_one = thread.join();
            seen = seen.and(of_one.map_err(|_| io::Error::other("a thread has panicked"))??);
        }
        Ok(seen)
    })
}

fn watch_on_one(latest: &AtomicU64, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut own = now_ns();
    while !over.load(Ordering::Relaxed) {
        for _ in 0..READS {
            let before = latest.load(Ordering::SeqCst);
            let now = now_ns();
            if let Some(back) = before.checked_sub(now).filter(|back| *back > 0) {
                seen.backwards += 1;
                seen.worst_ns = seen.worst_ns.max(back);
            }
            latest.fetch_max(now, Ordering::SeqCst);
            seen.largest_step_ns = seen.largest_step_ns.max(now.saturating_sub(own));
            own = now;
        }
        seen.reads += READS;
    }
    seen
}

fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills in `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn bind(processor: usize) -> io::Result<()> {
    // SAFETY: plain bits, of which none is set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `CPU_SET` checks the number against the size of the set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the set is as large as is said.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_s_clock_never_goes_backwards() {
        let processors = thread::available_parallelism().unwrap().get();
        let Ok(seen) = watch(processors, Duration::from_millis(50), None) else {
            // Not all processors are ours.
            return;
        };
        assert!(seen.reads > 0, "{seen:?}");
        assert_eq!(seen.backwards, 0, "{seen:?}");
    }

    #[test]
    fn a_step_backwards_is_counted() {
        let latest = AtomicU64::new(now_ns() + 1_000_000_000);
        let over = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let watcher = scope.spawn(|| watch_on_one(&latest, &over));
            thread::sleep(Duration::from_millis(10));
            over.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(
            seen.backwards > 0 && seen.worst_ns > 500_000_000,
            "{seen:?}"
        );
    }
}
