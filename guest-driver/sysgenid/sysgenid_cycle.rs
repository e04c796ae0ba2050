// SPDX-License-Identifier: GPL-2.0

//! Who takes part in a fork point: the agent, who is asked, and those who let go of what must be
//! unique. What has to be true of them, without a kernel.
//!
//! The caller holds one lock around [`Cycle`] and all of its [`Member`]s, and wakes everybody who
//! sleeps or polls after each call that says so.

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
    /// There is an agent already, or a fork point under way.
    Busy,
    /// It is not the present request.
    Stale,
}

/// An open file.
#[derive(Debug, Default)]
pub(crate) struct Member {
    role: Role,
    /// The request that it was told of last.
    told: Ticket,
    /// The counter under which it has parked.
    parked: Option<u32>,
}

/// What a parked one has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Nothing yet.
    Sleep,
    /// It is over. The counter was that when it parked.
    Over(u32),
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
    participants: u32,
    parked: u32,
}

impl Cycle {
    /// A file takes a role, and loses the one that it had. The request that an agent leaves behind
    /// is returned: it is over.
    pub(crate) fn take(&mut self, member: &mut Member, role: Role) -> Result<Ticket, Refused> {
        if role == member.role {
            return Ok(0);
        }
        if role == Role::Agent && self.has_agent {
            return Err(Refused::Busy);
        }
        let left = self.leave(member);
        match role {
            Role::Agent => self.has_agent = true,
            Role::Participant => self.participants += 1,
            Role::None => {}
        }
        // What came before it took the role is another's.
        member.role = role;
        member.told = 0;
        Ok(left)
    }

    /// A file goes. As for [`Cycle::take`].
    pub(crate) fn leave(&mut self, member: &mut Member) -> Ticket {
        self.unpark(member);
        match core::mem::take(&mut member.role) {
            Role::Participant => self.participants -= 1,
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
            Role::Participant => self.is_pending() && member.parked.is_none(),
            Role::Agent => member.told != self.agents_request(),
        }
    }

    /// A participant has nothing unique in flight; the counter is that of its generation.
    pub(crate) fn park(&mut self, member: &mut Member, counter: u32) -> Result<Parked, Refused> {
        is(member, Role::Participant)?;
        if member.parked.is_none() && self.is_pending() {
            member.parked = Some(counter);
            self.parked += 1;
        }
        Ok(self.look(member, counter))
    }

    /// Whether a parked one may go on. One that is not parked may.
    pub(crate) fn look(&mut self, member: &mut Member, counter: u32) -> Parked {
        if self.is_pending() && member.parked.is_some() {
            return Parked::Sleep;
        }
        let then = member.parked.unwrap_or(counter);
        self.unpark(member);
        Parked::Over(then)
    }

    /// One that was parked may go on, whatever the others do.
    pub(crate) fn unpark(&mut self, member: &mut Member) {
        if member.parked.take().is_some() {
            self.parked -= 1;
        }
    }

    /// Whether all participants are parked, for an agent that has a request.
    pub(crate) fn all_parked(&self, member: &Member) -> Result<bool, Refused> {
        is(member, Role::Agent)?;
        match self.agents_request() {
            0 => Err(Refused::Stale),
            _ => Ok(self.parked == self.participants),
        }
    }

    /// The agent has the machine stand still. It has to say when that is over.
    pub(crate) fn stand(&mut self, member: &mut Member, ticket: Ticket) -> Result<(), Refused> {
        self.check(member, ticket)?;
        if self.standing {
            return Err(Refused::Busy);
        }
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
}

fn is(member: &Member, role: Role) -> Result<(), Refused> {
    match member.role == role {
        true => Ok(()),
        false => Err(Refused::Role),
    }
}
