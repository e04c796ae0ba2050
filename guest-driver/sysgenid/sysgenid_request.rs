// SPDX-License-Identifier: GPL-2.0

//! Requests for a fork point: the lock around those who take part, who sleeps and who is woken.

use crate::{
    sysgenid_abi::{ForkPoint, Refusal, Request},
    sysgenid_core::Refusal as Moved,
    sysgenid_cycle::{Cycle, Member, Parked, Refused, Role},
    sysgenid_device::Device,
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

impl Device {
    /// The hypervisor asks, or not any more. Returns whether an agent has it.
    pub(crate) fn ask(&self, ticket: u32) -> bool {
        let mut cycle = self.cycle.lock();
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
    fn changed(&self, cycle: MutexGuard<'_, Cycle>) {
        self.show_pending(cycle.is_pending());
        drop(cycle);
        self.members.notify_all();
    }

    /// A file takes a role.
    pub(crate) fn set_role(&self, member: &Mutex<Member>, role: Role) -> Result {
        let mut cycle = self.cycle.lock();
        let left = cycle.take(&mut member.lock(), role)?;
        self.changed(cycle);
        self.leave_behind(left);
        Ok(())
    }

    /// A file goes.
    pub(crate) fn leave(&self, member: &Mutex<Member>) {
        let mut cycle = self.cycle.lock();
        let left = cycle.leave(&mut member.lock());
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
        self.cycle.lock().is_urgent(&member.lock())
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
                // One that is frozen runs nothing, and comes back to this call.
                if !is_being_frozen() {
                    cycle.unpark(&mut member.lock());
                }
                return Err(ERESTARTNOHAND);
            }
            parked = cycle.look(&mut member.lock(), told);
        }
    }

    /// Sleeps until all participants are parked.
    pub(crate) fn wait_parked(&self, member: &Mutex<Member>, limit: Jiffies) -> Result {
        let mut left = limit;
        let mut cycle = self.cycle.lock();
        while !cycle.all_parked(&member.lock())? {
            if left == 0 {
                return Err(ETIME);
            }
            left = match self.members.wait_interruptible_timeout(&mut cycle, left) {
                CondVarTimeoutResult::Signal { .. } => return Err(EINTR),
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Timeout => 0,
            };
        }
        Ok(())
    }

    /// Has the machine stand still, and fills in how it goes on.
    pub(crate) fn fork_point(&self, member: &Mutex<Member>, fork: &mut ForkPoint) -> Result {
        if fork.size as usize != size_of::<ForkPoint>()
            || fork.flags & !(ForkPoint::DONE | ForkPoint::SELF) != 0
        {
            return Err(EINVAL);
        }
        if fork.flags & ForkPoint::SELF != 0 {
            return Err(EPERM);
        }
        let ticket = fork.ticket;
        let stands = self.cycle.lock().stand(&mut member.lock(), ticket);
        stands.map_err(|refused| match refused {
            Refused::Role => EACCES,
            other => other.into(),
        })?;
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

/// Whether the caller is about to be frozen with its control group. It is woken for that as by a
/// signal, and then runs no program until it is thawed.
fn is_being_frozen() -> bool {
    const JOBCTL_TRAP_FREEZE: usize = 1 << 23;
    // SAFETY: The present task is there; others change the word, by a store.
    unsafe {
        (&raw const (*bindings::get_current()).jobctl).read_volatile() & JOBCTL_TRAP_FREEZE != 0
    }
}
