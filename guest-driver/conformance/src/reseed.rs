//! A reseeding of the kernel's random number generator, and what is drawn right after it.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::Subject;
use crate::outcome::{Failure, Outcome};
use crate::raw::errno;

/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: u64 = 0x5207;

/// How many draws there are, and how long each is: what the kernel gives in one step.
const DRAWS: usize = 8;
const LENGTH: usize = 32;

/// Reseeds on the second CPU, where a test can have it held, and prints what it draws there then.
pub(crate) fn late_reseed(_: Subject<'_>) -> Outcome {
    pin_to(1)?;
    let urandom = File::open("/dev/urandom");
    let urandom = urandom.map_err(|error| Failure::new(format!("/dev/urandom: {error}")))?;
    println!("ready late-reseed");
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(urandom.as_raw_fd(), RNDRESEEDCRNG as _, 0) };
    let reseeded = succeeded("RNDRESEEDCRNG", result.into());
    let mut draws = [[0_u8; LENGTH]; DRAWS];
    for draw in &mut draws {
        // SAFETY: the buffer is writable for its whole length.
        let drawn = unsafe { libc::getrandom(draw.as_mut_ptr().cast(), LENGTH, 0) };
        succeeded("getrandom", drawn as i64)?;
    }
    reseeded?;
    for draw in draws {
        let hex: String = draw.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("drawn {hex}");
    }
    Ok(())
}

fn pin_to(cpu: usize) -> Outcome {
    // SAFETY: a set of no CPUs is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is initialised, and the CPU is below its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives for the call, and has the size that is said.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    succeeded("sched_setaffinity", result.into())
}

fn succeeded(call: &str, result: i64) -> Outcome {
    match result {
        0.. => Ok(()),
        _ => Err(Failure::new(format!("{call}: errno {}", errno()))),
    }
}
