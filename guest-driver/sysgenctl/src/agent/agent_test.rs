//! Tests of the agent's loop in generations, on a watcher that is none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use clap::Parser;

use super::*;
use crate::agent::contracts::{Contract, ContractError, Turn};
use crate::agent::cycle::Resumed;
use crate::agent::fake::Fake;
use crate::agent::signals::Signals;
use crate::agent::state;
use crate::args::{Cli, Command};
use crate::output::Log;

const LIMIT: Duration = Duration::from_secs(20);

/// A directory with hooks and the files that they and the agent leave.
struct Scene(tempfile::TempDir);

impl Scene {
    /// One hook, which notes the counters that it is given and then runs `script`. It is written as
    /// another name by another process: what is open for writing when a test forks cannot be executed.
    fn new(script: &str) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        let hooks = scene.path("hooks");
        fs::create_dir(&hooks).unwrap();
        fs::set_permissions(&hooks, fs::Permissions::from_mode(0o755)).unwrap();
        let rounds = scene.path("rounds");
        let text = format!(
            "#!/bin/sh\nexec 3>>{0}\necho \"$SYSGENID_OLD-$SYSGENID_NEW\" >&3\nround=$(wc -l < {0})\n{script}\n",
            rounds.display()
        );
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", r#"printf %s "$1" > "$2" && chmod 700 "$2""#, "sh"])
            .arg(text)
            .arg(hooks.join("hook"))
            .status()
            .unwrap();
        assert!(status.success());
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The rounds that were run, as `OLD-NEW`.
    fn rounds(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("rounds")).unwrap_or_default();
        text.lines().map(Into::into).collect()
    }

    fn state(&self) -> Option<u32> {
        state::load(&self.path("state")).unwrap()
    }

    /// Runs an agent that acknowledged `old` last, until the signal that `watcher` sends; or one
    /// that comes when it has hung for long.
    fn follow(&self, options: &str, old: u32, watcher: Fake) -> Fake {
        let (hooks, state) = (self.path("hooks"), self.path("state"));
        let retry = match options.contains("--retry") {
            true => "",
            false => "--retry 10ms",
        };
        let line = format!(
            "sysgenctl agent {retry} --hooks {} --state {} --run {} {options}",
            hooks.display(),
            state.display(),
            self.path("run").display()
        );
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Agent(args) = &cli.command else {
            panic!("not an agent");
        };
        let (log, signals) = (Log { json: true }, Signals::block().unwrap());
        let mut agent = Agent::new(args, log, signals, watcher, old, true)
            .with_contracts(vec![Box::new(Ending(self.path("ended")))]);
        // SAFETY: the call takes nothing.
        let thread = unsafe { libc::pthread_self() };
        let (done, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                if wait.recv_timeout(LIMIT).is_err() {
                    // SAFETY: the scope ends after this thread, in that one.
                    unsafe { libc::pthread_kill(thread, libc::SIGTERM) };
                }
            });
            agent.follow().unwrap();
            // Nobody listens any more if it hung; its rounds tell then.
            let _ = done.send(());
        });
        agent.watcher
    }
}

/// A contract that notes in a file that the agent ends.
struct Ending(PathBuf);

impl Contract for Ending {
    fn name(&self) -> &'static str {
        "ending"
    }

    fn before(&self, _: &Turn<'_>) -> Result<(), ContractError> {
        Ok(())
    }

    fn after(&self, _: Resumed, _: &Turn<'_>) -> Result<(), ContractError> {
        assert!(!self.0.exists());
        Ok(())
    }

    fn end(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        assert!(!turn.left().is_zero());
        fs::write(&self.0, "").unwrap();
        Ok(())
    }
}

#[test]
fn contracts_are_told_when_a_signal_ends_the_agent() {
    let scene = Scene::new("");
    scene.follow("", 3, Fake::new(5, 5));
    assert!(scene.path("ended").exists());
}

#[test]
fn a_generation_found_at_start_is_handled_once() {
    let scene = Scene::new("");
    let watcher = scene.follow("", 3, Fake::new(5, 5));
    assert_eq!(scene.rounds(), ["3-5"]);
    assert_eq!(scene.state(), Some(5));
    assert_eq!(watcher.told.take(), [5]);
}

#[test]
fn a_generation_found_at_start_is_retried_until_its_hooks_succeed() {
    let scene = Scene::new("[ $round -ge 3 ]");
    scene.follow("--require-success", 3, Fake::new(5, 5));
    assert_eq!(scene.rounds(), ["3-5", "3-5", "3-5"]);
    assert_eq!(scene.state(), Some(5));
}

#[test]
fn a_later_generation_is_retried_until_its_hooks_succeed() {
    let scene = Scene::new("[ $round -ge 2 ]");
    let watcher = Fake::new(5, 6);
    watcher.begin(6);
    let watcher = scene.follow("--require-success", 5, watcher);
    assert_eq!(scene.rounds(), ["5-6", "5-6"]);
    assert_eq!(watcher.acknowledged.get(), 6);
    assert_eq!(watcher.told.take(), [6]);
}

#[test]
fn a_failed_hook_is_not_retried_unless_success_is_required() {
    let scene = Scene::new("exit 1");
    let watcher = scene.follow("", 3, Fake::new(5, 5));
    assert_eq!(scene.rounds(), ["3-5"]);
    assert_eq!(watcher.acknowledged.get(), 5);
}

#[test]
fn the_host_is_never_told_of_a_generation_whose_hooks_have_failed_and_the_next_start_runs_them() {
    for broken in [
        Scene::new("exit 1"),
        Scene::new("sleep 100"),
        Scene::new("kill -9 $$"),
    ] {
        let watcher = broken.follow("--limit 300ms", 3, Fake::new(5, 5));
        assert_eq!(watcher.told.take(), Vec::<u32>::new());
        assert_eq!(broken.state(), Some(3));
    }
    // A directory that cannot be read, and one that others could write to.
    let scene = Scene::new("");
    fs::set_permissions(scene.path("hooks"), fs::Permissions::from_mode(0o777)).unwrap();
    let watcher = scene.follow("", 3, Fake::new(5, 5));
    assert_eq!(watcher.told.take(), Vec::<u32>::new());
    assert_eq!((scene.rounds().len(), scene.state()), (0, Some(3)));
}

#[test]
fn all_hooks_of_a_generation_have_one_limit() {
    let scene = Scene::new("sleep 100");
    let start = Instant::now();
    let watcher = scene.follow("--limit 1h --round-limit 300ms", 3, Fake::new(5, 5));
    assert!(start.elapsed() < LIMIT && watcher.told.take().is_empty());
}

#[test]
fn a_generation_that_begins_while_a_hook_runs_ends_it_and_one_in_a_pause_ends_the_pause() {
    for (script, options) in [
        ("[ $round -ge 2 ] || sleep 100", ""),
        ("[ $round -ge 2 ]", "--require-success --retry 1h"),
    ] {
        let scene = Scene::new(script);
        let watcher = Fake::new(5, 6);
        watcher
            .later
            .set(Some((Instant::now() + Duration::from_millis(700), 6)));
        let watcher = scene.follow(options, 3, watcher);
        assert_eq!(scene.rounds(), ["3-5", "3-6"]);
        assert_eq!(watcher.told.take(), [6]);
    }
}

#[test]
fn a_generation_that_begins_while_hooks_run_gets_a_round_of_its_own() {
    let scene = Scene::new("");
    let watcher = Fake::new(5, 7);
    watcher.in_between.borrow_mut().push(7);
    scene.follow("", 3, watcher);
    assert_eq!(scene.rounds(), ["3-5", "3-7"]);
    assert_eq!(scene.state(), Some(7));
}

#[test]
fn what_was_not_acknowledged_before_the_end_is_found_at_the_next_start() {
    let scene = Scene::new("sleep 100");
    let _blocked = Signals::block().unwrap();
    // SAFETY: the call takes an integer; the signal is blocked in this thread and waits for the agent.
    unsafe { libc::raise(libc::SIGTERM) };
    scene.follow("", 3, Fake::new(5, 5));
    assert_eq!(scene.state(), Some(3));
}
