// SPDX-License-Identifier: GPL-2.0

//! A snapshot of the machine that one of its own programs asks the hypervisor for. What comes of it
//! is a request as any other, which that program has in the place of the agent.

use kernel::{
    ffi::{c_int, c_void},
    prelude::*,
    sync::{atomic::ordering::Relaxed, CondVarTimeoutResult},
    time::msecs_to_jiffies,
};

use crate::{
    sysgenid_fork::{allowed_limit, NoFork},
    sysgenid_hypervisor::Hypervisor,
    sysgenid_page::{Asked, CounterPage, Reply},
};

/// The reason of a refusal: nobody waits for the request any more.
const ASKER_GONE: u32 = 7;

impl Hypervisor {
    /// Asks the hypervisor for a snapshot, and sleeps until there is the request that answers it,
    /// for at most so many milliseconds; 0 is as long as usual. Returns the ticket.
    ///
    /// Process context; may sleep.
    fn ask(&self, tag: u32, limit: u32) -> Result<u32, NoFork> {
        let page = self.page.as_ref().filter(|page| page.may_ask());
        let page = page.ok_or(NoFork::Unsupported)?;
        // Who looks for requests holds this as well, and takes no other's for ours.
        let mut settled = self.settled.lock();
        if self.asking.load(Relaxed) {
            return Err(NoFork::Busy);
        }
        self.asking.store(true, Relaxed);
        page.ask(tag);
        let mut left = msecs_to_jiffies(allowed_limit(limit));
        let answer = loop {
            match page.asked() {
                Asked::Granted(ticket) => break Ok(ticket),
                Asked::Refused => break Err(NoFork::Refused),
                Asked::Over => break Err(NoFork::Cancelled),
                Asked::Waits if left == 0 => break Err(NoFork::Late),
                Asked::Waits => {}
            }
            left = match self.answered.wait_interruptible_timeout(&mut settled, left) {
                CondVarTimeoutResult::Signal { .. } => break Err(NoFork::Interrupted),
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Timeout => 0,
            };
        };
        self.asking.store(false, Relaxed);
        match answer {
            Ok(ticket) => {
                self.request.store(ticket, Relaxed);
                page.reply(ticket, Reply::Known { agent: true });
            }
            Err(_) => self.ask_no_more(page),
        }
        answer
    }

    fn ask_no_more(&self, page: &CounterPage) {
        page.ask(0);
        // It may have been granted since we looked.
        if let Asked::Granted(ticket) = page.asked() {
            page.reply(ticket, Reply::Refused(ASKER_GONE));
        }
    }

    /// There may be an answer.
    pub(crate) fn wake_asker(&self) {
        self.answered.notify_all();
    }

    /// Whether the request `ticket` is an answer, and so none for the agent: who has asked takes it.
    /// The caller holds what is settled.
    pub(crate) fn is_own(&self, page: &CounterPage, ticket: u32) -> bool {
        let own = ticket != 0 && page.asked() == Asked::Granted(ticket);
        if own && !self.asking.load(Relaxed) {
            page.reply(ticket, Reply::Refused(ASKER_GONE));
        }
        own
    }
}

/// # Safety
///
/// The context is a [`Hypervisor`], and the ticket may be written to.
pub(crate) unsafe extern "C" fn ask(
    context: *mut c_void,
    tag: u32,
    limit: u32,
    ticket: *mut u32,
) -> c_int {
    // SAFETY: See above.
    let hypervisor = unsafe { &*context.cast::<Hypervisor>() };
    match hypervisor.ask(tag, limit) {
        Ok(granted) => {
            // SAFETY: See above.
            unsafe { *ticket = granted };
            0
        }
        Err(why) => Error::from(why).to_errno(),
    }
}
