//! Blocked reads, waiting for watchers, and who is waited for.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::outcome::{Failure, Outcome, holds, refused, success, wanted};
use crate::process::Child;
use crate::raw::Device;
use crate::{Numbering, Subject};

/// How long a wait lasts that has to be cut short by something.
const PAUSE: Duration = Duration::from_millis(200);
/// The same as a limit in milliseconds.
const LIMIT: u64 = 200;
/// When something that happens at once has happened on any machine, however busy.
const SOON: Duration = Duration::from_secs(10);

pub(crate) fn wait(subject: Subject<'_>) -> Outcome {
    let (caller, other) = (subject.open()?, subject.open()?);
    for limit in [0, 1, u64::MAX] {
        wanted("wait, nobody outdated", caller.wait(limit), Ok(0))?;
    }
    let new = subject.next(&caller)?;
    for limit in [0, 1, u64::MAX] {
        refused("wait, the caller outdated", caller.wait(limit), libc::EINTR)?;
    }
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    let start = Instant::now();
    refused("wait, another outdated", caller.wait(LIMIT), libc::ETIME)?;
    holds(
        "a wait lasts as long as it was told",
        start.elapsed() >= PAUSE,
    )?;
    holds("a wait lasts no longer than that", start.elapsed() < SOON)?;
    for limit in [0, 60_000, u64::MAX, u64::MAX / 1_000_000 + 2, 1 << 63] {
        let new = subject.next(&other)?;
        wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
        let what = format!("wait({limit}) until another acknowledges");
        cut_short(&what, &caller, limit, Ok(0), || {
            other.acknowledge(new).map(drop)
        })?;
    }
    let new = subject.next(&other)?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    cut_short(
        "wait until a new generation",
        &caller,
        0,
        Err(libc::EINTR),
        || other.trigger(0).map(drop),
    )?;
    let new = success("read", caller.generation())?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    cut_short("wait until another is closed", &caller, 0, Ok(0), || {
        drop(other);
        Ok(())
    })
}

/// `caller.wait(limit)` has to be answered with `should`, after `cause` and not before.
fn cut_short(
    what: &str,
    caller: &Device,
    limit: u64,
    should: Result<usize, i32>,
    cause: impl FnOnce() -> Result<(), i32> + Send,
) -> Outcome {
    let caused = AtomicBool::new(false);
    thread::scope(|scope| {
        let causing = scope.spawn(|| {
            thread::sleep(PAUSE);
            caused.store(true, Ordering::SeqCst);
            cause()
        });
        wanted(what, caller.wait(limit), should)?;
        holds(&format!("{what}: too early"), caused.load(Ordering::SeqCst))?;
        match causing.join() {
            Ok(result) => success(what, result),
            Err(_) => Err(Failure::new("a thread panicked")),
        }
    })
}

pub(crate) fn tracking(subject: Subject<'_>) -> Outcome {
    let caller = subject.open()?;
    let other = subject.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
    let reader = subject.open_with(libc::O_RDONLY | libc::O_NONBLOCK)?;
    let new = subject.next(&caller)?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    let at_open = match subject.numbering {
        Numbering::Seed => Err(libc::ETIME),
        Numbering::Deployed => Ok(0),
    };
    wanted(
        "wait, another as it was opened",
        caller.wait(LIMIT),
        at_open,
    )?;
    for _ in 0..2 {
        wanted("tracking off", other.track(false), Ok(0))?;
        wanted("wait, another untracked", caller.wait(0), Ok(0))?;
        wanted("read of an untracked one", other.generation(), Ok(new))?;
        wanted("tracking on", other.track(true), Ok(0))?;
        wanted("tracking on, again", other.track(true), Ok(0))?;
        refused("wait, another tracked", caller.wait(LIMIT), libc::ETIME)?;
    }
    wanted("acknowledgement", other.acknowledge(new), Ok(4))?;
    wanted("wait, the reader outdated", caller.wait(0), Ok(0))?;
    wanted("read of the reader", reader.generation(), Ok(new))?;
    if subject.numbering == Numbering::Seed {
        refused(
            "tracking of a read-only file",
            reader.track(true),
            libc::EBADF,
        )?;
    }
    let (other_argument, number) = (2, subject.numbering.track());
    wanted(
        "tracking with 2 is on",
        other.ioctl(number, other_argument),
        Ok(0),
    )?;
    // Closing an outdated one must not be counted twice.
    subject.next(&other)?;
    wanted("tracking off", other.track(false), Ok(0))?;
    drop(other);
    let new = success("read", caller.generation())?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    wanted("wait, all gone", caller.wait(1000), Ok(0))
}

pub(crate) fn blocked_read(subject: Subject<'_>) -> Outcome {
    let blocking = subject.open_with(libc::O_RDWR)?;
    let other = subject.open()?;
    let before = subject.current(&other)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| (blocking.generation(), Instant::now()));
        thread::sleep(PAUSE);
        holds("a read, up to date, blocks", !reader.is_finished())?;
        let start = Instant::now();
        wanted("trigger", other.trigger(0), Ok(0))?;
        let Ok((read, end)) = reader.join() else {
            return Err(Failure::new("a thread panicked"));
        };
        wanted("the blocked read", read, Ok(before.wrapping_add(1)))?;
        let took = end.saturating_duration_since(start);
        holds("it is woken at once", took < SOON)
    })?;
    wanted(
        "acknowledgement",
        blocking.acknowledge(before.wrapping_add(1)),
        Ok(4),
    )?;
    interrupted(&blocking)
}

extern "C" fn do_nothing(_: i32) {}

/// A blocked read and a blocked wait end with EINTR when a handler has run.
fn interrupted(blocking: &Device) -> Outcome {
    // SAFETY: an all-zero action is a valid one: no flags (so no restart), no masked signal.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = do_nothing as *const () as usize;
    // SAFETY: the handler does nothing, which is safe at any instant.
    unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
    let reader = AtomicI32::new(0);
    thread::scope(|scope| {
        let blocked = scope.spawn(|| {
            // SAFETY: the call takes nothing.
            reader.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            blocking.generation()
        });
        thread::sleep(PAUSE);
        let thread = reader.load(Ordering::SeqCst);
        // SAFETY: the thread is this process's own, and has not been joined.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
        match blocked.join() {
            Ok(read) => wanted("a read, interrupted", read, Err(libc::EINTR)),
            Err(_) => Err(Failure::new("a thread panicked")),
        }
    })
}

pub(crate) fn wait_process(subject: Subject<'_>) -> Outcome {
    let caller = subject.open()?;
    for dies in [false, true] {
        // The child's copy of a file of ours would be the same watcher: it opens its own.
        let child = Child::spawn(|| {
            let own = subject.open()?;
            wanted(
                "poll",
                own.poll(10_000).map(|events| events & libc::POLLIN),
                Ok(libc::POLLIN),
            )?;
            thread::sleep(2 * PAUSE);
            if !dies {
                let new = success("read", own.generation())?;
                wanted("acknowledgement", own.acknowledge(new), Ok(4))?;
            }
            Ok(())
        })?;
        thread::sleep(PAUSE);
        let new = subject.next(&caller)?;
        wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
        let start = Instant::now();
        refused(
            "wait, the process outdated",
            caller.wait(LIMIT / 2),
            libc::ETIME,
        )?;
        wanted(
            "wait until it has acknowledged or died",
            caller.wait(0),
            Ok(0),
        )?;
        holds("not before that", start.elapsed() >= PAUSE)?;
        child.join()?;
    }
    Ok(())
}
