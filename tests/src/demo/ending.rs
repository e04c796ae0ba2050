//! However the demo ends, a failure is told in one line, and nothing that it started is left.
//!
//! Release builds abort at a panic, so no destructor can be relied on then, nor at a signal: all temporary files lie in one
//! directory, and a VMM is known by its API socket there.

use std::fs;
use std::panic;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use vmgenie_tests::process;

use crate::steps;

static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
/// Held by the one thread that ends the program.
static ENDING: Mutex<()> = Mutex::new(());

const SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Takes charge of all ends. To be called before any thread starts.
///
/// With `verbose` a failure shows all that a panic has to say, which may be a guest's whole console.
pub(crate) fn begin(verbose: bool) -> Result<()> {
    // Short, because the path of a socket has no more than 107 bytes.
    let scratch = tempfile::Builder::new()
        .prefix("demo")
        .rand_bytes(5)
        .tempdir()
        .context("could not make a directory for temporary files")?
        .keep();
    tempfile::env::override_temp_dir(&scratch)
        .map_err(|other| anyhow!("temporary files already go to {}", other.display()))?;
    // Nobody else sets it, and it was not set before.
    let _ = SCRATCH.set(scratch);
    let signals = blocked_signals();
    thread::spawn(move || wait_for_signal(&signals));
    panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("an unknown error");
        fail(&told(message, verbose))
    }));
    Ok(())
}

/// What of a message is told: its first line, unless more is wanted.
fn told(message: &str, verbose: bool) -> String {
    match message.split_once('\n') {
        Some((first, _)) if !verbose => {
            let first = first.trim_end_matches(':').trim_end_matches(". All of it");
            format!("{first} (--verbose tells more)")
        }
        _ => message.to_owned(),
    }
}

/// Tells `message`, cleans up and ends the program.
pub(crate) fn fail(message: &str) -> ! {
    end(1, || {
        steps::end_line();
        eprintln!("error: {message}");
    })
}

/// Ends all VMMs and removes all files.
pub(crate) fn clean() {
    let Some(scratch) = SCRATCH.get() else { return };
    // Once more after the directory is gone: from then on none can start.
    for _ in 0..2 {
        // The arguments of a process are separated by NUL.
        let mark = format!("--api-sock\0{}/", scratch.display());
        for pid in process::with_argument(&mark) {
            drop(process::Stray(pid));
        }
        // It may be gone, and what was started this very moment may still write in it.
        let _ = fs::remove_dir_all(scratch);
    }
}

/// The first who comes here decides how the program ends.
fn end(status: i32, tell: impl FnOnce()) -> ! {
    match ENDING.try_lock() {
        Ok(_guard) => {
            tell();
            clean();
            std::process::exit(status)
        }
        Err(_) => {
            thread::sleep(Duration::from_secs(10));
            std::process::exit(status)
        }
    }
}

/// Blocks the signals that end a program, here and in all threads and processes that are started from here.
fn blocked_signals() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid value, which sigemptyset initialises properly; the set outlives the calls, and blocking
    // signals touches no other memory.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in SIGNALS {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

fn wait_for_signal(signals: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: both pointers are to live values.
    if unsafe { libc::sigwait(signals, &mut signal) } == 0 {
        end(128 + signal, || {
            steps::end_line();
            eprintln!("interrupted: ending all that was started");
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_one_line() {
        let long =
            "waited 150s for \"@@ready\" on the console: time is up. All of it:\nLinux\nmore";
        assert_eq!(
            told(long, false),
            "waited 150s for \"@@ready\" on the console: time is up (--verbose tells more)"
        );
        assert_eq!(told(long, true), long);
        assert_eq!(told("no API", false), "no API");
    }
}
