//! Many watchers at once, and many one after the other.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::Subject;
use crate::observers::Info;
use crate::outcome::{Failure, Outcome, equal, holds, success, wanted};

/// How much of the kernel's memory may come and go by itself, in KiB. A watcher takes 96 bytes at least, ten
/// thousand of them 937 KiB.
const SLACK_KIB: u64 = 512;

/// How often it may have been something else that grew.
const ATTEMPTS: u32 = 4;

pub(crate) fn stress(subject: Subject<'_>, threads: usize, seconds: u64) -> Outcome {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = &rounds;
    thread::scope(|scope| {
        let stop = &stop;
        let running: Vec<_> = (0..threads)
            .map(|index| {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        round(subject, index)?;
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::new("a thread panicked")))
        })
    })?;
    eprintln!("{} rounds", rounds.load(Ordering::Relaxed));
    nobody_left(subject)
}

/// Opens, triggers (one thread in four), looks, acknowledges (most), waits a moment (some), closes.
fn round(subject: Subject<'_>, index: usize) -> Outcome {
    let device = subject.open()?;
    let mapping = device.map(4, libc::PROT_READ, libc::MAP_SHARED, 0);
    let mapping = success("mmap", mapping)?;
    let before = mapping.load();
    if index.is_multiple_of(4) {
        wanted("trigger", device.trigger(0), Ok(0))?;
        let moved = mapping.load().wrapping_sub(before).cast_signed() > 0;
        holds("the counter moved forwards", moved)?;
        holds(
            "a trigger leaves its caller outdated",
            device.generation().is_ok(),
        )?;
    }
    match device.generation() {
        Ok(new) => {
            holds(
                "a generation is no older",
                new.wrapping_sub(before).cast_signed() >= 0,
            )?;
            // Another thread may have begun one meanwhile.
            let answer = device.acknowledge(new);
            holds(
                "acknowledgement",
                matches!(answer, Ok(4) | Err(libc::EINVAL)),
            )?;
        }
        Err(libc::EAGAIN) => {}
        Err(errno) => return Err(Failure::new(format!("read: errno {errno}"))),
    }
    if index.is_multiple_of(3) {
        let answer = device.wait(1);
        let known = matches!(answer, Ok(0) | Err(libc::ETIME | libc::EINTR));
        holds("wait", known)?;
    }
    success("poll", device.poll(0))?;
    if index.is_multiple_of(5) {
        wanted("tracking off", device.track(false), Ok(0))?;
    }
    Ok(())
}

/// After everyone has closed, nobody is waited for.
fn nobody_left(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    wanted("wait after all have closed", device.wait(1000), Ok(0))?;
    let new = subject.next(&device)?;
    wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
    wanted("wait after it", device.wait(1000), Ok(0))?;
    let info = Info::of(&device)?;
    equal("outdated watchers", info.outdated_watchers, 0)?;
    equal("watchers", info.watchers, 1)?;
    Ok(())
}

pub(crate) fn open_close(subject: Subject<'_>, times: u32) -> Outcome {
    // The first ones fill the caches.
    let cycle = |times| {
        (0..times).try_for_each(|_| {
            let device = subject.open()?;
            success("mmap", device.map(4, libc::PROT_READ, libc::MAP_SHARED, 0)).map(drop)
        })
    };
    cycle(times / 10)?;
    let mut grown = Vec::new();
    for _ in 0..ATTEMPTS {
        let before = unreclaimable_kib()?;
        cycle(times)?;
        grown.push(unreclaimable_kib()?.saturating_sub(before));
        if grown.last() <= Some(&SLACK_KIB) {
            return nobody_left(subject);
        }
    }
    Err(Failure::new(format!(
        "each time {times} files were opened and closed kernel memory grew: {grown:?} KiB"
    )))
}

/// Kernel memory that cannot be reclaimed.
fn unreclaimable_kib() -> Outcome<u64> {
    let info = fs::read_to_string("/proc/meminfo")
        .map_err(|error| Failure::new(format!("could not read /proc/meminfo: {error}")))?;
    info.lines()
        .find_map(|line| line.strip_prefix("SUnreclaim:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .ok_or_else(|| Failure::new("/proc/meminfo has no SUnreclaim"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_how_much_memory_it_holds() {
        assert!(unreclaimable_kib().unwrap() > 0);
    }
}
