//! Tests of what a clone may believe of its runtime.

use super::lambda_test::{LIMIT, NEXT, RESTORE, SHORT, Scene};
use super::*;

impl Scene {
    fn clone_in(&self, new: u32) -> Result<(), String> {
        let turn = Turn::within(new, SHORT);
        let after = self.lambda.after(Resumed::Clone, &turn);
        after.map_err(|error| error.to_string())
    }

    fn adapted_in(&self, new: u32) {
        let turn = Turn::within(new, LIMIT);
        self.lambda.after(Resumed::Clone, &turn).unwrap();
    }

    /// Until its connection has ended, the runtime has a place.
    fn nobody_waits(&self) {
        let gone = |state: &mut State| state.waiting.is_none().then_some(());
        self.lambda.shared.wait(LIMIT, gone).unwrap();
    }
}

#[test]
fn a_runtime_that_ends_between_the_two_is_missed_in_the_clone() {
    let scene = Scene::new("");
    drop(scene.waiting());
    scene.nobody_waits();
    let error = scene.clone_in(6).unwrap_err();
    let missed = "a runtime waited before the snapshot, but none has come since";
    assert!(error.ends_with(missed), "{error}");
    // Whoever serves without a restore is not that one.
    let next = scene.send(NEXT, b"");
    scene.clone_in(6).unwrap_err();
    drop(next);
    assert_eq!(scene.ask(RESTORE, "").0, 200);
    scene.clone_in(6).unwrap_err();
    let _next = scene.send(NEXT, b"");
    scene.adapted_in(6);
}

#[test]
fn a_runtime_that_ends_before_an_original_goes_on_is_not_missed_in_a_later_generation() {
    for outcome in [Resumed::Original, Resumed::CalledOff] {
        let scene = Scene::new("");
        drop(scene.waiting());
        scene.nobody_waits();
        scene.after(outcome, LIMIT).unwrap();
        scene.clone_in(6).unwrap();
    }
}

#[test]
fn a_runtime_that_was_let_go_once_is_not_taken_for_adapted_to_a_later_generation() {
    let scene = Scene::new("");
    let runtime = scene.waiting();
    scene.clone_in(6).unwrap_err();
    assert_eq!(runtime.answer().0, 200);
    let restored = "the runtime was restored in generation 6, and its contract has no way to ask \
                    it once more: start it anew";
    // Its hooks still run when the next generation begins.
    assert_eq!(scene.clone_in(7).unwrap_err(), restored);
    let next = scene.send(NEXT, b"");
    assert!(!next.is_answered());
    assert_eq!(scene.clone_in(7).unwrap_err(), restored);
    // So the next agent says.
    let scene = Scene::in_machine(scene.dir, "");
    assert_eq!(scene.clone_in(7).unwrap_err(), restored);
    assert_eq!(scene.ask(RESTORE, "").0, 200);
    let hung = scene.clone_in(7).unwrap_err();
    assert!(hung.contains("has not asked for an event since"), "{hung}");
    let _next = scene.send(NEXT, b"");
    scene.adapted_in(7);
}
