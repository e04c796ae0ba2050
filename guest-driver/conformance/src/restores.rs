//! Programs that a test runs while the machine under them is snapshotted and restored. They print what
//! they see, a line each; the test on the host judges.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Subject;
use crate::clock::{VmClock, ticks};
use crate::observers::Uevents;
use crate::outcome::{Failure, Outcome, equal, success, wanted};
use crate::process::Child;
use crate::raw::Mapping;

/// How often the interrupt of the generation ID's event has come.
const EVENTS: &str = "/sys/firmware/acpi/interrupts/gpe05";

/// Prints a line at once: the machine may be restored before a buffer is written.
pub(crate) fn tell(line: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(format!("could not print: {error}")))
}

pub(crate) fn mapping(subject: Subject<'_>) -> Outcome<Mapping> {
    let device = subject.open_with(libc::O_RDONLY)?;
    success("mmap", device.map(4, libc::PROT_READ, libc::MAP_SHARED, 0))
}

/// A blocked read, an epoll loop, a mapping and a wait in a process of its own: each prints the
/// generation that it learns of.
pub(crate) fn notice(subject: Subject<'_>) -> Outcome {
    let blocked = subject.open_with(libc::O_RDWR)?;
    let polled = subject.open()?;
    let late = subject.open()?;
    // The wait has somebody to wait for.
    let before = subject.next(&late)?;
    for watcher in [&blocked, &polled] {
        wanted("acknowledgement", watcher.acknowledge(before), Ok(4))?;
    }
    let waiting = Child::spawn(|| {
        let own = subject.open()?;
        let answer = own.wait(0);
        tell(&format!("wait {answer:?}"))
    })?;
    let events = Uevents::listen()?;
    thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let event = events.next(Duration::MAX)?.unwrap_or_default();
            let told = event.iter().find(|line| line.starts_with("SYSGENID="));
            tell(&format!("uevent {told:?}"))
        });
        let reading = scope.spawn(|| {
            let answer = blocked.generation();
            // What the time of day was when the first watcher was woken.
            let woken = SystemTime::now().duration_since(UNIX_EPOCH);
            tell(&format!("read {answer:?}"))?;
            tell(&format!(
                "woken {:.6}",
                woken.unwrap_or_default().as_secs_f64()
            ))
        });
        let polling = scope.spawn(|| {
            let events = polled.poll(-1);
            tell(&format!("poll {events:?} {:?}", polled.generation()))
        });
        let loading = scope.spawn(|| {
            let page = mapping(subject)?;
            tell(&format!("mapped {}", next_load(&page, before)))
        });
        thread::sleep(Duration::from_millis(500));
        tell(&format!("ready {before}"))?;
        for part in [listening, reading, polling, loading] {
            part.join()
                .map_err(|_| Failure::new("a thread panicked"))??;
        }
        Ok::<_, Failure>(())
    })?;
    waiting.join()?;
    tell(&format!("mapped at last {}", mapping(subject)?.load()))
}

fn next_load(page: &Mapping, old: u32) -> u32 {
    loop {
        let new = page.load();
        if new != old {
            return new;
        }
        std::hint::spin_loop();
    }
}

/// Makes one call as soon as the mapping has changed, before the interrupt has come.
pub(crate) fn at_once(subject: Subject<'_>, call: Call) -> Outcome {
    let device = subject.open()?;
    let page = mapping(subject)?;
    let before = page.load();
    let events = events()?;
    tell(&format!("ready {before}"))?;
    let loaded = next_load(&page, before);
    let answer = match call {
        Call::Read => device.generation(),
        Call::Write => device.acknowledge(before).map(|len| len as u32),
        Call::Poll => device.poll(0).map(|events| events as u32),
        Call::Wait => device.wait(0).map(|_| 0),
        Call::Track => device.track(true).map(|_| page.load()),
        Call::Map => device
            .map(4, libc::PROT_READ, libc::MAP_SHARED, 0)
            .map(|again| again.load()),
    };
    let after = page.load();
    let came = self::events()? - events;
    tell(&format!(
        "loaded {loaded} answer {answer:?} after {after} events {came}"
    ))?;
    let new = success("read", device.generation())?;
    // A mapping shows the page as it is, and looks no further.
    let step = u32::from(matches!(call, Call::Map));
    equal("the generation", new, after + step)?;
    wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
    tell("done")
}

/// A call of the device.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Call {
    /// `read()`, non-blocking.
    Read,
    /// `write()` of the old generation.
    Write,
    /// `poll()`, without waiting.
    Poll,
    /// The wait for watchers.
    Wait,
    /// The tracking switch.
    Track,
    /// Another mapping.
    Map,
}

fn events() -> Outcome<u64> {
    let text = fs::read_to_string(EVENTS)
        .map_err(|error| Failure::new(format!("could not read {EVENTS}: {error}")))?;
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| Failure::new(format!("{EVENTS} has no number: {text:?}")))
}

/// Loads VMClock's word and the mapped counter without pause. For each resume, which the first
/// tells of, prints how many loads of the second still were the old value.
pub(crate) fn first_load(subject: Subject<'_>) -> Outcome {
    let page = mapping(subject)?;
    let clock = VmClock::map()?;
    let (mut resumes, mut counter) = (clock.resumes(), page.load());
    tell(&format!("ready {counter}"))?;
    loop {
        // In this order: both move at one instant, so what is loaded before an old clock is old, and what
        // is loaded after a new one has to be new.
        let before = page.load();
        let now = clock.resumes();
        if now == resumes {
            counter = before;
            continue;
        }
        let first = page.load();
        let start = ticks();
        let (mut stale, mut loaded) = (0u64, first);
        while loaded == counter {
            stale += 1;
            loaded = page.load();
        }
        let took = if stale == 0 { 0 } else { ticks() - start };
        tell(&format!(
            "resume {now} counter {counter} {loaded} stale {stale} ticks {took}"
        ))?;
        (resumes, counter) = (now, loaded);
    }
}

/// Keeps a mapping, with no descriptor left, and prints what it shows next. Does not end.
pub(crate) fn hold(subject: Subject<'_>) -> Outcome {
    let page = mapping(subject)?;
    let mut counter = page.load();
    tell(&format!("ready {counter}"))?;
    loop {
        let loaded = page.load();
        if loaded != counter {
            tell(&format!("loaded {loaded}"))?;
            counter = loaded;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
