//! What `/proc` says of a process, and ending one that is not our child.

use std::fs;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::Duration;

use vm_agent::patience::Patience;

/// How many files the process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .count()
}

/// How many threads the process has.
pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task"))
        .expect("the process lives")
        .count()
}

/// The process's resident memory in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a process has a VmRSS line");
    let number = line.trim().trim_end_matches("kB").trim();
    number.parse().expect("a number of kB")
}

/// Is there such a process that has not ended? A zombie has, once it has no more threads: they hold its files open.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name in parentheses may hold anything. The state, the third field, follows it; the threads are the 20th.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut fields = fields.split_whitespace();
    let (state, threads) = (fields.next(), fields.nth(16));
    !matches!(state, Some("Z" | "X"))
        || threads.is_some_and(|threads| threads != "1" && threads != "0")
}

/// The processes whose command line holds `text`.
pub fn with_argument(text: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != std::process::id() && String::from_utf8_lossy(&cmdline).contains(text)
        })
        .collect()
}

/// How the process has ended, if it does within `limit`.
pub fn end_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut patience = Patience::new(limit);
    loop {
        match child.try_wait() {
            Ok(None) if !patience.is_over() => thread::sleep(Duration::from_millis(5)),
            status => return status.ok().flatten(),
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` when it does not within `limit`.
pub fn wait_until(what: &str, limit: Duration, condition: impl FnMut() -> bool) {
    let patience = Patience::new(limit);
    let there = patience.wait_until(Duration::from_millis(10), condition);
    assert!(there, "{what}: not within {limit:?}");
}

/// Sends a signal to a process that the test has started.
pub fn signal(pid: u32, signal: libc::c_int) {
    assert_eq!(
        kill(pid, signal),
        0,
        "kill {pid}: {}",
        std::io::Error::last_os_error()
    );
}

fn kill(pid: u32, signal: libc::c_int) -> libc::c_int {
    let pid = libc::pid_t::try_from(pid).expect("a process number");
    // SAFETY: takes two numbers. The process is one that the test has started.
    unsafe { libc::kill(pid, signal) }
}

/// A process that is no child of ours (a clone), killed when this is dropped.
#[derive(Debug)]
pub struct Stray(pub u32);

impl Drop for Stray {
    fn drop(&mut self) {
        if is_alive(self.0) {
            // It may have ended meanwhile.
            kill(self.0, libc::SIGKILL);
        }
    }
}
