//! Tests of the agent in snapshots in which programs do not freeze, park or go on, or the kernel is slow.

use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use sysgenid::{Prepared, Reason};

use super::fake::{Fake, Host};
use super::snapshot_test::{LIMIT, Scene, all_prepared, asked};

#[test]
fn one_that_does_not_freeze_thaws_no_other_and_participants_are_waited_for_again() {
    let scene = Rc::new(Scene::new());
    scene.group("late.slice", "frozen 0\n");
    let watcher = asked(Host::Clone(5));
    let looked = Rc::clone(&scene);
    *watcher.at_fork.borrow_mut() = Some(Box::new(move || {
        assert!(looked.is_frozen() && !looked.has_frozen("late.slice"));
    }));
    let watcher = scene.follow("--freeze-limit 50ms", watcher);
    let expected = Prepared::QUIESCED | Prepared::PARKED;
    assert_eq!(watcher.prepared.get(), Some(expected));
    assert_eq!(watcher.parkings.get(), 2);
    assert_eq!(scene.ran()[2..4], ["identity 10-a 1", "identity 20-b 1"]);
    assert!(!scene.is_frozen() && !scene.mark().is_set());
}

#[test]
fn who_has_parked_and_goes_on_before_the_fork_point_is_waited_for_thawed() {
    let scene = Scene::new();
    let watcher = asked(Host::Original);
    watcher.gone_on.set(3);
    let watcher = scene.follow("", watcher);
    assert_eq!(watcher.prepared.get(), Some(all_prepared()));
    assert_eq!(watcher.parkings.get(), 4);
    assert_eq!(watcher.refused.take(), []);
    assert_eq!(scene.ran().last().unwrap(), "resume 20-b 0 original");
}

#[test]
fn who_never_stays_parked_is_in_the_end_not_told_as_parked() {
    let scene = Scene::new();
    let watcher = Fake::new(3, u32::MAX).asked(Duration::from_secs(4), Host::Original);
    watcher.gone_on.set(u32::MAX);
    let watcher = scene.follow("--freeze off", watcher);
    assert_eq!(watcher.prepared.get(), Some(Prepared::QUIESCED));
    assert_eq!(watcher.refused.take(), []);
}

#[test]
fn who_need_not_park_is_waited_for_and_does_not_hinder() {
    let scene = Scene::new();
    let limit = Duration::from_secs(4);
    let watcher = Fake::new(3, u32::MAX).asked(limit, Host::Original);
    watcher.only_required.set(true);
    let start = Instant::now();
    let watcher = scene.follow("", watcher);
    // But for what is kept for the rest.
    assert!(start.elapsed() >= limit - limit / 4);
    let expected = Prepared::QUIESCED | Prepared::FROZEN;
    assert_eq!(watcher.prepared.get(), Some(expected));
    assert_eq!(watcher.refused.take(), []);
}

#[test]
fn what_the_kernel_is_not_ready_to_hear_is_said_again() {
    let scene = Scene::new();
    let watcher = asked(Host::Clone(5));
    watcher.unfinished.set(3);
    let watcher = scene.follow("", watcher);
    // The first word is that of the generation at its start.
    assert_eq!(
        (watcher.identities.take(), watcher.told.take()),
        (vec![5], vec![3, 5])
    );
}

#[test]
fn programs_of_a_clone_are_thawed_also_if_the_agent_sleeps_in_the_kernel() {
    let scene = Rc::new(Scene::new());
    let watcher = asked(Host::Clone(5));
    let looked = Rc::clone(&scene);
    *watcher.at_identity.borrow_mut() = Some(Box::new(move || {
        assert!(looked.is_frozen());
        let end = Instant::now() + LIMIT / 2;
        while looked.is_frozen() {
            assert!(Instant::now() < end, "frozen for ever");
            thread::sleep(Duration::from_millis(20));
        }
    }));
    let watcher = scene.follow("--frozen-limit 2s", watcher);
    assert_eq!(watcher.told.take(), [3, 5]);
}

#[test]
fn services_that_do_not_go_on_are_tried_again_and_a_clone_is_not_ready_before() {
    for (host, outcome, told) in [
        (Host::Original, "original", vec![3]),
        (Host::Clone(5), "clone", vec![3, 5]),
    ] {
        let scene = Rc::new(Scene::new());
        let once = scene.path("once");
        let script = format!("[ -e {0} ] || {{ touch {0}; exit 1; }}", once.display());
        scene.hook("resume.d", "10-a", &script);
        let watcher = scene.follow("", asked(host));
        let ran = scene.ran();
        let resumed: Vec<_> = ran.iter().filter(|ran| ran.starts_with("resume")).collect();
        let expected = ["10-a", "20-b", "10-a", "20-b"];
        let expected = expected.map(|name| format!("resume {name} 0 {outcome}"));
        assert_eq!(resumed, expected.iter().collect::<Vec<_>>());
        assert_eq!(watcher.told.take(), told);
        assert!(!scene.mark().is_set());
    }
}

#[test]
fn while_services_do_not_go_on_the_host_is_not_told_and_no_snapshot_is_taken() {
    let scene = Scene::new();
    scene.hook("resume.d", "10-a", "exit 1");
    let watcher = scene.follow("", asked(Host::Clone(5)));
    assert_eq!(watcher.told.take(), [3]);
    assert!(scene.mark().is_set());
    // As the next agent, in the generation that has been acknowledged.
    let watcher = scene.follow("", Fake::new(5, u32::MAX).asked(LIMIT, Host::Original));
    assert_eq!(watcher.told.take(), Vec::<u32>::new());
    assert_eq!(watcher.refused.take(), [Reason::Busy]);
    assert!(scene.mark().is_set());
    scene.hook("resume.d", "10-a", "");
    let watcher = scene.follow("", Fake::new(5, u32::MAX));
    assert_eq!(watcher.told.take(), [5]);
    assert!(!scene.mark().is_set());
}

#[test]
fn the_time_of_a_frozen_clone_begins_with_the_clone() {
    let scene = Scene::new();
    let watcher = asked(Host::Clone(5));
    // The host takes as long for the snapshot as the clone may stay frozen.
    *watcher.at_fork.borrow_mut() = Some(Box::new(|| thread::sleep(Duration::from_secs(5))));
    let watcher = scene.follow("--frozen-limit 5s", watcher);
    assert_eq!(watcher.identities.take(), [5]);
    assert_eq!(scene.ran()[2..4], ["identity 10-a 1", "identity 20-b 1"]);
}

#[test]
fn no_hook_is_begun_when_the_time_of_a_frozen_clone_is_over() {
    let scene = Scene::new();
    scene.hook("adapt.d/identity", "10-a", "exec sleep 1000");
    let watcher = scene.follow("--frozen-limit 500ms", asked(Host::Clone(5)));
    assert!(
        !scene
            .ran()
            .iter()
            .any(|ran| ran.starts_with("identity 20-b"))
    );
    assert_eq!(watcher.identities.take(), Vec::<u32>::new());
    assert_eq!(watcher.told.take(), [3]);
    assert!(!scene.is_frozen());
}
