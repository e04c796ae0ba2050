//! Runs one hook, for a limited time, in a process group of its own.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::cycle::Resumed;
use super::group::{Groups, PATIENCE};
use super::signals::{self, Signals};
use super::stages::Stage;

/// How long a process group has to tidy up between SIGTERM and SIGKILL, unless time is short.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Why a hook did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum HookError {
    #[error("could not be started")]
    Start(#[source] io::Error),
    #[error("could not be waited for")]
    Wait(#[source] io::Error),
    #[error("failed: {0}")]
    Status(ExitStatus),
    #[error("killed with its process group: took longer than {0:?}")]
    TimedOut(Duration),
    #[error("cannot be killed and is left behind: took longer than {0:?}")]
    Stuck(Duration),
    #[error("not started, as no time was left")]
    NoTime,
    #[error("ended, as the agent is to end")]
    Stopped,
    #[error("ended, as another generation has begun")]
    Overtaken,
    #[error("ended, as the host has withdrawn its request")]
    Withdrawn,
}

/// Why a hook is ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Another generation has begun, for which all hooks are run again.
    Overtaken,
    Withdrawn,
}

/// What every hook of a round is run with.
#[derive(Clone, Copy)]
pub(super) struct Runner<'a> {
    /// `SYSGENID_STAGE`.
    pub(super) stage: Stage,
    /// `SYSGENID_OUTCOME`, if there is one yet.
    pub(super) outcome: Option<Resumed>,
    /// The counter that was acknowledged last.
    pub(super) old: u32,
    /// The counter now.
    pub(super) new: u32,
    /// How long one hook may take.
    pub(super) limit: Duration,
    /// When all of them have to have ended.
    pub(super) deadline: Option<Instant>,
    /// How long one that is ended has to tidy up.
    pub(super) grace: Duration,
    /// What ends the agent, and with it the hook; nothing does where that would leave more to be done.
    pub(super) signals: Option<&'a Signals>,
    /// Where the hook runs, if there is such a place.
    pub(super) groups: Option<&'a Groups>,
    /// Whether the hook is run for nothing.
    pub(super) cut: &'a dyn Fn() -> Option<Cut>,
}

/// How often to look whether another generation has begun: the watcher's file tells nothing new while it is
/// outdated.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// Why a wait ended.
enum Event {
    Exited,
    Signal,
    Cut(Cut),
    TimeOver,
}

impl Runner<'_> {
    /// Runs the hook and waits for it; for what it leaves running only if it has to be killed.
    pub(super) fn run(&self, hook: &Path, arguments: &[&str]) -> Result<(), HookError> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let left = self.deadline.map(left);
        if left.is_some_and(|left| left.is_zero()) {
            return Err(HookError::NoTime);
        }
        let limit = left.map_or(self.limit, |left| left.min(self.limit));
        let mut child = self.start(hook, arguments).map_err(HookError::Start)?;
        match self.wait(&child, limit, true) {
            Ok(Event::Exited) => {
                let status = child.wait().map_err(HookError::Wait)?;
                self.groups.inspect(|groups| groups.release());
                match status.success() {
                    true => Ok(()),
                    false => Err(HookError::Status(status)),
                }
            }
            Ok(Event::TimeOver) => Err(match self.end(child) {
                true => HookError::TimedOut(limit),
                false => HookError::Stuck(limit),
            }),
            Ok(Event::Cut(cut)) => {
                self.end(child);
                Err(match cut {
                    Cut::Overtaken => HookError::Overtaken,
                    Cut::Withdrawn => HookError::Withdrawn,
                })
            }
            Ok(Event::Signal) => {
                self.end(child);
                Err(HookError::Stopped)
            }
            Err(error) => {
                self.end(child);
                Err(HookError::Wait(error))
            }
        }
    }

    fn start(&self, hook: &Path, arguments: &[&str]) -> io::Result<Child> {
        let output = io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new(hook);
        command
            .args(arguments)
            .env("SYSGENID_OLD", self.old.to_string())
            .env("SYSGENID_NEW", self.new.to_string())
            .env("SYSGENID_STAGE", self.stage.name())
            .envs(
                self.outcome
                    .map(|outcome| ("SYSGENID_OUTCOME", outcome.name())),
            )
            // Whatever it says to the service manager is not the agent's word.
            .env_remove("NOTIFY_SOCKET")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .process_group(0);
        // SAFETY: the closure sets the signal mask and allocates nothing, which is allowed between
        // fork and exec.
        unsafe { command.pre_exec(signals::unblock_all) };
        if let Some(groups) = self.groups {
            let entrance = groups.entrance()?;
            // SAFETY: the closure makes one system call, with a file that is open and a byte that is there.
            unsafe {
                command.pre_exec(move || {
                    rustix::io::write(&entrance, b"0")
                        .map(drop)
                        .map_err(Into::into)
                })
            };
        }
        command.spawn()
    }

    /// Waits until the child has ended (it stays to be reaped), the time is over or, if `alert`, a
    /// signal has come (which stays to be taken) or another generation.
    fn wait(&self, child: &Child, limit: Duration, alert: bool) -> io::Result<Event> {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let start = Instant::now();
        loop {
            let mut files = vec![PollFd::new(&pidfd, PollFlags::IN)];
            if let (true, Some(signals)) = (alert, self.signals) {
                files.push(PollFd::new(signals, PollFlags::IN));
            }
            let left = limit.saturating_sub(start.elapsed());
            let slice = if alert { left.min(LOOK) } else { left };
            // A limit beyond what the clock can count is none.
            let slice = Timespec::try_from(slice).ok();
            let polled = poll(&mut files, slice.as_ref());
            if let (Ok(0), true, Some(cut)) = (&polled, alert, (self.cut)()) {
                return Ok(Event::Cut(cut));
            }
            match polled {
                Ok(0) if start.elapsed() < limit => {}
                Ok(0) => return Ok(Event::TimeOver),
                Ok(_) if files[0].revents().is_empty() => return Ok(Event::Signal),
                Ok(_) => return Ok(Event::Exited),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Ends the whole process group: SIGTERM, then SIGKILL; and all of the control group, if there is one.
    ///
    /// The child is reaped last: until then its ID, which is the group's too, belongs to nobody else.
    /// Returns whether it was. One that sleeps in the kernel where no signal wakes it (state D) is left
    /// behind: programs may be frozen until this returns.
    fn end(&self, mut child: Child) -> bool {
        let group = Pid::from_child(&child);
        // No error is left to handle: a group without processes is what is wanted.
        let _ = kill_process_group(group, Signal::TERM);
        let _ = self.wait(&child, self.grace, false);
        let _ = kill_process_group(group, Signal::KILL);
        self.groups.inspect(|groups| groups.kill());
        let ended = matches!(self.wait(&child, PATIENCE, false), Ok(Event::Exited));
        let mut reap = move || drop(child.wait());
        match ended {
            true => reap(),
            // It ends with the agent, at the latest.
            false => drop(thread::Builder::new().spawn(reap)),
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    struct Scene {
        dir: tempfile::TempDir,
        signals: Signals,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                signals: Signals::block().unwrap(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// An executable script. Another process writes it: a file that is open for writing here
        /// when another test forks could not be executed.
        fn hook(&self, script: &str) -> PathBuf {
            let path = self.path("hook");
            let status = Command::new("/bin/sh")
                .args([
                    "-c",
                    r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 700 "$2""#,
                    "sh",
                ])
                .arg(script)
                .arg(&path)
                .status()
                .unwrap();
            assert!(status.success());
            path
        }

        fn run(&self, script: &str, limit: Duration) -> Result<(), HookError> {
            let hook = self.hook(script);
            self.runner(limit).run(&hook, &[])
        }

        fn runner(&self, limit: Duration) -> Runner<'_> {
            Runner {
                stage: Stage::Resume,
                outcome: Some(Resumed::Clone),
                old: 3,
                new: 5,
                limit,
                deadline: None,
                grace: GRACE,
                signals: Some(&self.signals),
                groups: None,
                cut: &|| None,
            }
        }
    }

    /// Whether the process is there and no zombie.
    fn alive(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn await_death(pid: &str) -> bool {
        let end = Instant::now() + LIMIT;
        while alive(pid) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        !alive(pid)
    }

    #[test]
    fn a_hook_learns_the_stage_the_outcome_and_the_old_and_the_new_counter() {
        let scene = Scene::new();
        let out = scene.path("out");
        let said = "$SYSGENID_STAGE $SYSGENID_OUTCOME $SYSGENID_OLD $SYSGENID_NEW";
        let script = format!("echo \"{said}\" > {}", out.display());
        scene.run(&script, LIMIT).unwrap();
        assert_eq!(fs::read_to_string(out).unwrap(), "resume clone 3 5\n");
    }

    #[test]
    fn a_hook_has_no_input_no_blocked_signal_and_a_group_of_its_own() {
        let scene = Scene::new();
        let out = scene.path("out");
        let script = format!(
            "read line && exit 9; grep SigBlk /proc/self/status > {0}; \
             read pid name state parent group rest < /proc/$$/stat; echo $((pid - group)) >> {0}",
            out.display()
        );
        scene.run(&script, LIMIT).unwrap();
        let said = fs::read_to_string(out).unwrap();
        assert_eq!(said, "SigBlk:\t0000000000000000\n0\n");
    }

    #[test]
    fn a_failing_hook_is_told_with_its_status() {
        let error = Scene::new().run("exit 7", LIMIT).unwrap_err();
        assert_eq!(error.to_string(), "failed: exit status: 7");
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_told() {
        let scene = Scene::new();
        let hook = scene.hook("exit 0");
        fs::remove_file(&hook).unwrap();
        let runner = scene.runner(LIMIT);
        assert!(matches!(runner.run(&hook, &[]), Err(HookError::Start(_))));
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_its_children() {
        let scene = Scene::new();
        let pids = scene.path("pids");
        // Neither the hook nor its child can be ended with SIGTERM.
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $! > {0}; echo $$ >> {0}; while :; do wait; sleep 1; done",
            pids.display()
        );
        let limit = Duration::from_millis(300);
        let start = Instant::now();
        let error = scene.run(&script, limit).unwrap_err();
        assert!(matches!(error, HookError::TimedOut(_)), "{error}");
        assert!(start.elapsed() >= limit && start.elapsed() < limit + LIMIT);
        let pids = fs::read_to_string(pids).unwrap();
        assert_eq!(pids.lines().count(), 2);
        assert!(pids.lines().all(await_death));
    }

    #[test]
    fn a_hook_that_does_not_die_is_left_behind() {
        let scene = Scene::new();
        let pid = scene.path("pid");
        // It leaves its process group for ours, and so no signal reaches it: as one that sleeps in a
        // broken device's driver.
        let script = format!(
            "exec perl -e 'setpgrp(0, getpgrp(getppid())); open(my $f, \">\", $ARGV[0]); \
             print $f $$; close($f); sleep 1000' {}",
            pid.display()
        );
        let hook = scene.hook(&script);
        let (done, wait) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let scene = &scene;
            scope.spawn(move || {
                let limit = Duration::from_secs(3);
                done.send(scene.runner(limit).run(&hook, &[])).unwrap();
            });
            let ended = wait.recv_timeout(LIMIT);
            let pid = fs::read_to_string(&pid).unwrap();
            let was_alive = alive(&pid);
            let stuck = Pid::from_raw(pid.parse().unwrap()).unwrap();
            rustix::process::kill_process(stuck, Signal::KILL).unwrap();
            assert!(was_alive);
            let error = ended.expect("the runner waits for it").unwrap_err();
            assert!(matches!(error, HookError::Stuck(_)), "{error}");
            // Nor does it stay a zombie once it can die.
            let end = Instant::now() + LIMIT;
            let entry = PathBuf::from(format!("/proc/{pid}"));
            while entry.exists() && Instant::now() < end {
                thread::sleep(Duration::from_millis(10));
            }
            assert!(!entry.exists());
        });
    }

    #[test]
    fn a_hook_for_which_no_time_is_left_is_not_started() {
        let scene = Scene::new();
        let out = scene.path("out");
        let hook = scene.hook(&format!("touch {}; sleep 1000", out.display()));
        let runner = Runner {
            deadline: Some(Instant::now()),
            ..scene.runner(LIMIT)
        };
        assert!(matches!(runner.run(&hook, &[]), Err(HookError::NoTime)));
        assert!(!out.exists());
    }

    #[test]
    fn a_hook_that_is_cut_off_may_tidy_up() {
        let scene = Scene::new();
        let tidy = scene.path("tidy");
        let script = format!(
            "trap 'echo tidy > {}; exit 1' TERM; while :; do sleep 0.05; done",
            tidy.display()
        );
        let error = scene.run(&script, Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, HookError::TimedOut(_)), "{error}");
        assert_eq!(fs::read_to_string(tidy).unwrap(), "tidy\n");
    }

    #[test]
    fn a_hook_may_leave_a_daemon_behind() {
        let scene = Scene::new();
        let pid = scene.path("pid");
        let script = format!("sleep 1000 & echo $! > {}", pid.display());
        scene.run(&script, LIMIT).unwrap();
        let pid = fs::read_to_string(pid).unwrap();
        assert!(alive(&pid));
        let daemon = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(daemon, Signal::KILL).unwrap();
    }
}
