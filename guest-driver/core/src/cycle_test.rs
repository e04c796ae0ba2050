// SPDX-License-Identifier: GPL-2.0

//! Who takes part in a fork point, in any order of calls, against the plainest description of it.

use std::boxed::Box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{vec, vec::Vec};

use proptest::{collection::vec, prelude::*, sample::Index};

use crate::sysgenid_away::Away;
use crate::sysgenid_cycle::{Cycle, Member, Parked, Refused, Role, Who};

const FILES: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Ask(u32),
    Over(u32),
    Take(Index, Role, bool),
    Leave(Index),
    Tell(Index),
    Park(Index),
    Look(Index),
    Unpark(Index),
    Freeze(Index),
    Thaw(Index),
    Stand(Index, u32, bool),
    StandIn(Index, u32),
    GoOn,
    Refuse(Index, u32),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    let ticket = || 0..3_u32;
    let role = prop_oneof![
        1 => Just(Role::None),
        1 => Just(Role::Participant),
        2 => Just(Role::Agent)
    ];
    prop_oneof![
        3 => ticket().prop_map(Op::Ask),
        1 => ticket().prop_map(Op::Over),
        3 => (index(), role, any::<bool>())
            .prop_map(|(file, role, required)| Op::Take(file, role, required)),
        1 => index().prop_map(Op::Leave),
        2 => index().prop_map(Op::Tell),
        2 => index().prop_map(Op::Park),
        1 => index().prop_map(Op::Look),
        1 => index().prop_map(Op::Unpark),
        1 => index().prop_map(Op::Freeze),
        1 => index().prop_map(Op::Thaw),
        2 => (index(), ticket(), any::<bool>())
            .prop_map(|(file, ticket, all)| Op::Stand(file, ticket, all)),
        1 => (index(), 1..3_u32).prop_map(|(file, ticket)| Op::StandIn(file, ticket)),
        1 => Just(Op::GoOn),
        1 => (index(), ticket()).prop_map(|(file, ticket)| Op::Refuse(file, ticket)),
    ]
}

/// A file, as one would tell of it.
#[derive(Clone, Copy, Default)]
struct File {
    role: Role,
    is_required: bool,
    told: u32,
    is_parked: bool,
    /// Frozen while it was parked, or thawed and not back yet.
    away: Option<&'static AtomicBool>,
}

#[derive(Default)]
struct Model {
    files: [File; FILES],
    request: u32,
    /// It came when there was an agent, who is still there.
    has_owner: bool,
    /// The file that has the machine stand still, and for which request.
    standing: Option<(usize, u32)>,
}

impl Model {
    fn owned(&self) -> u32 {
        if self.has_owner { self.request } else { 0 }
    }

    fn end(&mut self) -> u32 {
        self.has_owner = false;
        std::mem::take(&mut self.request)
    }

    fn leave(&mut self, file: usize) -> u32 {
        let gone = std::mem::take(&mut self.files[file]);
        match gone.role == Role::Agent && self.has_owner && self.standing.is_none() {
            true => self.end(),
            false => 0,
        }
    }

    fn is_owner(&self, file: usize, ticket: u32) -> Result<(), Refused> {
        if self.files[file].role != Role::Agent {
            return Err(Refused::Role);
        }
        match ticket != 0 && self.owned() == ticket {
            true => Ok(()),
            false => Err(Refused::Stale),
        }
    }

    fn who_is_parked(&self) -> Who {
        let at_work = |required: bool| {
            let mut files = self.files.iter();
            files.any(|file| {
                file.role == Role::Participant && !file.is_parked && file.is_required >= required
            })
        };
        match (at_work(true), at_work(false)) {
            (true, _) => Who::Some,
            (false, true) => Who::Required,
            (false, false) => Who::All,
        }
    }

    fn is_urgent(&self, file: &File) -> bool {
        match file.role {
            Role::None => false,
            Role::Participant => self.request != 0 && !file.is_parked,
            Role::Agent => file.told != self.owned(),
        }
    }
}

fn runs(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let (mut cycle, mut model) = (Cycle::default(), Model::default());
    let mut members: Vec<Member> = (0..FILES).map(|_| Member::default()).collect();
    for op in ops {
        step(&op, &mut cycle, &mut members, &mut model)?;
        for (member, file) in members.iter().zip(&model.files) {
            prop_assert_eq!(cycle.is_urgent(member), model.is_urgent(file), "{:?}", op);
        }
        prop_assert_eq!(cycle.is_pending(), model.request != 0);
        if let Some(agent) = model.files.iter().position(|file| file.role == Role::Agent) {
            let expected = match model.owned() {
                0 => Err(Refused::Stale),
                _ => Ok(model.who_is_parked()),
            };
            prop_assert_eq!(cycle.who_is_parked(&members[agent]), expected);
        }
    }
    Ok(())
}

fn step(
    op: &Op,
    cycle: &mut Cycle,
    members: &mut [Member],
    model: &mut Model,
) -> Result<(), TestCaseError> {
    match *op {
        Op::Ask(ticket) => {
            model.request = ticket;
            let agent = model.files.iter().any(|file| file.role == Role::Agent);
            model.has_owner = agent && ticket != 0;
            prop_assert_eq!(cycle.ask(ticket), model.has_owner);
        }
        Op::Over(ticket) => {
            cycle.over(ticket);
            if model.request == ticket {
                model.end();
            }
        }
        Op::Take(file, role, required) => {
            take(file.index(FILES), role, required, cycle, members, model)?;
        }
        Op::Leave(file) => {
            let file = file.index(FILES);
            prop_assert_eq!(cycle.leave(&mut members[file]), model.leave(file));
        }
        Op::Tell(file) => {
            let file = file.index(FILES);
            let told = model.owned();
            let expected = match model.files[file].role {
                Role::Agent => Ok(told),
                _ => Err(Refused::Role),
            };
            if expected.is_ok() {
                model.files[file].told = told;
            }
            prop_assert_eq!(cycle.tell(&mut members[file]), expected);
        }
        Op::Park(file) => {
            let file = file.index(FILES);
            let expected = match (model.files[file].role, model.request) {
                (Role::Participant, 0) => Ok(Parked::Over(7)),
                (Role::Participant, _) => Ok(Parked::Sleep),
                _ => Err(Refused::Role),
            };
            if model.files[file].role == Role::Participant {
                model.files[file].is_parked = model.request != 0;
                model.files[file].away = None;
            }
            prop_assert_eq!(cycle.park(&mut members[file], 7), expected);
        }
        Op::Look(file) => {
            let file = file.index(FILES);
            model.files[file].is_parked &= model.request != 0;
            if !model.files[file].is_parked {
                model.files[file].away = None;
            }
            let looked = cycle.look(&mut members[file], 7);
            prop_assert_eq!(looked == Parked::Sleep, model.files[file].is_parked);
        }
        Op::Unpark(file) => {
            let file = file.index(FILES);
            model.files[file].is_parked = false;
            model.files[file].away = None;
            cycle.unpark(&mut members[file]);
        }
        Op::Freeze(file) => {
            let file = file.index(FILES);
            let frozen: &AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
            if model.files[file].is_parked {
                model.files[file].away = Some(frozen);
            }
            cycle.freeze(&mut members[file], Away(frozen));
            prop_assert!(!cycle.look_after(&mut members[file]));
        }
        Op::Thaw(file) => {
            let file = file.index(FILES);
            let away = model.files[file].away.take();
            if let Some(frozen) = away {
                frozen.store(false, Relaxed);
                model.files[file].is_parked = false;
            }
            prop_assert_eq!(cycle.look_after(&mut members[file]), away.is_some());
        }
        Op::Stand(file, ticket, all) => {
            let file = file.index(FILES);
            let is_true = !all || model.who_is_parked() == Who::All;
            let expected = model.is_owner(file, ticket).and(match model.standing {
                None if is_true => Ok(()),
                _ => Err(Refused::Busy),
            });
            if expected.is_ok() {
                model.standing = Some((file, ticket));
            }
            prop_assert_eq!(cycle.stand(&mut members[file], ticket, all), expected);
        }
        Op::StandIn(file, ticket) => {
            let expected = match (model.standing, model.request) {
                (None, 0) => Ok(()),
                _ => Err(Refused::Busy),
            };
            if expected.is_ok() {
                (model.request, model.has_owner) = (ticket, false);
                model.standing = Some((file.index(FILES), ticket));
            }
            prop_assert_eq!(cycle.stand_in(ticket), expected);
        }
        Op::GoOn => {
            if let Some((file, ticket)) = model.standing.take() {
                cycle.go_on(&mut members[file], ticket);
                if model.request == ticket {
                    model.end();
                    model.files[file].told = 0;
                }
            }
        }
        Op::Refuse(file, ticket) => {
            let file = file.index(FILES);
            let expected = model.is_owner(file, ticket).and(match model.standing {
                Some(_) => Err(Refused::Busy),
                None => Ok(()),
            });
            if expected.is_ok() {
                model.end();
                model.files[file].told = 0;
            }
            prop_assert_eq!(cycle.refuse(&mut members[file], ticket), expected);
        }
    }
    Ok(())
}

fn take(
    file: usize,
    role: Role,
    required: bool,
    cycle: &mut Cycle,
    members: &mut [Member],
    model: &mut Model,
) -> Result<(), TestCaseError> {
    let others = model.files.iter().any(|file| file.role == Role::Agent);
    let expected = if model.files[file].role == role {
        Ok(0)
    } else if role == Role::Agent && others {
        Err(Refused::Busy)
    } else {
        let left = model.leave(file);
        model.files[file].role = role;
        model.files[file].is_required = required;
        Ok(left)
    };
    prop_assert_eq!(cycle.take(&mut members[file], role, required), expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_takes_part_is_told_and_waited_for_as_it_is_described(ops in vec(op(), 1..60)) {
        runs(ops)?;
    }
}

#[test]
fn a_request_that_an_agent_leaves_behind_is_over() {
    let (mut cycle, mut agent) = (Cycle::default(), Member::default());
    assert_eq!(cycle.take(&mut agent, Role::Agent, true), Ok(0));
    assert!(cycle.ask(5) && cycle.is_urgent(&agent));
    assert_eq!(cycle.leave(&mut agent), 5);
    assert!(!cycle.is_pending());
    let files = [Member::default(), Member::default()];
    assert!(files.iter().all(|file| !cycle.is_urgent(file)));
}

#[test]
fn one_that_is_thawed_is_asked_again_and_learns_at_last_what_it_has_missed() {
    static FROZEN: AtomicBool = AtomicBool::new(true);
    let (mut cycle, mut agent) = (Cycle::default(), Member::default());
    let mut member = Member::default();
    assert_eq!(cycle.take(&mut agent, Role::Agent, true), Ok(0));
    assert_eq!(cycle.take(&mut member, Role::Participant, true), Ok(0));
    assert!(cycle.ask(5));
    assert_eq!(cycle.park(&mut member, 7), Ok(Parked::Sleep));
    cycle.freeze(&mut member, Away(&FROZEN));
    // As long as it is frozen it stays parked, through any number of requests.
    assert!(cycle.ask(6) && !cycle.look_after(&mut member));
    assert!(!cycle.is_urgent(&member));
    assert_eq!(cycle.who_is_parked(&agent), Ok(Who::All));
    FROZEN.store(false, Relaxed);
    assert!(cycle.look_after(&mut member) && !cycle.look_after(&mut member));
    assert!(cycle.is_urgent(&member));
    assert_eq!(cycle.who_is_parked(&agent), Ok(Who::Some));
    assert_eq!(cycle.stand(&mut agent, 6, true), Err(Refused::Busy));
    // It comes back to the call that it had made, in another generation.
    assert_eq!(cycle.park(&mut member, 8), Ok(Parked::Sleep));
    assert_eq!(cycle.stand(&mut agent, 6, true), Ok(()));
    cycle.go_on(&mut agent, 6);
    assert_eq!(cycle.look(&mut member, 9), Parked::Over(7));
    assert_eq!(cycle.park(&mut member, 9), Ok(Parked::Over(9)));
}

/// A program that has asked for a snapshot has the request; an agent is not told of it, and one that ends
/// then ends nothing.
#[test]
fn an_agent_is_not_told_of_what_another_program_has_asked_for() {
    let (mut cycle, mut agent) = (Cycle::default(), Member::default());
    let (mut parks, mut asks) = (Member::default(), Member::default());
    assert_eq!(cycle.take(&mut agent, Role::Agent, true), Ok(0));
    assert_eq!(cycle.take(&mut parks, Role::Participant, true), Ok(0));
    assert_eq!(cycle.stand_in(5), Ok(()));
    assert!(cycle.is_urgent(&parks) && !cycle.is_urgent(&agent));
    assert_eq!(cycle.tell(&mut agent), Ok(0));
    assert_eq!(cycle.refuse(&mut agent, 5), Err(Refused::Stale));
    assert_eq!(cycle.stand_in(6), Err(Refused::Busy));
    assert_eq!(cycle.leave(&mut agent), 0);
    cycle.go_on(&mut asks, 5);
    assert!(!cycle.is_pending() && !cycle.is_urgent(&parks));
    cycle.ask(6);
    assert_eq!(cycle.stand_in(7), Err(Refused::Busy));
}
