//! A control group for the hook that runs, so that nothing of it escapes: neither a process that has left its
//! process group, nor a hook whose agent was killed and that would run beside the next agent's.
//!
//! There is one where the service manager has given the agent its group to divide (`Delegate=`). Elsewhere
//! the process group has to do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::cgroup::{Place, has_line};

/// How long killed processes may take to be gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The groups below the agent's own.
#[derive(Debug)]
pub(super) struct Groups {
    /// What runs now.
    hook: PathBuf,
    /// What hooks that have succeeded have left behind on purpose.
    left: PathBuf,
}

impl Groups {
    /// The groups below that of this service, with nothing in the first: a hook of an agent that was
    /// killed is killed as well. None where this is no service, or may not divide its group.
    pub(super) fn of_service() -> Option<Self> {
        let own = Place::of_this_process()?.directory();
        (own.extension()? == "service").then(|| Self::below(&own))?
    }

    fn below(own: &Path) -> Option<Self> {
        let groups = Self {
            hook: own.join("hook"),
            left: own.join("left"),
        };
        for group in [&groups.hook, &groups.left] {
            match fs::create_dir(group) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
                _ => {}
            }
        }
        groups.kill();
        Some(groups)
    }

    /// The file to which a process that is to be in the hook's group writes a zero.
    pub(super) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.hook.join("cgroup.procs"))
    }

    /// Kills whatever the hook has started, and waits until it is gone.
    pub(super) fn kill(&self) {
        let end = Instant::now() + PATIENCE;
        // A kernel that cannot has left it to the process group.
        if fs::write(self.hook.join("cgroup.kill"), "1").is_err() {
            return;
        }
        while self.is_populated() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What a hook that has succeeded has left running is no hook any more.
    pub(super) fn release(&self) {
        let procs = fs::read_to_string(self.hook.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            // One that has ended meanwhile cannot be moved, and need not be.
            let _ = fs::write(self.left.join("cgroup.procs"), pid);
        }
    }

    fn is_populated(&self) -> bool {
        has_line(&self.hook, "cgroup.events", "populated 1")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// A group of our own, if this machine lets us have one.
    fn groups() -> Option<(PathBuf, Groups)> {
        let root = Place::of_this_process()?.root;
        let own = root.join(format!("sysgenctl-test-{}", std::process::id()));
        fs::create_dir(&own).ok()?;
        let groups = Groups::below(&own)?;
        Some((own, groups))
    }

    #[test]
    fn what_a_hook_has_started_is_killed_wherever_it_has_gone_and_what_it_leaves_is_not() {
        let Some((own, groups)) = groups() else {
            // Not by `eprintln!`, which is kept from sight when a test passes.
            let _ = writeln!(
                io::stderr(),
                "needs the right to make control groups; left out"
            );
            return;
        };
        let start = || {
            let script = format!(
                "echo 0 > {}; exec setsid sleep 1000",
                groups.hook.join("cgroup.procs").display()
            );
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &script]).stdin(Stdio::null());
            let child = command.spawn().unwrap();
            while !groups.is_populated() {
                thread::sleep(Duration::from_millis(5));
            }
            child
        };
        let mut hook = start();
        groups.kill();
        assert!(!hook.wait().unwrap().success());
        let mut daemon = start();
        groups.release();
        groups.kill();
        assert_eq!(daemon.try_wait().unwrap(), None);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        for group in [&groups.hook, &groups.left, &own] {
            while fs::remove_dir(group).is_err() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
