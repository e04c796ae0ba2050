//! Snapshots that the guest asks for: the tiny guest asks when it is told to, and says what it hears.

use std::fs;
use std::path::Path;

use serde_json::json;
use vmgenie_api::wire::{
    CooperativeCreate, SelfSnapshot, SelfSnapshotTaken, SnapshotCreate, SnapshotLoad,
};
use vmgenie_tests::http::{ok, refused_with};
use vmgenie_tests::tiny::{self, LIMIT, generation};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm};

/// A guest that may ask as `option` says, and the directory that its snapshots go to.
struct Scene {
    vm: Vm,
    place: Snapshot,
}

impl Scene {
    fn new(options: &str) -> Self {
        let place = Snapshot::new();
        let option = format!("--self-snapshot={}{options}", place.dir().display());
        let boot = Boot::new(Guest::Tiny).cmdline("fork=0 ask").option(&option);
        Self {
            vm: tiny::boot_with(boot),
            place,
        }
    }

    /// Has the guest ask under this tag, and expects it to be told so.
    fn asks(&mut self, tag: &str, told: &str) {
        self.vm.console.send(tag);
        let before = self.vm.console.wait_for(told, LIMIT);
        assert_eq!(before, "", "after {tag:?}");
        assert_eq!(ok(&mut self.vm.client, "GET /", "")["state"], "Running");
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.place.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn taken(&mut self) -> Vec<SelfSnapshotTaken> {
        self.vm.client.self_snapshots().unwrap().taken
    }

    /// What was restored from a snapshot of the guest's; it may have such of its own, too.
    fn restored(&self, number: u32, own: Option<&Path>) -> Vm {
        let from = self.place.dir().join(number.to_string());
        let mut vm = Vm::empty();
        if let Some(directory) = own {
            let own = SelfSnapshot::into(directory.to_owned());
            vm.client.set_self_snapshot(&own).unwrap();
        }
        let request = SnapshotLoad {
            resume_vm: true,
            ..SnapshotLoad::of(from.join("state"), from.join("memory"))
        };
        vm.client.load_snapshot(&request).unwrap();
        vm
    }
}

#[test]
fn a_guest_that_may_gets_a_snapshot_and_its_clone_knows_that_it_is_one() {
    let mut scene = Scene::new(",count=2,interval=0s");
    let before = generation(&mut scene.vm);
    assert_eq!(scene.names(), Vec::<String>::new());
    scene.asks("a", "o");
    scene.asks("b", "o");
    assert_eq!(generation(&mut scene.vm).raw, before.raw);
    assert_eq!(scene.names(), ["1", "2"]);
    let taken = |number, tag: char| SelfSnapshotTaken {
        number,
        tag: u32::from(tag),
    };
    assert_eq!(scene.taken(), [taken(1, 'a'), taken(2, 'b')]);
    for number in [1, 2] {
        let mut clone = scene.restored(number, None);
        assert_eq!(clone.console.wait_for("c", LIMIT), "");
        let now = generation(&mut clone);
        assert!(now.raw != before.raw && now.driver.adapted, "{now:?}");
        // Its VMM was told nothing of it.
        clone.console.send("c");
        assert_eq!(clone.console.wait_for("r", LIMIT), "");
    }
    // It has had them all; the clones were not counted.
    scene.asks("c", "r");
    // One whose VMM lets it, too.
    let mine = Snapshot::new();
    let mut clone = scene.restored(2, Some(mine.dir()));
    assert_eq!(clone.console.wait_for("c", LIMIT), "");
    clone.console.send("d");
    assert_eq!(clone.console.wait_for("o", LIMIT), "");
    let taken = clone.client.self_snapshots().unwrap().taken;
    assert_eq!(taken.len(), 1);
    assert_eq!(scene.names(), ["1", "2"]);
    assert!(mine.dir().join("1/state").is_file());
}

#[test]
fn a_guest_that_may_not_or_asks_too_soon_is_refused_and_goes_on() {
    let mut without = tiny::boot("fork=0 ask");
    for _ in 0..3 {
        without.console.send("a");
        assert_eq!(without.console.wait_for("r", LIMIT), "");
    }
    assert_eq!(
        ok(&mut without.client, "GET /self-snapshot", ""),
        json!({ "taken": [] })
    );
    let late = json!({ "directory": "/nowhere" }).to_string();
    let started = "not supported after starting the microVM";
    refused_with(&mut without.client, "PUT /self-snapshot", late, started);
    // As any other guest it is snapshotted when its host asks.
    let snapshot = Snapshot::new();
    without
        .client
        .create_snapshot(&SnapshotCreate {
            cooperative: Some(CooperativeCreate::default()),
            ..snapshot.request()
        })
        .unwrap();
    assert_eq!(without.console.wait_for("o", LIMIT), "");

    let mut soon = Scene::new(",count=9,interval=10m");
    soon.asks("a", "o");
    for tag in ["b", "c"] {
        soon.asks(tag, "r");
    }
    assert_eq!(soon.names(), ["1"]);
    assert_eq!(soon.taken().len(), 1);
}

#[test]
fn a_snapshot_that_cannot_be_written_is_called_off_and_the_guest_goes_on() {
    let mut scene = Scene::new(",count=1,interval=0s");
    let taken = scene.place.dir().join("1");
    fs::create_dir(&taken).unwrap();
    scene.asks("a", "a");
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 0);
    fs::remove_dir(&taken).unwrap();
    // What had failed does not count.
    scene.asks("b", "o");
    assert!(taken.join("state").is_file());
    assert_eq!(scene.taken().len(), 1);
    scene.asks("c", "r");
}

/// A request of somebody else's and one of the guest's own are two, in whichever order they come.
#[test]
fn a_client_takes_snapshots_of_a_guest_that_asks_itself() {
    let mut scene = Scene::new(",count=100,interval=0s");
    let snapshot = Snapshot::new();
    for round in 1..=20 {
        scene.asks("a", "o");
        scene
            .vm
            .client
            .create_snapshot(&SnapshotCreate {
                cooperative: Some(CooperativeCreate::default()),
                ..snapshot.request()
            })
            .unwrap();
        assert_eq!(scene.vm.console.wait_for("o", LIMIT), "");
        assert_eq!(scene.taken().len(), round);
    }
}
