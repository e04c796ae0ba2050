//! The cycle with every combination of up to three steps that do not go as they should.

use super::*;

/// All that a step may answer but success.
const AMISS: [Answer; 7] = [
    Answer::Clone,
    Answer::Partly,
    Answer::Unparked,
    Answer::Failed(Reason::Other),
    Answer::Withdrawn,
    Answer::Overtaken,
    Answer::Stopped,
];

/// The machine that a cycle is run on, as the steps leave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct World {
    /// All participants have parked, and no program was thawed since.
    parked: bool,
    frozen: bool,
    all_frozen: bool,
    /// Hooks of `quiesce.d` have run, and those of `resume.d` have not since.
    quiesced: bool,
    clone: bool,
    acknowledged: bool,
    identity_told: bool,
    /// The identity hooks have succeeded in the present generation.
    identity: bool,
    ready: bool,
    refused: u32,
    steps: Vec<(Step, Answer)>,
}

impl World {
    fn do_step(&mut self, step: Step, answer: Answer) {
        self.steps.push((step, answer));
        if step == Step::Fork {
            assert!(!self.clone, "one fork point in a cycle");
            self.clone |= answer == Answer::Clone;
        }
        let done = answer == Answer::Done;
        match step {
            Step::Quiesce => self.quiesced = true,
            Step::Park => {
                assert!(!self.all_frozen, "who is frozen cannot park");
                self.parked = done;
            }
            // A freezer that fails may have frozen some, and has woken some.
            Step::Freeze => {
                (self.frozen, self.all_frozen) = (true, done);
                self.parked &= done;
            }
            Step::Thaw => {
                (self.frozen, self.all_frozen) = (false, false);
                self.parked = false;
            }
            Step::Refuse(_) => self.refused += 1,
            Step::Identity => self.identity = done,
            Step::TellIdentity => {
                assert!(self.identity, "the host was told too early");
                self.identity_told = done;
            }
            Step::Service => assert!(!self.frozen, "hooks may need programs"),
            Step::Acknowledge => self.acknowledged = done,
            Step::Resume(_) => {
                assert!(self.quiesced && !self.frozen);
                assert!(!self.clone || self.acknowledged, "{self:?}");
                self.quiesced = !done;
            }
            Step::Ready => {
                assert!(!self.quiesced, "the host was told too early: {self:?}");
                self.ready = true;
            }
            Step::Fork | Step::Watchers => {}
        }
        if answer == Answer::Overtaken {
            (self.clone, self.acknowledged) = (true, false);
            (self.identity, self.identity_told) = (false, false);
        }
    }

    /// The host is told nothing before the fork point that is not so.
    fn check_prepared(&self, prepared: Prepared) {
        let told = |what| prepared | what == prepared;
        assert!(!told(Prepared::PARKED) || self.parked, "{self:?}");
        assert!(!told(Prepared::FROZEN) || self.all_frozen, "{self:?}");
        assert!(told(Prepared::QUIESCED) && self.quiesced);
    }

    /// What has to hold when a cycle has ended in whatever way.
    fn check_end(&self, next: Next) {
        assert!(!self.frozen, "{self:?}");
        let unadapted = self.clone && !self.acknowledged;
        if self.quiesced {
            assert!(unadapted || next == Next::Quiesced, "{self:?}");
        }
        match next {
            Next::Retry => assert!(unadapted, "{self:?}"),
            Next::Quiesced => assert!(self.quiesced && !self.ready, "{self:?}"),
            Next::Over | Next::Step(_) => {}
        }
    }
}

/// Runs the cycle with each combination of at most `faults` answers that are amiss, and calls `ended` with
/// the world of each.
fn explore(cycle: Cycle, world: World, faults: u32, ended: &mut dyn FnMut(&World, Next)) {
    let step = cycle.step();
    let answers = AMISS.iter().filter(|_| faults > 0).copied();
    for answer in answers.chain([Answer::Done]) {
        let (mut cycle, mut world) = (cycle.clone(), world.clone());
        if step == Step::Fork {
            world.check_prepared(cycle.prepared());
        }
        world.do_step(step, answer);
        assert!(world.steps.len() < 60, "no end: {world:?}");
        let left = faults - u32::from(answer != Answer::Done);
        match cycle.next(answer) {
            Next::Step(_) => explore(cycle, world, left, ended),
            next => ended(&world, next),
        }
    }
}

const POLICIES: [Freeze; 3] = [Freeze::Off, Freeze::BestEffort, Freeze::Required];

fn cycles() -> impl Iterator<Item = Cycle> {
    POLICIES.into_iter().flat_map(|freeze| {
        [true, false]
            .into_iter()
            .map(move |success| Cycle::asked(freeze, success))
    })
}

#[test]
fn whatever_goes_amiss_nothing_stays_frozen_and_what_was_quiesced_is_resumed() {
    let mut ends = 0;
    for cycle in cycles() {
        explore(cycle, World::default(), 3, &mut |world, next| {
            world.check_end(next);
            ends += 1;
        });
    }
    assert!(ends > 10_000, "{ends}");
}

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_what_the_next_one_sets_right() {
    let mut kills = 0;
    for cycle in cycles() {
        // Each prefix of each run with one fault is a place to be killed.
        explore(cycle, World::default(), 1, &mut |world, _| {
            for end in 0..=world.steps.len() {
                kills += 1;
                resurrect(&world.steps[..end]);
            }
        });
    }
    assert!(kills > 1_000, "{kills}");
}

/// What the unit and the next agent do after these steps.
fn resurrect(steps: &[(Step, Answer)]) {
    let mut world = World::default();
    for (step, answer) in steps {
        world.do_step(*step, *answer);
    }
    // ExecStopPost=.
    world.frozen = false;
    let due = world.clone && !world.acknowledged;
    let mut cycle = match (due, world.quiesced) {
        (true, quiesced) => Cycle::generation(true, quiesced),
        (false, true) => Cycle::left_quiesced(Resumed::CalledOff, false),
        (false, false) => return,
    };
    // The mark of the former agent says no more than that hooks have run.
    world.steps.clear();
    loop {
        world.do_step(cycle.step(), Answer::Done);
        if cycle.next(Answer::Done) == Next::Over {
            break;
        }
    }
    assert!(!world.quiesced && (!due || world.ready), "{world:?}");
}

/// The steps of a run in which all succeeds but what is named. A step that is run again succeeds.
fn steps(mut cycle: Cycle, amiss: &[(Step, Answer)]) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        let step = cycle.step();
        steps.push(step);
        let answer = amiss.iter().find(|(at, _)| *at == step);
        let answer = answer.map_or(Answer::Done, |(_, answer)| *answer);
        if !matches!(cycle.next(answer), Next::Step(_)) {
            return steps;
        }
    }
}

#[test]
fn the_original_is_thawed_and_resumed() {
    let expected = [
        Step::Quiesce,
        Step::Park,
        Step::Freeze,
        Step::Fork,
        Step::Thaw,
        Step::Resume(Resumed::Original),
    ];
    assert_eq!(steps(Cycle::asked(Freeze::BestEffort, true), &[]), expected);
}

#[test]
fn a_clone_is_another_machine_before_its_programs_run() {
    let cycle = Cycle::asked(Freeze::Required, true);
    let expected = [
        Step::Quiesce,
        Step::Park,
        Step::Freeze,
        Step::Fork,
        Step::Identity,
        Step::TellIdentity,
        Step::Thaw,
        Step::Service,
        Step::Acknowledge,
        Step::Watchers,
        Step::Resume(Resumed::Clone),
        Step::Ready,
    ];
    assert_eq!(steps(cycle, &[(Step::Fork, Answer::Clone)]), expected);
}

#[test]
fn a_generation_without_a_fork_point_has_both_stages_and_the_word_to_the_host_in_between() {
    let expected = [
        Step::Identity,
        Step::TellIdentity,
        Step::Service,
        Step::Acknowledge,
        Step::Ready,
    ];
    assert_eq!(steps(Cycle::generation(true, false), &[]), expected);
}

#[test]
fn programs_that_do_not_freeze_are_a_reason_to_refuse_or_not_as_the_policy_says() {
    let amiss = [(Step::Freeze, Answer::Failed(Reason::NotFrozen))];
    let required = steps(Cycle::asked(Freeze::Required, true), &amiss);
    assert_eq!(
        required[3..],
        [
            Step::Thaw,
            Step::Refuse(Reason::NotFrozen),
            Step::Resume(Resumed::CalledOff)
        ]
    );
    let best = steps(Cycle::asked(Freeze::BestEffort, true), &amiss);
    assert_eq!(
        best[3..],
        [
            Step::Thaw,
            Step::Park,
            Step::Fork,
            Step::Resume(Resumed::Original)
        ]
    );
    let partly = [(Step::Freeze, Answer::Partly)];
    let best = steps(Cycle::asked(Freeze::BestEffort, true), &partly);
    assert_eq!(
        best[3..],
        [
            Step::Park,
            Step::Fork,
            Step::Thaw,
            Step::Resume(Resumed::Original)
        ]
    );
    let required = steps(Cycle::asked(Freeze::Required, true), &partly);
    assert_eq!(
        required[3..5],
        [Step::Thaw, Step::Refuse(Reason::NotFrozen)]
    );
    assert!(!steps(Cycle::asked(Freeze::Off, true), &[]).contains(&Step::Freeze));
}

#[test]
fn the_host_is_told_that_programs_are_frozen_only_if_they_are() {
    let prepared = |freeze, answer| {
        let mut cycle = Cycle::asked(freeze, true);
        while cycle.step() != Step::Fork {
            let answer = match cycle.step() {
                Step::Freeze => answer,
                _ => Answer::Done,
            };
            cycle.next(answer);
        }
        cycle.prepared()
    };
    let rest = Prepared::QUIESCED | Prepared::PARKED;
    let failed = Answer::Failed(Reason::NotFrozen);
    assert_eq!(
        prepared(Freeze::BestEffort, Answer::Done),
        rest | Prepared::FROZEN
    );
    assert_eq!(prepared(Freeze::BestEffort, failed), rest);
    assert_eq!(prepared(Freeze::Off, Answer::Done), rest);
}

#[test]
fn the_second_stage_waits_for_the_first_where_success_is_required_and_the_host_is_not_told() {
    let failed = [(Step::Identity, Answer::Failed(Reason::HookFailed))];
    let required = steps(Cycle::generation(true, false), &failed);
    assert_eq!(required, [Step::Identity]);
    let not = steps(Cycle::generation(false, false), &failed);
    assert_eq!(not, [Step::Identity, Step::Service, Step::Acknowledge]);
}

#[test]
fn a_request_that_is_withdrawn_is_not_refused_as_well() {
    let withdrawn = [(Step::Fork, Answer::Withdrawn)];
    let steps = steps(Cycle::asked(Freeze::BestEffort, true), &withdrawn);
    assert_eq!(steps[4..], [Step::Thaw, Step::Resume(Resumed::CalledOff)]);
}

#[test]
fn what_does_not_resume_is_not_ready_and_is_resumed_once_more() {
    let failed = Answer::Failed(Reason::HookFailed);
    for resumed in [Resumed::Original, Resumed::Clone, Resumed::CalledOff] {
        let mut cycle = Cycle::left_quiesced(resumed, false);
        assert_eq!(cycle.next(failed), Next::Quiesced);
        // If another hook has failed, the host is not told, either.
        let again = steps(Cycle::left_quiesced(resumed, true), &[]);
        assert_eq!(again, [Step::Resume(resumed)]);
    }
    let again = steps(Cycle::left_quiesced(Resumed::Clone, false), &[]);
    assert_eq!(again, [Step::Resume(Resumed::Clone), Step::Ready]);
}

#[test]
fn the_exploration_finds_a_cycle_that_forgets_to_thaw() {
    // A counter-check: a world whose thaw does nothing must be found.
    let found = std::panic::catch_unwind(|| {
        explore(
            Cycle::asked(Freeze::Required, true),
            World::default(),
            1,
            &mut |world, next| {
                let forgetful = World {
                    frozen: world.steps.iter().any(|(step, _)| *step == Step::Freeze),
                    ..world.clone()
                };
                forgetful.check_end(next);
            },
        );
    });
    assert!(found.is_err());
}
