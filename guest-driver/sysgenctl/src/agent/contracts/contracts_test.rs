//! Tests of contracts in the agent, with some that note that they were called.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;

use super::*;
use crate::agent::fake::{Fake, Host};
use crate::agent::snapshot_test::{LIMIT, Scene, asked};

/// What is too short for what never comes.
const SHORT: Duration = Duration::from_millis(300);

/// What a contract does when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Kept,
    Fails,
    Hangs(Duration),
}

/// Notes its calls among those of the hooks.
struct Noting {
    name: &'static str,
    file: PathBuf,
    before: Way,
    after: Rc<Cell<Way>>,
}

impl Noting {
    fn note(&self, call: &str) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)
            .unwrap();
        writeln!(file, "{} {call}", self.name).unwrap();
    }

    fn go(&self, way: Way, turn: &Turn<'_>) -> Result<(), ContractError> {
        match way {
            Way::Kept => Ok(()),
            Way::Fails => Err(ContractError::Failed("on purpose".into())),
            Way::Hangs(limit) => turn.at_most(limit).wait("nobody comes", |slice| {
                std::thread::sleep(slice);
                None
            }),
        }
    }
}

impl Contract for Noting {
    fn name(&self) -> &'static str {
        self.name
    }

    fn before(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        self.note("before");
        self.go(self.before, turn)
    }

    fn adapting(&self, new: u32) {
        self.note(&format!("adapting {new}"));
    }

    fn after(&self, outcome: Resumed, turn: &Turn<'_>) -> Result<(), ContractError> {
        self.note(&format!("after {}", outcome.name()));
        self.go(self.after.get(), turn)
    }

    fn end(&self, _: &Turn<'_>) -> Result<(), ContractError> {
        self.note("end");
        Ok(())
    }
}

/// Two contracts; the second one goes these ways.
fn two(scene: &Scene, before: Way, after: Way) -> (Vec<Box<dyn Contract>>, Rc<Cell<Way>>) {
    let way = Rc::new(Cell::new(after));
    let contract = |name, before, after: &Rc<Cell<Way>>| -> Box<dyn Contract> {
        Box::new(Noting {
            name,
            file: scene.path("ran"),
            before,
            after: Rc::clone(after),
        })
    };
    let kept = Rc::new(Cell::new(Way::Kept));
    let both = vec![
        contract("first", Way::Kept, &kept),
        contract("second", before, &way),
    ];
    (both, way)
}

/// How often the second one was to let its programs go on in a clone.
fn tries(scene: &Scene) -> usize {
    let ran = scene.ran();
    ran.iter()
        .filter(|ran| *ran == "second after clone")
        .count()
}

const QUIESCED: [&str; 4] = [
    "second before",
    "first before",
    "quiesce 20-b 0",
    "quiesce 10-a 0",
];
const ADAPTED: [&str; 8] = [
    "identity 10-a 1",
    "identity 20-b 1",
    "first adapting 5",
    "second adapting 5",
    "service 10-a 0",
    "service 20-b 0",
    "first after clone",
    "second after clone",
];

#[test]
fn contracts_come_first_and_backwards_before_and_last_after() {
    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Kept, Way::Kept);
    scene.follow_with("", asked(Host::Original), contracts);
    let resumed = [
        "resume 10-a 0 original",
        "resume 20-b 0 original",
        "first after original",
        "second after original",
    ];
    assert_eq!(scene.ran(), [QUIESCED, resumed].concat());

    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Kept, Way::Kept);
    let watcher = scene.follow_with("--require-success", asked(Host::Clone(5)), contracts);
    let resumed = ["resume 10-a 0 clone", "resume 20-b 0 clone"];
    assert_eq!(scene.ran(), [&QUIESCED[..], &ADAPTED, &resumed].concat());
    assert_eq!(watcher.told.take(), [3, 5]);
}

#[test]
fn a_contract_that_fails_or_hangs_before_is_a_refusal_and_all_are_let_go_on() {
    for (way, reason) in [
        (Way::Fails, Reason::HookFailed),
        (Way::Hangs(SHORT), Reason::HookHung),
    ] {
        let scene = Scene::new();
        let (contracts, _) = two(&scene, way, Way::Kept);
        let watcher = scene.follow_with("", asked(Host::Original), contracts);
        let expected = [
            "second before",
            "resume 10-a 0 called-off",
            "resume 20-b 0 called-off",
            "first after called-off",
            "second after called-off",
        ];
        assert_eq!(scene.ran(), expected);
        assert_eq!(watcher.refused.take(), [reason]);
        assert!(!scene.mark().is_set());
    }
}

#[test]
fn a_contract_that_is_not_kept_in_a_clone_is_tried_again_and_the_host_not_told() {
    for way in [Way::Fails, Way::Hangs(SHORT)] {
        let scene = Scene::new();
        let (contracts, _) = two(&scene, Way::Kept, way);
        let watcher = Fake::new(3, u32::MAX);
        watcher.begin(5);
        let watcher = scene.follow_with("--require-success", watcher, contracts);
        assert!(tries(&scene) > 1);
        assert_eq!(
            (watcher.told.take(), watcher.acknowledged.get()),
            (vec![], 3)
        );
    }
}

#[test]
fn a_contract_that_is_kept_at_last_makes_a_clone_ready() {
    let scene = Scene::new();
    let (contracts, way) = two(&scene, Way::Kept, Way::Fails);
    let watcher = asked(Host::Clone(5));
    let identities = Cell::new(0);
    *watcher.at_identity.borrow_mut() = Some(Box::new(move || {
        identities.set(identities.get() + 1);
        if identities.get() == 2 {
            way.set(Way::Kept);
        }
    }));
    let watcher = scene.follow_with("--require-success", watcher, contracts);
    assert_eq!((tries(&scene), watcher.told.take()), (2, vec![3, 5]));
    assert!(!scene.mark().is_set());
}

#[test]
fn without_required_success_programs_go_on_and_the_host_is_not_told() {
    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Kept, Way::Fails);
    let watcher = scene.follow_with("", asked(Host::Clone(5)), contracts);
    assert_eq!(
        (watcher.told.take(), watcher.acknowledged.get()),
        (vec![3], 5)
    );
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 clone");
}

#[test]
fn a_contract_that_fails_in_the_original_is_tried_again_before_it_is_cloned() {
    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Kept, Way::Fails);
    scene.follow_with("", asked(Host::Original), contracts);
    assert!(scene.mark().is_set());
    let watcher = Fake::new(3, u32::MAX).asked(LIMIT, Host::Original);
    let (contracts, _) = two(&scene, Way::Kept, Way::Fails);
    let watcher = scene.follow_with("", watcher, contracts);
    assert_eq!(watcher.refused.take(), [Reason::Busy]);
}

#[test]
fn a_wait_ends_when_the_request_is_withdrawn_overtaken_or_the_agent_is_to_end() {
    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Hangs(LIMIT), Way::Kept);
    let watcher = asked(Host::Original);
    watcher
        .withdrawn
        .set(Some(Instant::now() + Duration::from_secs(2)));
    let watcher = scene.follow_with("--limit 1h", watcher, contracts);
    assert_eq!(watcher.refused.take(), []);
    assert_eq!(scene.ran().last().unwrap(), "second after called-off");

    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Hangs(LIMIT), Way::Kept);
    let watcher = asked(Host::Original);
    watcher
        .later
        .set(Some((Instant::now() + Duration::from_secs(2), 5)));
    let watcher = scene.follow_with("--limit 1h", watcher, contracts);
    assert_eq!(watcher.refused.take(), [Reason::Busy]);
    assert_eq!(watcher.told.take(), [3, 5]);

    let scene = Scene::new();
    let (contracts, _) = two(&scene, Way::Hangs(LIMIT), Way::Kept);
    let watcher = asked(Host::Original);
    let _blocked = Signals::block().unwrap();
    watcher.end();
    let watcher = scene.follow_with("--limit 1h", watcher, contracts);
    assert_eq!(watcher.refused.take(), [Reason::AgentGone]);
    assert_eq!(scene.ran().last().unwrap(), "second after called-off");
}
