//! Tests of hooks that others have defined, beside the agent's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use sysgenid::Reason;

use crate::agent::fake::{Fake, Host};
use crate::agent::snapshot_test::{LIMIT, Scene, asked};

/// A scene with a hook in each of the two directories, that notes what it is called with, and the options.
fn scene() -> (Scene, String) {
    let scene = Scene::new();
    for (directory, name) in [
        ("freeze.d", "30-db"),
        ("freeze.d", "40-log"),
        ("sleep", "50-nic"),
    ] {
        held(&scene, directory, name, "");
    }
    let options = format!(
        "--fsfreeze-hooks {} --system-sleep {}",
        scene.path("etc/freeze.d").display(),
        scene.path("etc/sleep").display()
    );
    (scene, options)
}

fn held(scene: &Scene, directory: &str, name: &str, script: &str) {
    let ran = scene.path("ran");
    let note = format!(
        "echo \"{name} $* $SYSGENID_STAGE\" >> {}\n{script}",
        ran.display()
    );
    scene.hook(directory, name, &note);
}

/// What the hooks of others were called with, and between which of the agent's own.
fn ran(scene: &Scene) -> Vec<String> {
    let ran = scene.ran();
    // Each notes first what those of the agent note.
    let of_others =
        |line: &String| line.contains("-db ") || line.contains("-log ") || line.contains("-nic ");
    let noted = |line: &String| !of_others(line) || line.starts_with(|c: char| c.is_ascii_digit());
    let short = |line: String| match of_others(&line) {
        true => line,
        false => line.split(' ').take(2).collect::<Vec<_>>().join(" "),
    };
    ran.into_iter().filter(noted).map(short).collect()
}

const BEFORE: [&str; 5] = [
    "quiesce 20-b",
    "quiesce 10-a",
    "50-nic pre suspend quiesce",
    "30-db freeze quiesce",
    "40-log freeze quiesce",
];

fn after(stage: &str) -> [String; 3] {
    ["30-db thaw", "40-log thaw", "50-nic post suspend"].map(|call| format!("{call} {stage}"))
}

#[test]
fn they_are_last_before_the_snapshot_and_first_after_it() {
    let (scene, options) = scene();
    scene.follow(&options, asked(Host::Original));
    let [db, log, nic] = &after("resume");
    let resumed = [db, log, nic, "resume 10-a", "resume 20-b"];
    assert_eq!(ran(&scene), [BEFORE, resumed].concat());
    assert!(!scene.mark().is_set());
}

#[test]
fn in_a_clone_they_come_before_its_identity_and_once() {
    let (scene, options) = scene();
    let watcher = scene.follow(&options, asked(Host::Clone(5)));
    let [db, log, nic] = &after("identity");
    let adapted = [
        db,
        log,
        nic,
        "identity 10-a",
        "identity 20-b",
        "service 10-a",
        "service 20-b",
        "resume 10-a",
        "resume 20-b",
    ];
    assert_eq!(ran(&scene), [&BEFORE[..], &adapted].concat());
    assert_eq!(watcher.told.take(), [3, 5]);
}

#[test]
fn without_a_snapshot_that_was_asked_for_they_are_not_run() {
    let (scene, options) = scene();
    let watcher = Fake::new(3, u32::MAX);
    watcher.begin(5);
    scene.follow(&options, watcher);
    assert!(
        !ran(&scene)
            .iter()
            .any(|ran| ran.contains("thaw") || ran.contains("post"))
    );
}

#[test]
fn one_that_fails_or_hangs_before_is_a_refusal_and_all_are_told_to_let_go() {
    for (script, reason) in [
        ("[ $1 != freeze ]", Reason::HookFailed),
        ("[ $1 != freeze ] || exec sleep 1000", Reason::HookHung),
    ] {
        let (scene, options) = scene();
        held(&scene, "freeze.d", "30-db", script);
        let limit = match reason {
            Reason::HookHung => Duration::from_secs(8),
            _ => LIMIT,
        };
        let watcher = Fake::new(3, u32::MAX).asked(limit, Host::Original);
        let watcher = scene.follow(&options, watcher);
        let [db, log, nic] = &after("resume");
        let resumed = [db, log, nic, "resume 10-a", "resume 20-b"];
        assert_eq!(ran(&scene), [&BEFORE[..4], &resumed].concat());
        assert_eq!(watcher.refused.take(), [reason]);
    }
}

#[test]
fn one_that_does_not_let_go_is_told_again_until_it_does() {
    for host in [Host::Original, Host::Clone(5)] {
        let (scene, options) = scene();
        let once = scene.path("once");
        let script = format!(
            "[ $1 = freeze ] || [ -e {0} ] || {{ touch {0}; exit 1; }}",
            once.display()
        );
        held(&scene, "freeze.d", "30-db", &script);
        let watcher = scene.follow(&format!("{options} --require-success"), asked(host));
        let thawed = ran(&scene)
            .iter()
            .filter(|ran| ran.starts_with("30-db thaw"))
            .count();
        assert_eq!(thawed, 2);
        assert!(!scene.mark().is_set());
        let told = watcher.told.take();
        assert_eq!(
            told,
            if host == Host::Original {
                vec![3]
            } else {
                vec![3, 5]
            }
        );
    }
}

#[test]
fn the_next_agent_tells_them_to_let_go_if_a_former_one_could_not() {
    let (scene, options) = scene();
    scene.mark().set().unwrap();
    scene.follow(&options, Fake::new(3, u32::MAX));
    let [db, log, nic] = &after("resume");
    assert_eq!(ran(&scene), [db, log, nic, "resume 10-a", "resume 20-b"]);
}

#[test]
fn a_directory_that_is_named_has_to_be_there_and_to_be_trusted() {
    use clap::Parser;
    let (scene, options) = scene();
    let checked = |options: &str| {
        let line = format!("sysgenctl agent {options}");
        let cli = crate::args::Cli::try_parse_from(line.split_whitespace()).unwrap();
        match &cli.command {
            crate::args::Command::Agent(args) => super::check(args),
            _ => panic!("not an agent"),
        }
    };
    checked(&options).unwrap();
    checked("--system-sleep /nonexistent").unwrap_err();
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(scene.path("etc/freeze.d"), mode).unwrap();
    checked(&options).unwrap_err();
}
