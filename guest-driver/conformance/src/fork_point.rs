//! Programs that run on all CPUs while the machine under them is forked. They print what they saw and
//! drew, a line each; the test on the host judges.

use std::sync::Barrier;
use std::thread;

use crate::Subject;
use crate::outcome::{Failure, Outcome};
use crate::raw::{Mapping, errno};
use crate::restores::{mapping, tell};
use crate::taking_part::{Agent, Participant};

/// How long each draw is: what the kernel gives in one step.
const LENGTH: usize = 32;

/// How many draws of the new generation each thread shows.
const SHOWN: usize = 8;

/// One thread on each CPU does nothing but load the mapped counter, and prints each value that is new to
/// it. Does not end.
pub(crate) fn spin(subject: Subject<'_>) -> Outcome {
    on_each_cpu(subject, 1, |cpu, _, page| {
        let mut last = page.load();
        loop {
            let now = page.load();
            if now != last {
                tell(&format!("saw {cpu} {now}"))?;
                last = now;
            }
        }
    })
}

/// Two threads on each CPU draw without pause, one by the system call, one as the C library does it.
/// When the counter has moved each prints what it drew last before, and first after that.
pub(crate) fn draw(subject: Subject<'_>) -> Outcome {
    on_each_cpu(subject, 2, |cpu, number, page| {
        draws(cpu, number, page, || Ok(()))
    })
}

/// The same of threads that park while a request is pending, with an agent that waits for them.
pub(crate) fn draw_parked(subject: Subject<'_>) -> Outcome {
    thread::scope(|scope| {
        let agent = Agent::new(subject)?;
        let asked = scope.spawn(move || agent.forks());
        on_each_cpu(subject, 2, |cpu, number, page| {
            let me = Participant::new(subject)?;
            draws(cpu, number, page, || match page.word(1) {
                0 => Ok(()),
                _ => me.park(),
            })
        })?;
        asked
            .join()
            .map_err(|_| Failure::new("the agent panicked"))?
    })
}

fn draws(cpu: usize, number: usize, page: &Mapping, before_each: impl Fn() -> Outcome) -> Outcome {
    let direct = number == 0;
    let old = page.load();
    let mut shown = 0;
    while shown < SHOWN {
        before_each()?;
        let before = page.load();
        let drawn = drawn(direct)?;
        let after = page.load();
        if after == old {
            continue;
        }
        let hex = hex(&drawn);
        let how = if direct { "call" } else { "library" };
        tell(&format!("drawn {how} {cpu} {before} {after} {hex}"))?;
        shown += usize::from(before == after);
    }
    tell(&format!("shown {cpu} {number}"))
}

/// Runs `threads` of them on each CPU, with a mapping each; they begin together.
pub(crate) fn on_each_cpu(
    subject: Subject<'_>,
    threads: usize,
    what: impl Fn(usize, usize, &Mapping) -> Outcome + Sync,
) -> Outcome {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let begin = Barrier::new(cpus * threads + 1);
    thread::scope(|scope| {
        let all: Vec<_> = (0..cpus * threads)
            .map(|number| {
                let (begin, what) = (&begin, &what);
                scope.spawn(move || {
                    let page = mapping(subject).and_then(|page| {
                        pin_to(number / threads)?;
                        Ok(page)
                    });
                    begin.wait();
                    what(number / threads, number % threads, &page?)
                })
            })
            .collect();
        begin.wait();
        tell("ready fork-point")?;
        for one in all {
            one.join()
                .map_err(|_| Failure::new("a thread panicked"))??;
        }
        Ok(())
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A draw, by the system call or as the C library does it.
pub(crate) fn drawn(direct: bool) -> Outcome<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    // SAFETY: the buffer is writable for its whole length.
    let length = unsafe {
        match direct {
            true => libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), LENGTH, 0) as isize,
            false => libc::getrandom(bytes.as_mut_ptr().cast(), LENGTH, 0),
        }
    };
    match length {
        length if length == LENGTH as isize => Ok(bytes),
        _ => Err(Failure::new(format!("getrandom: errno {}", errno()))),
    }
}

pub(crate) fn pin_to(cpu: usize) -> Outcome {
    // SAFETY: a set of no CPUs is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is initialised, and the CPU is below its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives for the call, and has the size that is said.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(Failure::new(format!(
            "sched_setaffinity: errno {}",
            errno()
        ))),
    }
}
