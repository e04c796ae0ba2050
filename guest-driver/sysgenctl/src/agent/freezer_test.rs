//! The freezer on directories that look like control groups, and on real ones where this machine has them.

use std::process::{Child, Command, Stdio};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// A hierarchy in which nothing happens by itself.
struct Scene(tempfile::TempDir);

impl Scene {
    fn new(groups: &[&str]) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        fs::create_dir(scene.0.path().join("run")).unwrap();
        fs::create_dir(scene.root()).unwrap();
        fs::write(scene.root().join("cgroup.procs"), "").unwrap();
        for group in groups {
            scene.add(group, "0", "frozen 1");
        }
        scene
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("cgroup")
    }

    /// Adds a group, and those above it.
    fn add(&self, group: &str, freeze: &str, events: &str) {
        let mut path = self.root();
        for part in Path::new(group) {
            path.push(part);
            if !path.exists() {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("cgroup.freeze"), "0\n").unwrap();
                fs::write(path.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
            }
        }
        fs::write(path.join("cgroup.freeze"), format!("{freeze}\n")).unwrap();
        fs::write(
            path.join("cgroup.events"),
            format!("populated 1\n{events}\n"),
        )
        .unwrap();
    }

    fn freezer(&self, kept: &[&str]) -> Freezer {
        Freezer {
            kept: kept.iter().map(PathBuf::from).collect(),
            ..Freezer::at(self.root(), &self.0.path().join("run"))
        }
    }

    fn is_frozen(&self, group: &str) -> bool {
        has_line(&self.root().join(group), "cgroup.freeze", "1")
    }

    fn record(&self) -> Option<String> {
        fs::read_to_string(self.0.path().join("run").join(RECORD)).ok()
    }
}

const GROUPS: [&str; 6] = [
    "init.scope",
    "system.slice/dbus.service",
    "system.slice/web.service/worker",
    "system.slice/systemd-journald.service",
    "user.slice/user-0.slice/session-1.scope",
    "sysgenid.slice/sysgenctl-agent.service/hook",
];

#[test]
fn all_but_what_is_kept_is_frozen_and_thawed() {
    let scene = Scene::new(&GROUPS);
    let mut kept = KEPT.to_vec();
    kept.push("sysgenid.slice");
    let freezer = scene.freezer(&kept);
    assert_eq!(freezer.freeze(LIMIT, &|| false).unwrap().groups, 2);
    let frozen = |scene: &Scene| {
        let all = [
            "init.scope",
            "system.slice",
            "system.slice/dbus.service",
            "system.slice/systemd-journald.service",
            "system.slice/web.service",
            "user.slice",
            "sysgenid.slice",
            "sysgenid.slice/sysgenctl-agent.service",
        ];
        all.into_iter()
            .filter(|group| scene.is_frozen(group))
            .collect::<Vec<_>>()
    };
    assert_eq!(frozen(&scene), ["system.slice/web.service", "user.slice"]);
    assert_eq!(freezer.thaw().unwrap(), 2);
    assert_eq!(frozen(&scene), Vec::<&str>::new());
    assert_eq!(scene.record(), None);
    assert_eq!(freezer.thaw().unwrap(), 0);
}

#[test]
fn what_somebody_else_has_frozen_stays_frozen() {
    let scene = Scene::new(&["a.slice"]);
    scene.add("paused.scope", "1", "frozen 1");
    let freezer = scene.freezer(&[]);
    freezer.freeze(LIMIT, &|| false).unwrap();
    assert!(scene.is_frozen("a.slice") && scene.is_frozen("paused.scope"));
    assert_eq!(freezer.thaw().unwrap(), 1);
    assert!(!scene.is_frozen("a.slice") && scene.is_frozen("paused.scope"));
}

#[test]
fn a_group_that_does_not_freeze_is_named_and_thawed_and_the_others_stay_frozen() {
    let scene = Scene::new(&["a.slice", "c.slice"]);
    scene.add("b.slice", "0", "frozen 0");
    scene.add("paused.scope", "1", "frozen 0");
    let freezer = scene.freezer(&[]);
    let mut frozen = freezer
        .freeze(Duration::from_millis(50), &|| false)
        .unwrap();
    frozen.late.sort();
    let late = [Path::new("b.slice"), Path::new("paused.scope")];
    assert_eq!(frozen.late, late);
    assert_eq!(frozen.groups, 2);
    assert!(scene.is_frozen("a.slice") && scene.is_frozen("c.slice"));
    // Nor is it thawed what somebody else freezes.
    assert!(!scene.is_frozen("b.slice") && scene.is_frozen("paused.scope"));
    // As another process, which has nothing but the record.
    scene.freezer(&[]).thaw().unwrap();
    assert!(!scene.is_frozen("a.slice") && !scene.is_frozen("c.slice"));
    assert!(scene.is_frozen("paused.scope"));
}

#[test]
fn the_wait_ends_when_it_is_called_off() {
    let scene = Scene::new(&[]);
    scene.add("b.slice", "0", "frozen 0");
    let error = scene.freezer(&[]).freeze(LIMIT, &|| true).unwrap_err();
    assert!(matches!(error, FreezeError::CalledOff), "{error}");
}

#[test]
fn a_group_that_is_made_anew_under_its_name_is_frozen_as_well() {
    let scene = Scene::new(&["a.slice"]);
    scene.add("b.slice", "0", "frozen 0");
    // Looked at while the freezer waits for the second one; the first may be waited for again.
    let looks = std::cell::Cell::new(0);
    let look = || {
        match looks.replace(looks.get() + 1) {
            0 => {
                fs::remove_dir_all(scene.root().join("a.slice")).unwrap();
                scene.add("a.slice", "0", "frozen 1");
                scene.add("b.slice", "1", "frozen 1");
            }
            looks => assert!(looks < 100),
        }
        false
    };
    scene.freezer(&[]).freeze(LIMIT, &look).unwrap();
    assert!(looks.get() > 0 && scene.is_frozen("a.slice") && scene.is_frozen("b.slice"));
    scene.freezer(&[]).thaw().unwrap();
    assert!(!scene.is_frozen("a.slice") && !scene.is_frozen("b.slice"));
}

#[test]
fn a_group_whose_name_is_no_text_is_thawed() {
    let scene = Scene::new(&["a.slice"]);
    let group = scene.root().join(OsStr::from_bytes(b"\xff.slice"));
    fs::rename(scene.root().join("a.slice"), &group).unwrap();
    assert_eq!(
        scene.freezer(&[]).freeze(LIMIT, &|| false).unwrap().groups,
        1
    );
    assert!(has_line(&group, "cgroup.freeze", "1"));
    assert_eq!(scene.freezer(&[]).thaw().unwrap(), 1);
    assert!(!has_line(&group, "cgroup.freeze", "1"));
}

#[test]
fn programs_in_the_root_group_cannot_be_frozen_and_nothing_is() {
    let scene = Scene::new(&["a.slice"]);
    // Our own, and one that has ended: no process has such a number.
    let spared = format!("{}\n{}\n", std::process::id(), u32::MAX);
    let parent = format!("{}\n", std::os::unix::process::parent_id());
    for (procs, expected) in [(spared, true), (parent, false)] {
        fs::write(scene.root().join("cgroup.procs"), procs).unwrap();
        let frozen = scene.freezer(&[]).freeze(LIMIT, &|| false).is_ok();
        assert_eq!((frozen, scene.is_frozen("a.slice")), (expected, expected));
        scene.freezer(&[]).thaw().unwrap();
    }
}

#[test]
fn what_cannot_be_thawed_stays_in_the_record_and_the_rest_is_thawed() {
    let scene = Scene::new(&["a.slice", "b.slice", "c.slice"]);
    let freezer = scene.freezer(&[]);
    freezer.freeze(LIMIT, &|| false).unwrap();
    let file = scene.root().join("b.slice/cgroup.freeze");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(freezer.thaw(), Err(FreezeError::Thaw(..))));
    assert!(!scene.is_frozen("a.slice") && !scene.is_frozen("c.slice"));
    assert_eq!(scene.record().as_deref(), Some("b.slice\n"));
    fs::remove_dir_all(scene.root().join("b.slice")).unwrap();
    assert_eq!(freezer.thaw().unwrap(), 0);
    assert_eq!(scene.record(), None);
}

#[test]
fn a_record_leads_nowhere_but_below_the_root() {
    let scene = Scene::new(&[]);
    fs::create_dir(scene.0.path().join("elsewhere")).unwrap();
    let elsewhere = scene.0.path().join("elsewhere/cgroup.freeze");
    fs::write(&elsewhere, "1\n").unwrap();
    let record = scene.0.path().join("run").join(RECORD);
    let absolute = scene.0.path().join("elsewhere");
    fs::write(&record, format!("../elsewhere\n{}\n", absolute.display())).unwrap();
    assert_eq!(scene.freezer(&[]).thaw().unwrap(), 0);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "1\n");
}

#[test]
fn a_slice_of_its_own_is_kept_whole_and_a_shared_one_is_not() {
    let of = |own: &str| own_slice(Path::new(own));
    let agent = "sysgenid.slice/sysgenctl-agent.service";
    assert_eq!(of(agent), Some("sysgenid.slice".into()));
    let old = "system.slice/sysgenctl-agent.service";
    assert_eq!(of(old), Some(old.into()));
    let by_hand = "user.slice/user-0.slice/session-1.scope";
    assert_eq!(of(by_hand), Some(by_hand.into()));
    assert_eq!(of(""), None);
}

/// A group of our own with a process in it, if this machine lets us have one.
fn real() -> Option<(PathBuf, Child)> {
    let root = Place::of_this_process()?
        .root
        .join(format!("sysgenctl-freezer-{}", std::process::id()));
    fs::create_dir(&root).ok()?;
    let group = root.join("a.slice");
    fs::create_dir(&group).ok()?;
    let script = format!(
        "echo 0 > {}; exec sleep 1000",
        group.join("cgroup.procs").display()
    );
    let mut command = Command::new("/bin/sh");
    let child = command
        .args(["-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    while !has_line(&group, "cgroup.events", "populated 1") {
        thread::sleep(LOOK);
    }
    Some((root, child))
}

#[test]
fn a_real_process_is_frozen_and_thawed() {
    let Some((root, mut child)) = real() else {
        // Not by `eprintln!`, which is kept from sight when a test passes.
        let _ = writeln!(
            io::stderr(),
            "needs the right to make control groups; left out"
        );
        return;
    };
    let run = tempfile::tempdir().unwrap();
    let freezer = Freezer::at(root.clone(), run.path());
    let group = root.join("a.slice");
    assert_eq!(freezer.freeze(LIMIT, &|| false).unwrap().groups, 1);
    assert!(has_line(&group, "cgroup.events", "frozen 1"));
    assert_eq!(freezer.thaw().unwrap(), 1);
    assert!(has_line(&group, "cgroup.events", "frozen 0"));
    child.kill().unwrap();
    child.wait().unwrap();
    for group in [&group, &root] {
        while fs::remove_dir(group).is_err() {
            thread::sleep(LOOK);
        }
    }
}
