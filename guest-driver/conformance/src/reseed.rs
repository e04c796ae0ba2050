//! A reseeding of the kernel's random number generator, and what is drawn after it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::Subject;
use crate::fork_point::pin_to;
use crate::outcome::{Failure, Outcome, success, wanted};
use crate::raw::errno;

/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: u64 = 0x5207;

/// Of `klogctl()`: read all messages there are.
const READ_ALL: i32 = 3;

/// How many draws there are, and how long each is: what the kernel gives in one step.
const DRAWS: usize = 8;
const LENGTH: usize = 32;

/// What the kernel says when it has reseeded for a fork.
const FORKED: &[u8] = b"crng reseeded due to virtual machine fork";

/// How long that may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Reseeds on the second CPU, where a test can have it held. When that has ended, and the kernel has
/// reseeded for a fork of the machine, prints what it draws.
pub(crate) fn late_reseed(_: Subject<'_>) -> Outcome {
    reseed_and_draw(|| Ok(()))
}

/// The same, with draws that come after an agent's word: by then the driver has made good what a
/// reseeding from before the fork may have undone.
pub(crate) fn late_reseed_of_an_agent(subject: Subject<'_>) -> Outcome {
    let agent = subject.open()?;
    reseed_and_draw(|| {
        let new = success("read", agent.generation())?;
        wanted("ready", agent.ready(new.into()), Ok(0))
    })
}

/// The same of a machine that is forked: the driver tells of it, and not the kernel. What is drawn before
/// the agent's word is printed as `early`.
pub(crate) fn late_reseed_of_a_fork(subject: Subject<'_>) -> Outcome {
    let agent = subject.open()?;
    let reseeded = reseed()?;
    while success("poll", agent.poll(-1))? & libc::POLLIN == 0 {}
    let early = draws()?;
    let new = success("read", agent.generation())?;
    wanted("ready", agent.ready(new.into()), Ok(0))?;
    let drawn = draws()?;
    reseeded?;
    print("early", &early);
    print("drawn", &drawn);
    Ok(())
}

fn reseed_and_draw(before_the_draws: impl FnOnce() -> Outcome) -> Outcome {
    let reseeded = reseed()?;
    wait_for_fork()?;
    before_the_draws()?;
    let drawn = draws()?;
    reseeded?;
    print("drawn", &drawn);
    Ok(())
}

/// Reseeds on the second CPU; the answer to that.
fn reseed() -> Outcome<Outcome> {
    pin_to(1)?;
    let urandom = File::open("/dev/urandom");
    let urandom = urandom.map_err(|error| Failure::new(format!("/dev/urandom: {error}")))?;
    println!("ready late-reseed");
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(urandom.as_raw_fd(), RNDRESEEDCRNG as _, 0) };
    Ok(succeeded("RNDRESEEDCRNG", result.into()))
}

fn draws() -> Outcome<[[u8; LENGTH]; DRAWS]> {
    let mut draws = [[0_u8; LENGTH]; DRAWS];
    for draw in &mut draws {
        // SAFETY: the buffer is writable for its whole length.
        let drawn = unsafe { libc::getrandom(draw.as_mut_ptr().cast(), LENGTH, 0) };
        succeeded("getrandom", drawn as i64)?;
    }
    Ok(draws)
}

fn print(what: &str, draws: &[[u8; LENGTH]]) {
    for draw in draws {
        let hex: String = draw.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{what} {hex}");
    }
}

/// Waits until the kernel's log says it, which is at once where it has said it.
fn wait_for_fork() -> Outcome {
    let deadline = Instant::now() + LIMIT;
    let mut log = vec![0_u8; 1 << 18];
    loop {
        // SAFETY: the buffer is writable for as long as is said.
        let length = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), log.len() as i32) };
        succeeded("klogctl", length.into())?;
        let log = &log[..length as usize];
        if log.windows(FORKED.len()).any(|window| window == FORKED) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::new("the kernel was told of no fork"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn succeeded(call: &str, result: i64) -> Outcome {
    match result {
        0.. => Ok(()),
        _ => Err(Failure::new(format!("{call}: errno {}", errno()))),
    }
}
