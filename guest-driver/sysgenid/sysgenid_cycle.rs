// SPDX-License-Identifier: GPL-2.0

//! Who takes part in a fork point: the agent, who is asked, and those who let go of what must be
//! unique. What has to be true of them, without a kernel.
//!
//! The caller holds one lock around [`Cycle`] and all of its [`Member`]s, and wakes everybody who
//! sleeps or polls after each call that says so.

use crate::sysgenid_away::Away;

/// What an open file is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing.
    #[default]
    None,
    /// It is waited for.
    Participant,
    /// It is asked.
    Agent,
}

/// Names a request; 0 is none.
pub(crate) type Ticket = u32;

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The file has not the role.
    Role,
    /// There is an agent already, a fork point under way, or one who has not parked.
    Busy,
    /// It is not the present request.
    Stale,
}

/// An open file.
#[derive(Default)]
pub(crate) struct Member {
    role: Role,
    /// There is no fork point without it, if it is a participant.
    required: bool,
    /// The request that it was told of last.
    told: Ticket,
    /// It has parked, and its program does not run.
    parked: bool,
    /// The counter under which it has, also if it is parked no more and does not know.
    then: Option<u32>,
    /// Who has parked, and was frozen.
    away: Option<Away>,
}

/// What a parked one has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Nothing yet.
    Sleep,
    /// It is over. The counter was that when it parked.
    Over(u32),
}

/// Who is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// All participants.
    All,
    /// All that are required, and others are not.
    Required,
    /// Some that are required are not.
    Some,
}

/// The present request, and who takes part.
#[derive(Debug, Default)]
pub(crate) struct Cycle {
    request: Ticket,
    /// The agent was there when it came, and has it.
    agents: bool,
    /// The machine is to stand still for it.
    standing: bool,
    has_agent: bool,
    /// Participants that are not parked, and those of them that are required.
    at_work: u32,
    required_at_work: u32,
}

impl Cycle {
    /// A file takes a role, and loses the one that it had. The request that an agent leaves behind
    /// is returned: it is over. Participants may be required.
    pub(crate) fn take(
        &mut self,
        member: &mut Member,
        role: Role,
        required: bool,
    ) -> Result<Ticket, Refused> {
        if role == member.role {
            return Ok(0);
        }
        if role == Role::Agent && self.has_agent {
            return Err(Refused::Busy);
        }
        let left = self.leave(member);
        match role {
            Role::Agent => self.has_agent = true,
            Role::Participant => self.count(required, 1),
            Role::None => {}
        }
        // What came before it took the role is another's.
        member.role = role;
        member.required = required;
        member.told = 0;
        Ok(left)
    }

    /// A file goes. As for [`Cycle::take`].
    pub(crate) fn leave(&mut self, member: &mut Member) -> Ticket {
        self.unpark(member);
        match core::mem::take(&mut member.role) {
            Role::Participant => self.count(member.required, -1),
            Role::Agent => {
                self.has_agent = false;
                // While the machine stands still for it, that goes on.
                if self.agents && !self.standing {
                    return self.end();
                }
            }
            Role::None => {}
        }
        0
    }

    /// The hypervisor asks, or takes it back. Returns whether an agent has it.
    pub(crate) fn ask(&mut self, ticket: Ticket) -> bool {
        self.request = ticket;
        self.agents = ticket != 0 && self.has_agent;
        self.agents
    }

    /// The present request is over; returns it.
    pub(crate) fn end(&mut self) -> Ticket {
        self.agents = false;
        core::mem::take(&mut self.request)
    }

    /// That request is over, if it is the present one.
    pub(crate) fn over(&mut self, ticket: Ticket) {
        if self.request == ticket {
            self.end();
        }
    }

    /// Whether there is a request.
    pub(crate) fn is_pending(&self) -> bool {
        self.request != 0
    }

    /// The request as the agent sees it.
    fn agents_request(&self) -> Ticket {
        match self.agents {
            true => self.request,
            false => 0,
        }
    }

    /// Tells the agent of the request.
    pub(crate) fn tell(&self, member: &mut Member) -> Result<Ticket, Refused> {
        is(member, Role::Agent)?;
        member.told = self.agents_request();
        Ok(member.told)
    }

    /// Whether there is something that the file does not know.
    pub(crate) fn is_urgent(&self, member: &Member) -> bool {
        match member.role {
            Role::None => false,
            Role::Participant => self.is_pending() && !member.parked,
            Role::Agent => member.told != self.agents_request(),
        }
    }

    /// A participant has nothing unique in flight; the counter is that of its generation.
    pub(crate) fn park(&mut self, member: &mut Member, counter: u32) -> Result<Parked, Refused> {
        is(member, Role::Participant)?;
        member.away = None;
        if !member.parked && self.is_pending() {
            member.parked = true;
            // One that was frozen meanwhile does not know what it has missed.
            member.then.get_or_insert(counter);
            self.count(member.required, -1);
        }
        Ok(self.look(member, counter))
    }

    /// Whether a parked one may go on. One that is not parked may.
    pub(crate) fn look(&mut self, member: &mut Member, counter: u32) -> Parked {
        if self.is_pending() && member.parked {
            return Parked::Sleep;
        }
        let then = member.then.unwrap_or(counter);
        self.unpark(member);
        Parked::Over(then)
    }

    /// One that was parked may go on, whatever the others do.
    pub(crate) fn unpark(&mut self, member: &mut Member) {
        self.work(member);
        member.then = None;
    }

    /// One that is parked is frozen: it comes back, or not.
    pub(crate) fn freeze(&mut self, member: &mut Member, away: Away) {
        if member.parked {
            member.away = Some(away);
        }
    }

    /// Looks whether one that was frozen still is. If not, it is parked no more: its program may
    /// run. Returns whether that is new.
    pub(crate) fn look_after(&mut self, member: &mut Member) -> bool {
        let back = member.away.as_ref().is_some_and(|away| !away.is_frozen());
        if back {
            self.work(member);
        }
        back
    }

    /// It is parked no more.
    fn work(&mut self, member: &mut Member) {
        member.away = None;
        if core::mem::take(&mut member.parked) {
            self.count(member.required, 1);
        }
    }

    /// Counts one that is not parked.
    fn count(&mut self, required: bool, one: i32) {
        self.at_work = self.at_work.wrapping_add_signed(one);
        if required {
            self.required_at_work = self.required_at_work.wrapping_add_signed(one);
        }
    }

    /// Who is parked, for an agent that has a request.
    pub(crate) fn who_is_parked(&self, member: &Member) -> Result<Who, Refused> {
        is(member, Role::Agent)?;
        match (self.agents_request(), self.at_work, self.required_at_work) {
            (0, ..) => Err(Refused::Stale),
            (_, 0, _) => Ok(Who::All),
            (_, _, 0) => Ok(Who::Required),
            _ => Ok(Who::Some),
        }
    }

    /// The agent has the machine stand still, and may say that all are parked. It has to say when
    /// that is over.
    pub(crate) fn stand(
        &mut self,
        member: &mut Member,
        ticket: Ticket,
        all_parked: bool,
    ) -> Result<(), Refused> {
        self.check(member, ticket)?;
        if self.standing || all_parked && self.at_work != 0 {
            return Err(Refused::Busy);
        }
        self.standing = true;
        Ok(())
    }

    /// The same by a program that has itself asked for the request, in the place of an agent. Who
    /// is asked by others is not told of it.
    pub(crate) fn stand_in(&mut self, ticket: Ticket) -> Result<(), Refused> {
        if self.standing || self.is_pending() {
            return Err(Refused::Busy);
        }
        self.request = ticket;
        self.agents = false;
        self.standing = true;
        Ok(())
    }

    /// The machine goes on, and the agent knows how. A request that came meanwhile stays.
    pub(crate) fn go_on(&mut self, member: &mut Member, ticket: Ticket) {
        self.standing = false;
        if self.request == ticket {
            self.end();
            member.told = 0;
        }
    }

    /// The agent refuses.
    pub(crate) fn refuse(&mut self, member: &mut Member, ticket: Ticket) -> Result<(), Refused> {
        self.check(member, ticket)?;
        if self.standing {
            return Err(Refused::Busy);
        }
        self.end();
        member.told = 0;
        Ok(())
    }

    /// Whether the file is the agent's, which has this request.
    fn check(&self, member: &Member, ticket: Ticket) -> Result<(), Refused> {
        is(member, Role::Agent)?;
        match ticket != 0 && ticket == self.agents_request() {
            true => Ok(()),
            false => Err(Refused::Stale),
        }
    }
}

impl Member {
    /// What it is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Whether it is parked.
    pub(crate) fn is_parked(&self) -> bool {
        self.parked
    }
}

fn is(member: &Member, role: Role) -> Result<(), Refused> {
    match member.role == role {
        true => Ok(()),
        false => Err(Refused::Role),
    }
}
