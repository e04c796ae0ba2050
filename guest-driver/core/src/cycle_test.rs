// SPDX-License-Identifier: GPL-2.0

//! Who takes part in a fork point, in any order of calls, against the plainest description of it.

use std::{vec, vec::Vec};

use proptest::{collection::vec, prelude::*, sample::Index};

use crate::sysgenid_cycle::{Cycle, Member, Parked, Refused, Role};

const FILES: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Ask(u32),
    Over(u32),
    Take(Index, Role),
    Leave(Index),
    Tell(Index),
    Park(Index),
    Look(Index),
    Unpark(Index),
    Stand(Index, u32),
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
        3 => (index(), role).prop_map(|(file, role)| Op::Take(file, role)),
        1 => index().prop_map(Op::Leave),
        2 => index().prop_map(Op::Tell),
        2 => index().prop_map(Op::Park),
        1 => index().prop_map(Op::Look),
        1 => index().prop_map(Op::Unpark),
        2 => (index(), ticket()).prop_map(|(file, ticket)| Op::Stand(file, ticket)),
        1 => Just(Op::GoOn),
        1 => (index(), ticket()).prop_map(|(file, ticket)| Op::Refuse(file, ticket)),
    ]
}

/// A file, as one would tell of it.
#[derive(Clone, Copy, Default)]
struct File {
    role: Role,
    told: u32,
    is_parked: bool,
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
        let participants = model
            .files
            .iter()
            .filter(|file| file.role == Role::Participant);
        let all_parked = participants.clone().all(|file| file.is_parked);
        if let Some(agent) = model.files.iter().position(|file| file.role == Role::Agent) {
            let expected = match model.owned() {
                0 => Err(Refused::Stale),
                _ => Ok(all_parked),
            };
            prop_assert_eq!(cycle.all_parked(&members[agent]), expected);
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
        Op::Take(file, role) => take(file.index(FILES), role, cycle, members, model)?,
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
            }
            prop_assert_eq!(cycle.park(&mut members[file], 7), expected);
        }
        Op::Look(file) => {
            let file = file.index(FILES);
            model.files[file].is_parked &= model.request != 0;
            let looked = cycle.look(&mut members[file], 7);
            prop_assert_eq!(looked == Parked::Sleep, model.files[file].is_parked);
        }
        Op::Unpark(file) => {
            let file = file.index(FILES);
            model.files[file].is_parked = false;
            cycle.unpark(&mut members[file]);
        }
        Op::Stand(file, ticket) => {
            let file = file.index(FILES);
            let expected = model.is_owner(file, ticket).and(match model.standing {
                Some(_) => Err(Refused::Busy),
                None => Ok(()),
            });
            if expected.is_ok() {
                model.standing = Some((file, ticket));
            }
            prop_assert_eq!(cycle.stand(&mut members[file], ticket), expected);
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
        Ok(left)
    };
    prop_assert_eq!(cycle.take(&mut members[file], role), expected);
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
    assert_eq!(cycle.take(&mut agent, Role::Agent), Ok(0));
    assert!(cycle.ask(5) && cycle.is_urgent(&agent));
    assert_eq!(cycle.leave(&mut agent), 5);
    assert!(!cycle.is_pending());
    let files = [Member::default(), Member::default()];
    assert!(files.iter().all(|file| !cycle.is_urgent(file)));
}
