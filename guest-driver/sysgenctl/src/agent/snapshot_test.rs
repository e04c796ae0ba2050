//! Tests of the agent in snapshots that the host asks for: with hooks that are run, on a watcher and on control
//! groups that are none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command as Process;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use sysgenid::{Prepared, Reason};

use super::contracts::Contract;
use super::fake::{Fake, Host};
use super::freezer::Freezer;
use super::machine::Agent;
use super::signals::Signals;
use super::state::Mark;
use crate::args::{Cli, Command};
use crate::output::Log;

pub(super) const LIMIT: Duration = Duration::from_secs(60);
const ALL: [&str; 4] = [
    "quiesce.d",
    "adapt.d/identity",
    "adapt.d/service",
    "resume.d",
];

/// A directory with hooks, control groups and what the agent leaves.
pub(super) struct Scene(tempfile::TempDir);

impl Scene {
    /// Hooks that note that they have run, in which outcome, and whether programs were frozen then.
    pub(super) fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        for group in ["web.slice", "agent.slice"] {
            scene.group(group, "frozen 1\n");
        }
        fs::write(scene.path("cgroup/cgroup.procs"), "").unwrap();
        for stage in ALL {
            for name in ["10-a", "20-b"] {
                scene.hook(stage, name, "");
            }
        }
        scene
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Another process writes it: what is open for writing when a test forks cannot be executed.
    pub(super) fn hook(&self, stage: &str, name: &str, script: &str) {
        let dir = self.path("etc").join(stage);
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "#!/bin/sh\necho \"$SYSGENID_STAGE {name} $(cat {}) $SYSGENID_OUTCOME\" >> {}\n{script}\n",
            self.path("cgroup/web.slice/cgroup.freeze").display(),
            self.path("ran").display()
        );
        let write = r#"rm -f "$2"; printf %s "$1" > "$2" && chmod 700 "$2""#;
        let mut process = Process::new("/bin/sh");
        process
            .args(["-c", write, "sh"])
            .arg(text)
            .arg(dir.join(name));
        assert!(process.status().unwrap().success());
    }

    pub(super) fn ran(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("ran")).unwrap_or_default();
        text.lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    /// Makes a control group.
    pub(super) fn group(&self, name: &str, events: &str) {
        let group = self.path("cgroup").join(name);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.freeze"), "0\n").unwrap();
        fs::write(group.join("cgroup.events"), events).unwrap();
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.has_frozen("web.slice")
    }

    pub(super) fn has_frozen(&self, group: &str) -> bool {
        let file = self.path("cgroup").join(group).join("cgroup.freeze");
        fs::read_to_string(file).unwrap().trim() == "1"
    }

    pub(super) fn mark(&self) -> Mark {
        Mark::below(&self.path("run"))
    }

    /// Does what the agent does until there is nothing left to do or it gets a signal.
    pub(super) fn follow(&self, options: &str, watcher: Fake) -> Fake {
        self.follow_with(options, watcher, Vec::new())
    }

    /// The same with these contracts.
    pub(super) fn follow_with(
        &self,
        options: &str,
        watcher: Fake,
        contracts: Vec<Box<dyn Contract>>,
    ) -> Fake {
        let line = format!(
            "sysgenctl agent --retry 10ms --directory {} --state {} --run {} {options}",
            self.path("etc").display(),
            self.path("state").display(),
            self.path("run").display()
        );
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Agent(args) = &cli.command else {
            panic!("not an agent");
        };
        let (log, signals) = (Log { json: true }, Signals::block().unwrap());
        let freezer = Freezer::at(self.path("cgroup"), &self.path("run"));
        let mut agent = Agent::new(args, log, signals, watcher, 3, true)
            .with_freezer(Ok(freezer.keeping("agent.slice")))
            .with_contracts(contracts);
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
            agent.until_idle().unwrap();
            let _ = done.send(());
        });
        agent.watcher
    }
}

const QUIESCED: [&str; 2] = ["quiesce 20-b 0", "quiesce 10-a 0"];

pub(super) fn asked(host: Host) -> Fake {
    Fake::new(3, u32::MAX).asked(LIMIT, host)
}

pub(super) fn all_prepared() -> Prepared {
    Prepared::QUIESCED | Prepared::FROZEN | Prepared::PARKED
}

#[test]
fn the_original_is_quiesced_backwards_frozen_at_the_fork_point_thawed_and_resumed() {
    let scene = Rc::new(Scene::new());
    let watcher = asked(Host::Original);
    let looked = Rc::clone(&scene);
    *watcher.at_fork.borrow_mut() = Some(Box::new(move || {
        assert!(looked.is_frozen() && looked.mark().is_set());
    }));
    let watcher = scene.follow("", watcher);
    let resumed = ["resume 10-a 0 original", "resume 20-b 0 original"];
    assert_eq!(scene.ran(), [QUIESCED, resumed].concat());
    assert_eq!(watcher.prepared.get(), Some(all_prepared()));
    assert_eq!(watcher.refused.take(), []);
    assert!(!scene.is_frozen() && !scene.mark().is_set());
    assert_eq!(watcher.identities.take(), Vec::<u32>::new());
}

#[test]
fn a_clone_has_its_identity_while_frozen_and_is_served_thawed() {
    let scene = Scene::new();
    let watcher = scene.follow("--require-success", asked(Host::Clone(5)));
    let adapted = [
        "identity 10-a 1",
        "identity 20-b 1",
        "service 10-a 0",
        "service 20-b 0",
    ];
    let resumed = ["resume 10-a 0 clone", "resume 20-b 0 clone"];
    assert_eq!(scene.ran(), [&QUIESCED[..], &adapted, &resumed].concat());
    assert_eq!(watcher.identities.take(), [5]);
    // First of the generation at its start, which nobody has missed.
    assert_eq!(watcher.told.take(), [3, 5]);
    assert!(!scene.is_frozen() && !scene.mark().is_set());
}

#[test]
fn a_quiesce_hook_that_fails_or_hangs_is_a_refusal_with_its_reason_and_services_go_on() {
    for (script, limit, reason) in [
        ("exit 1", LIMIT, Reason::HookFailed),
        ("exec sleep 1000", Duration::from_secs(2), Reason::HookHung),
        (
            "trap '' TERM; while :; do sleep 1; done",
            Duration::from_secs(2),
            Reason::HookHung,
        ),
    ] {
        let scene = Scene::new();
        scene.hook("quiesce.d", "20-b", script);
        let watcher = Fake::new(3, u32::MAX).asked(limit, Host::Original);
        let watcher = scene.follow("", watcher);
        // The first name comes last, and so not at all.
        let expected = [
            "quiesce 20-b 0",
            "resume 10-a 0 called-off",
            "resume 20-b 0 called-off",
        ];
        assert_eq!(scene.ran(), expected, "{script}");
        assert_eq!(watcher.refused.take(), [reason], "{script}");
        assert_eq!(watcher.prepared.get(), None);
        assert!(!scene.is_frozen() && !scene.mark().is_set());
    }
}

#[test]
fn a_program_that_does_not_park_is_a_refusal() {
    let scene = Scene::new();
    let watcher = Fake::new(3, u32::MAX).asked(Duration::from_secs(1), Host::Original);
    watcher.unparked.set(true);
    let watcher = scene.follow("", watcher);
    assert_eq!(watcher.refused.take(), [Reason::NotParked]);
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 called-off");
}

#[test]
fn programs_that_do_not_freeze_are_a_refusal_or_told_as_the_policy_says() {
    for (policy, prepared, refused) in [
        ("required", None, vec![Reason::NotFrozen]),
        (
            "best-effort",
            Some(Prepared::QUIESCED | Prepared::PARKED),
            vec![],
        ),
        ("off", Some(Prepared::QUIESCED | Prepared::PARKED), vec![]),
    ] {
        let scene = Scene::new();
        fs::write(scene.path("cgroup/web.slice/cgroup.events"), "frozen 0\n").unwrap();
        let options = format!("--freeze-limit 50ms --freeze {policy}");
        let watcher = scene.follow(&options, asked(Host::Original));
        assert_eq!(watcher.prepared.get(), prepared, "{policy}");
        assert_eq!(watcher.refused.take(), refused, "{policy}");
        assert!(!scene.is_frozen() && !scene.mark().is_set());
        assert!(scene.ran().last().unwrap().starts_with("resume 20-b 0"));
    }
}

#[test]
fn a_snapshot_that_the_host_does_not_take_leaves_the_machine_as_it_was() {
    for host in [Host::Cancels, Host::Hangs] {
        let scene = Scene::new();
        let watcher = scene.follow("", asked(host));
        assert_eq!(watcher.prepared.get(), Some(all_prepared()));
        assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 called-off");
        assert!(!scene.is_frozen() && !scene.mark().is_set());
    }
}

#[test]
fn a_request_that_is_withdrawn_ends_the_hook_that_runs() {
    let scene = Scene::new();
    scene.hook("quiesce.d", "20-b", "exec sleep 1000");
    let watcher = asked(Host::Original);
    let soon = Instant::now() + Duration::from_secs(2);
    watcher.withdrawn.set(Some(soon));
    let start = Instant::now();
    let watcher = scene.follow("", watcher);
    assert!(start.elapsed() < LIMIT / 2);
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 called-off");
    assert_eq!(watcher.refused.take(), []);
}

#[test]
fn a_machine_that_is_restored_while_it_is_quiesced_adapts_before_it_is_resumed() {
    let scene = Scene::new();
    scene.hook("quiesce.d", "20-b", "exec sleep 1000");
    let watcher = asked(Host::Original);
    let soon = Instant::now() + Duration::from_secs(2);
    watcher.later.set(Some((soon, 5)));
    let watcher = scene.follow("", watcher);
    assert_eq!(watcher.refused.take(), [Reason::Busy]);
    let expected = [
        "quiesce 20-b 0",
        "identity 10-a 0",
        "identity 20-b 0",
        "service 10-a 0",
        "service 20-b 0",
        "resume 10-a 0 clone",
        "resume 20-b 0 clone",
    ];
    assert_eq!(scene.ran(), expected);
    assert_eq!(watcher.told.take(), [3, 5]);
}

#[test]
fn an_identity_hook_that_fails_or_hangs_leaves_no_frozen_clone_and_opens_no_network() {
    for script in ["exit 1", "exec sleep 1000"] {
        let scene = Scene::new();
        scene.hook("adapt.d/identity", "20-b", script);
        let watcher = scene.follow("--frozen-limit 300ms", asked(Host::Clone(5)));
        assert_eq!(watcher.identities.take(), Vec::<u32>::new(), "{script}");
        assert_eq!(watcher.told.take(), [3], "{script}");
        assert!(!scene.is_frozen() && !scene.mark().is_set());
        assert!(scene.ran().contains(&"service 20-b 0".to_owned()));
        assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 clone");
    }
}

#[test]
fn a_clone_whose_identity_fails_at_first_tries_again_thawed_and_is_resumed_last() {
    let scene = Scene::new();
    let once = format!(
        "[ -e {0} ] || {{ touch {0}; exit 1; }}",
        scene.path("once").display()
    );
    scene.hook("adapt.d/identity", "20-b", &once);
    let watcher = scene.follow("--require-success", asked(Host::Clone(5)));
    let expected = [
        "quiesce 20-b 0",
        "quiesce 10-a 0",
        "identity 10-a 1",
        "identity 20-b 1",
        "identity 10-a 0",
        "identity 20-b 0",
        "service 10-a 0",
        "service 20-b 0",
        "resume 10-a 0 clone",
        "resume 20-b 0 clone",
    ];
    assert_eq!(scene.ran(), expected);
    assert_eq!(watcher.identities.take(), [5]);
    assert_eq!(watcher.told.take(), [3, 5]);
}

#[test]
fn what_an_agent_that_was_killed_has_quiesced_the_next_one_resumes() {
    let scene = Scene::new();
    scene.mark().set().unwrap();
    scene.follow("", Fake::new(3, u32::MAX));
    let expected = ["resume 10-a 0 called-off", "resume 20-b 0 called-off"];
    assert_eq!(scene.ran(), expected);
    assert!(!scene.mark().is_set());
    // In a clone, after it has adapted.
    let scene = Scene::new();
    scene.mark().set().unwrap();
    let watcher = scene.follow("", Fake::new(5, u32::MAX));
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 clone");
    assert_eq!(scene.ran().len(), 6);
    assert_eq!(watcher.told.take(), [5]);
}

#[test]
fn an_agent_that_is_to_end_refuses_and_lets_services_go_on_first() {
    let scene = Scene::new();
    scene.hook("quiesce.d", "20-b", "exec sleep 1000");
    let watcher = asked(Host::Original);
    let _blocked = Signals::block().unwrap();
    watcher.end();
    let watcher = scene.follow("", watcher);
    assert_eq!(watcher.refused.take(), [Reason::AgentGone]);
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 called-off");
    assert!(!scene.mark().is_set());
}

#[test]
fn a_machine_that_cannot_adapt_refuses_to_be_cloned() {
    let scene = Scene::new();
    scene.hook("adapt.d/service", "20-b", "exit 1");
    let watcher = Fake::new(5, u32::MAX).asked(LIMIT, Host::Original);
    let watcher = scene.follow("--require-success", watcher);
    assert_eq!(watcher.refused.take(), [Reason::Busy]);
    assert!(!scene.ran().iter().any(|ran| ran.starts_with("quiesce")));
}

#[test]
fn an_untrusted_quiesce_hook_is_a_failure() {
    let scene = Scene::new();
    let hook = scene.path("etc/quiesce.d/20-b");
    fs::set_permissions(hook, fs::Permissions::from_mode(0o777)).unwrap();
    let watcher = scene.follow("", asked(Host::Original));
    assert_eq!(watcher.refused.take(), [Reason::HookFailed]);
}

#[test]
fn an_agent_beside_another_one_takes_its_part_when_that_has_ended() {
    let scene = Scene::new();
    let watcher = asked(Host::Original);
    watcher.others.set(2);
    let watcher = scene.follow("", watcher);
    assert_eq!(scene.ran(), Vec::<String>::new());
    assert!(watcher.request.get().is_some());
    assert_eq!(watcher.others.get(), 1);
    watcher.others.set(0);
    scene.follow("", watcher);
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 original");
}
