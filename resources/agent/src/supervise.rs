//! One test and everything that it starts, ended together.
//!
//! A test may start programs that start programs. Being the subreaper of all of them, the
//! supervisor inherits whatever is left when the test ends, and ends it.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Duration;

use vm_agent::patience::Patience;
use vm_agent::{STATUS_CANNOT_RUN, exit_status};

/// The exit status of a supervisor whose program reached its time limit.
pub(crate) const STATUS_TIME_LIMIT: i32 = 124;

/// Runs `program` with `args` for at most `limit`, as on a quiet machine, kills what it left behind, and returns its
/// exit status, or [`STATUS_TIME_LIMIT`].
///
/// The program is killed when the supervisor is.
pub(crate) fn run(limit: Duration, program: &str, args: &[&str]) -> ExitCode {
    // SAFETY: prctl with these arguments changes a flag of this process and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    let mut command = Command::new(program);
    command.args(args);
    die_with_parent(&mut command);
    let status = match command.spawn().and_then(|child| wait(child, limit)) {
        Ok(Some(status)) => exit_status(status),
        Ok(None) => {
            eprintln!("vm-agent: killed: took longer than {} s", limit.as_secs());
            STATUS_TIME_LIMIT
        }
        Err(error) => {
            eprintln!("vm-agent: could not run {program}: {error}");
            STATUS_CANNOT_RUN
        }
    };
    for pid in end_children() {
        eprintln!("vm-agent: ended process {pid}, which {program} had left running");
    }
    ExitCode::from(status.clamp(0, 255) as u8)
}

/// The child's status, or `None` when it had to be killed at its limit.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let mut patience = Patience::new(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if patience.is_over() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes the kernel kill the child when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Kills the children of this process, and their orphans as they arrive, until none is left.
/// Returns those that were still running.
fn end_children() -> Vec<libc::pid_t> {
    let mut ended = Vec::new();
    loop {
        // SAFETY: waitpid with a null status pointer writes to no memory.
        let reaped = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
        match reaped {
            -1 => return ended,
            0 => {
                for pid in children() {
                    // SAFETY: kill touches no memory; the pid is a child that was not reaped,
                    // so it names no other process.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                    if !ended.contains(&pid) {
                        ended.push(pid);
                    }
                }
                thread::sleep(Duration::from_millis(2));
            }
            _ => {}
        }
    }
}

/// The processes whose parent is this one.
fn children() -> Vec<libc::pid_t> {
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &libc::pid_t| {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .ok()
                .and_then(|stat| parent_of(&stat))
                == Some(me)
        })
        .collect()
}

/// The parent's process id in a line of `/proc/PID/stat`, whose second field, the program's name
/// in brackets, may hold blanks and brackets of its own.
fn parent_of(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_program_name() {
        assert_eq!(parent_of("12 (sh) S 7 12 12"), Some(7));
        assert_eq!(parent_of("12 (a) b (c)) R 900 1"), Some(900));
        assert_eq!(parent_of("12 (sh"), None);
    }
}
