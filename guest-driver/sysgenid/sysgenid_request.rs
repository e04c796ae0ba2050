// SPDX-License-Identifier: GPL-2.0

//! Requests for a fork point: the lock around those who take part, who sleeps and who is woken.

use crate::{
    sysgenid_abi::{ForkPoint, Refusal, Request},
    sysgenid_away::Away,
    sysgenid_core::Refusal as Moved,
    sysgenid_cycle::{Cycle, Member, Parked, Refused, Role, Ticket, Who},
    sysgenid_device::Device,
};
use core::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
};
use kernel::{
    bindings,
    prelude::*,
    sync::{lock::mutex::MutexGuard, CondVarTimeoutResult, Mutex},
    time::Jiffies,
};

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Role => EPERM,
            Refused::Busy => EBUSY,
            Refused::Stale => ESTALE,
        }
    }
}

/// What the lock is around.
#[derive(Default)]
pub(crate) struct Round {
    cycle: Cycle,
    /// Those who are waited for. A file that goes is taken out before.
    participants: KVec<NonNull<Mutex<Member>>>,
}

// SAFETY: The pointers are to what any thread may lock, and outlives their being here.
unsafe impl Send for Round {}

impl Deref for Round {
    type Target = Cycle;

    fn deref(&self) -> &Cycle {
        &self.cycle
    }
}

impl DerefMut for Round {
    fn deref_mut(&mut self) -> &mut Cycle {
        &mut self.cycle
    }
}

impl Round {
    /// Looks who of those that were frozen while they were parked still is. Returns whether one
    /// is not any more.
    fn look_after_all(&mut self) -> bool {
        let mut back = false;
        for member in &self.participants {
            // SAFETY: The file is there.
            let member = unsafe { member.as_ref() };
            back |= self.cycle.look_after(&mut member.lock());
        }
        back
    }

    /// Nobody waits for that file.
    fn forget(&mut self, member: &Mutex<Member>) {
        let member = NonNull::from(member);
        self.participants.retain(|other| *other != member);
    }
}

impl Device {
    /// The hypervisor asks, or not any more. Returns whether an agent has it.
    pub(crate) fn ask(&self, ticket: u32) -> bool {
        let mut cycle = self.cycle.lock();
        cycle.look_after_all();
        let agents = cycle.ask(ticket);
        self.changed(cycle);
        agents
    }

    /// A request is over.
    pub(crate) fn over(&self, ticket: u32) {
        let mut cycle = self.cycle.lock();
        cycle.over(ticket);
        self.changed(cycle);
    }

    /// What has to follow each change.
    fn changed(&self, cycle: MutexGuard<'_, Round>) {
        self.show_pending(cycle.is_pending());
        drop(cycle);
        self.members.notify_all();
    }

    /// A file takes a role.
    pub(crate) fn set_role(&self, member: &Mutex<Member>, role: Role, required: bool) -> Result {
        let mut cycle = self.cycle.lock();
        // Nothing may fail once it counts.
        cycle.participants.reserve(1, GFP_KERNEL)?;
        let left = cycle.take(&mut member.lock(), role, required)?;
        cycle.forget(member);
        if role == Role::Participant {
            cycle.participants.push(NonNull::from(member), GFP_KERNEL)?;
        }
        self.changed(cycle);
        self.leave_behind(left);
        Ok(())
    }

    /// A file goes.
    pub(crate) fn leave(&self, member: &Mutex<Member>) {
        let mut cycle = self.cycle.lock();
        let left = cycle.leave(&mut member.lock());
        cycle.forget(member);
        self.changed(cycle);
        self.leave_behind(left);
    }

    fn leave_behind(&self, ticket: u32) {
        if ticket != 0 {
            self.tell_refusal(ticket, Refusal::AGENT_GONE);
        }
    }

    fn tell_refusal(&self, ticket: u32, reason: u32) {
        // SAFETY: The context is the backend's.
        self.with_backend(|backend| unsafe { (backend.refuse)(backend.context, ticket, reason) });
    }

    /// Whether `poll()` tells a file of a request.
    pub(crate) fn is_urgent(&self, member: &Mutex<Member>) -> bool {
        let mut cycle = self.cycle.lock();
        let mut member = member.lock();
        cycle.look_after(&mut member);
        cycle.is_urgent(&member)
    }

    /// What a file is, and whether it is parked.
    pub(crate) fn part(&self, member: &Mutex<Member>) -> (Role, bool) {
        let mut cycle = self.cycle.lock();
        let mut member = member.lock();
        cycle.look_after(&mut member);
        (member.role(), member.is_parked())
    }

    /// The present request, for an agent.
    pub(crate) fn request(&self, member: &Mutex<Member>) -> Result<Request> {
        let ticket = self.cycle.lock().tell(&mut member.lock())?;
        let mut request = Request {
            ticket,
            ..Request::default()
        };
        if ticket != 0 {
            // SAFETY: The context is the backend's.
            let limit = self.with_backend(|backend| unsafe { (backend.limit)(backend.context) });
            request.limit_ms = limit.unwrap_or_default();
        }
        Ok(request)
    }

    /// Sleeps until the request is over. Returns whether there is a new generation.
    pub(crate) fn park(&self, member: &Mutex<Member>) -> Result<bool> {
        let told = self.show(|all| all.told());
        let mut cycle = self.cycle.lock();
        let mut parked = cycle.park(&mut member.lock(), told)?;
        self.members.notify_all();
        loop {
            if let Parked::Over(then) = parked {
                drop(cycle);
                return Ok(self.show(|all| all.told()) != then);
            }
            if self.members.wait_interruptible(&mut cycle) {
                let mut member = member.lock();
                match Away::caller() {
                    Some(away) => cycle.freeze(&mut member, away),
                    None => cycle.unpark(&mut member),
                }
                return Err(ERESTARTNOHAND);
            }
            parked = cycle.look(&mut member.lock(), told);
        }
    }

    /// Sleeps until all participants are parked, and does with those that are required when the
    /// time is over. Returns whether all are.
    pub(crate) fn wait_parked(&self, member: &Mutex<Member>, limit: Jiffies) -> Result<bool> {
        let mut left = limit;
        let mut cycle = self.cycle.lock();
        loop {
            if cycle.look_after_all() {
                // They are asked again.
                self.members.notify_all();
            }
            let who = cycle.who_is_parked(&member.lock())?;
            if who == Who::All || left == 0 {
                return match who {
                    Who::Some => Err(ETIME),
                    who => Ok(who == Who::All),
                };
            }
            left = match self.members.wait_interruptible_timeout(&mut cycle, left) {
                CondVarTimeoutResult::Signal { .. } => return Err(EINTR),
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Timeout => 0,
            };
        }
    }

    /// Has the machine stand still, and fills in how it goes on.
    pub(crate) fn fork_point(&self, member: &Mutex<Member>, fork: &mut ForkPoint) -> Result {
        if fork.size as usize != size_of::<ForkPoint>()
            || fork.flags & !(ForkPoint::DONE | ForkPoint::SELF) != 0
        {
            return Err(EINVAL);
        }
        let ticket = if fork.flags & ForkPoint::SELF != 0 {
            self.ask_for_itself(fork)?
        } else {
            let all_parked = fork.flags & ForkPoint::PARKED != 0;
            let mut cycle = self.cycle.lock();
            cycle.look_after_all();
            let stands = cycle.stand(&mut member.lock(), fork.ticket, all_parked);
            drop(cycle);
            stands.map_err(|refused| match refused {
                Refused::Role => EACCES,
                other => other.into(),
            })?;
            fork.ticket
        };
        let result = self.with_backend(|backend| {
            let (limit, done) = (fork.timeout_ms, fork.flags);
            // SAFETY: The context is the backend's.
            unsafe { (backend.fork_point)(backend.context, ticket, limit, done) }
        });
        let mut cycle = self.cycle.lock();
        cycle.go_on(&mut member.lock(), ticket);
        self.changed(cycle);
        let result = result.ok_or(EOPNOTSUPP)?;
        kernel::error::to_result(result)?;
        fork.result = result as u32;
        fork.counter = self.show(|all| all.told());
        fork.realtime = realtime();
        Ok(())
    }

    /// Asks the hypervisor for a snapshot of the machine. The caller has the request then, in the
    /// place of an agent, and the machine is to stand still for it.
    fn ask_for_itself(&self, fork: &ForkPoint) -> Result<Ticket> {
        let (tag, limit) = (fork.ticket, fork.timeout_ms);
        // Who asks has not waited for participants.
        if tag == 0 || fork.flags & ForkPoint::PARKED != 0 {
            return Err(EINVAL);
        }
        let mut ticket = 0;
        // SAFETY: The context is the backend's, and the ticket lives for the call.
        let asked = self.with_backend(|backend| unsafe {
            (backend.ask)(backend.context, tag, limit, &mut ticket)
        });
        kernel::error::to_result(asked.ok_or(EOPNOTSUPP)?)?;
        let mut cycle = self.cycle.lock();
        let stands = cycle.stand_in(ticket);
        self.changed(cycle);
        if stands.is_err() {
            self.tell_refusal(ticket, Refusal::BUSY);
        }
        stands?;
        Ok(ticket)
    }

    /// The agent refuses the request.
    pub(crate) fn refuse(&self, member: &Mutex<Member>, refusal: Refusal) -> Result {
        if !(1..=Refusal::OTHER).contains(&refusal.reason) {
            return Err(EINVAL);
        }
        let mut cycle = self.cycle.lock();
        cycle.refuse(&mut member.lock(), refusal.ticket)?;
        self.changed(cycle);
        self.tell_refusal(refusal.ticket, refusal.reason);
        Ok(())
    }

    /// Waits for what the backend has to do for a generation that it knows of before anybody else
    /// does. EAGAIN: it takes too long.
    pub(crate) fn wait_for_backend(&self) -> Result {
        // SAFETY: The context is the backend's.
        let done = self.with_backend(|backend| unsafe { (backend.finish)(backend.context) });
        kernel::error::to_result(done.unwrap_or_default())
    }

    /// The agent has made it another machine in the generation with this counter.
    pub(crate) fn identity(&self, member: &Mutex<Member>, counter: u32) -> Result {
        if member.lock().role() != Role::Agent {
            return Err(EPERM);
        }
        loop {
            self.wait_for_backend()?;
            let state = self.lock();
            match state.generations.check(&state.counter, counter) {
                Ok(()) => {
                    if !state.backend.is_null() {
                        // SAFETY: A backend that is registered is alive.
                        unsafe { ((*state.backend).identity)((*state.backend).context, counter) };
                    }
                    return Ok(());
                }
                Err(Moved::Moved) => {}
                Err(_) => return Err(EINVAL),
            }
        }
    }
}

/// `CLOCK_REALTIME` in nanoseconds.
fn realtime() -> u64 {
    let mut now = bindings::timespec64::default();
    // SAFETY: The call fills in `now`.
    unsafe { bindings::ktime_get_real_ts64(&mut now) };
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}
