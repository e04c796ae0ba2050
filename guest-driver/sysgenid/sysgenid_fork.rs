// SPDX-License-Identifier: GPL-2.0

//! The fork point: the machine stands still in its kernel while the hypervisor takes a snapshot of
//! it. In a clone no user instruction runs before the kernel's random number generator has been
//! reseeded and the counter moved.
//!
//! Without PREEMPT_RT nobody holds a spinlock in a machine that stands still. A mutex may be held
//! by a task that does not run, so that those which are wanted are taken before.

use core::{cell::Cell, ptr};
use kernel::{
    bindings,
    ffi::{c_int, c_void},
    prelude::*,
    sync::atomic::ordering::Relaxed,
};

use crate::{
    sysgenid_backend::Backend,
    sysgenid_clock::Lag,
    sysgenid_hypervisor::{Hypervisor, Teller},
    sysgenid_page::{CounterPage, Reply, Seed, CAN_STAND},
    sysgenid_rng,
    sysgenid_settle::{Answer, Id, Machine, Settled, Still, Stood},
};

#[allow(improper_ctypes)] // As in `sysgenid_hypervisor.rs`.
extern "C" {
    fn sysgenid_hold(
        backend: *const Backend,
        hold: unsafe extern "C" fn(*mut c_void, *mut c_void),
        context: *mut c_void,
    ) -> bool;
    fn sysgenid_held_told(held: *const c_void) -> u32;
    fn sysgenid_held_begin(held: *mut c_void, seen: u32) -> bool;
    fn sysgenid_stop_machine(
        still: unsafe extern "C" fn(*mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn sysgenid_relax();
    fn sysgenid_ask(ticket: u32) -> bool;
    fn sysgenid_over(ticket: u32);
}

/// How long the machine stands still if nobody says more, and at most, in milliseconds. A CPU that
/// does nothing else for 20 s is taken for locked up.
const USUAL_LIMIT: u32 = 2_000;
const LONGEST_LIMIT: u32 = 10_000;
const NSEC_PER_MSEC: u64 = 1_000_000;

/// How long a clone waits for the kernel's driver to hear of it, in milliseconds.
const CHAIN_LIMIT: u32 = 1_000;

/// Why there was no fork point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoFork {
    /// The kernel or the hypervisor has none.
    Unsupported,
    /// The generator has not been seeded yet.
    NotSeeded,
    /// The generator cannot be reseeded.
    NotReseeded,
    /// The request is not the present one.
    Stale,
    /// The hypervisor has given up.
    Cancelled,
    /// It has not answered in time.
    Late,
    /// The machine could not be stopped.
    NotStopped,
    /// Another program asks the hypervisor at the same time.
    Busy,
    /// The hypervisor does not want a snapshot.
    Refused,
    /// A signal came before it said so.
    Interrupted,
}

impl NoFork {
    /// What the hypervisor is told, if it waits for an answer: `SYSGENID_REFUSED_...`.
    pub(crate) fn reason(self) -> Option<u32> {
        match self {
            Self::NotSeeded => Some(4),
            Self::Unsupported => Some(5),
            Self::NotReseeded => Some(9),
            Self::NotStopped => Some(10),
            Self::Stale | Self::Cancelled | Self::Late => None,
            // There is no request.
            Self::Busy | Self::Refused | Self::Interrupted => None,
        }
    }
}

impl From<NoFork> for Error {
    fn from(why: NoFork) -> Self {
        match why {
            NoFork::Unsupported => EOPNOTSUPP,
            NoFork::NotSeeded | NoFork::NotReseeded | NoFork::NotStopped => EAGAIN,
            NoFork::Stale => ESTALE,
            NoFork::Cancelled => ECANCELED,
            NoFork::Late => ETIME,
            NoFork::Busy => EBUSY,
            NoFork::Refused => EPERM,
            NoFork::Interrupted => EINTR,
        }
    }
}

/// A limit in milliseconds, as a program has said it.
pub(crate) fn allowed_limit(limit: u32) -> u32 {
    match limit {
        0 => USUAL_LIMIT,
        limit => limit.min(LONGEST_LIMIT),
    }
}

/// Who goes on: `SYSGENID_FORK_...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The machine that was asked.
    Original = 1,
    /// Another one.
    Clone = 2,
}

/// A machine that stands still, or is about to.
struct Standing<'a> {
    hypervisor: &'a Hypervisor,
    page: &'a CounterPage,
    settled: Cell<Option<&'a mut Settled>>,
    ticket: u32,
    /// In nanoseconds.
    limit: u64,
    /// sysgenid's state, held.
    held: Cell<*mut c_void>,
    waited: Cell<u64>,
    now: Cell<u64>,
    stood: Cell<Option<Stood>>,
}

impl Hypervisor {
    /// Has the machine stand still for the request `ticket`, for at most so many milliseconds; 0
    /// is as long as usual. `done` is what has been done before, by flags.
    ///
    /// Process context; may sleep.
    pub(crate) fn fork_point(&self, ticket: u32, limit: u32, done: u32) -> Result<Fork, NoFork> {
        let page = self.page.as_ref().filter(|page| page.has_fork_point());
        let page = page.ok_or(NoFork::Unsupported)?;
        if page.request().map(|request| request.0) != Some(ticket) {
            return Err(NoFork::Stale);
        }
        if !sysgenid_rng::is_ready() {
            return Err(NoFork::NotSeeded);
        }
        let mut guard = self.settled.lock();
        let Some(settled) = &mut *guard else {
            return Err(NoFork::Unsupported);
        };
        settled.settle(self);
        // What does not work now would not in a clone, where it is too late to refuse.
        if !self.rng.again() {
            return Err(NoFork::NotReseeded);
        }
        let standing = Standing {
            hypervisor: self,
            page,
            settled: Cell::new(Some(settled)),
            ticket,
            limit: u64::from(allowed_limit(limit)) * NSEC_PER_MSEC,
            held: Cell::new(ptr::null_mut()),
            waited: Cell::new(0),
            now: Cell::new(0),
            stood: Cell::new(None),
        };
        page.reply(ticket, Reply::Quiesced(done));
        let context = ptr::from_ref(&standing).cast_mut().cast();
        // SAFETY: The function may be called with a machine that is about to stand still.
        let held = unsafe { sysgenid_hold(&raw const self.backend, hold, context) };
        let (stood, late) = (standing.stood.get(), standing.is_over());
        drop(guard);
        match stood {
            Some(Stood::Clone) => {
                self.complete();
                Ok(Fork::Clone)
            }
            Some(Stood::Original) => Ok(Fork::Original),
            Some(Stood::Aborted) if late => Err(NoFork::Late),
            Some(Stood::Aborted) => Err(NoFork::Cancelled),
            None if held => Err(NoFork::NotStopped),
            None => Err(NoFork::Unsupported),
        }
    }

    /// Waits in a clone, for a time, for what comes late in a generation: then nothing of the
    /// machine's is the other clones' any more. Nobody is told before that it is ready.
    fn complete(&self) {
        if !self.wait_for_following() {
            pr_warn!("what follows the generation is late\n");
        }
        if self.teller == Teller::Kernel {
            self.wait_for_chain(CHAIN_LIMIT);
        }
    }

    /// The hypervisor may have something to ask, or not any more. Returns whether that is new.
    pub(crate) fn look_for_request(&self) -> bool {
        let Some(page) = &self.page else {
            return false;
        };
        // An agent that is quick is not heard before the hypervisor knows that there is one.
        let _settled = self.settled.lock();
        let ticket = page.request().map_or(0, |request| request.0);
        self.wake_asker();
        if self.request.load(Relaxed) == ticket || self.is_own(page, ticket) {
            return false;
        }
        self.request.store(ticket, Relaxed);
        if ticket != 0 && !CAN_STAND {
            pr_warn!("a kernel with PREEMPT_RT has no fork point\n");
            page.reply(ticket, Reply::Refused(5));
            return true;
        }
        // SAFETY: The module is loaded as long as ours is.
        let agent = unsafe { sysgenid_ask(ticket) };
        if ticket == 0 {
            return true;
        }
        page.reply(ticket, Reply::Known { agent });
        if !agent {
            self.alone.store(ticket, Relaxed);
            self.forking.queue();
        }
        true
    }

    /// The fork point of a machine without an agent.
    pub(crate) fn fork_alone(&self) {
        let ticket = self.alone.load(Relaxed);
        if let Ok(fork) = self.fork_point_or_refusal(ticket, 0, 0) {
            pr_info!("a fork point without an agent: {fork:?}\n");
        }
        // SAFETY: The module is loaded as long as ours is.
        unsafe { sysgenid_over(ticket) };
    }

    /// As [`Hypervisor::fork_point`]; the hypervisor is told why there is none.
    fn fork_point_or_refusal(&self, ticket: u32, limit: u32, done: u32) -> Result<Fork, NoFork> {
        self.fork_point(ticket, limit, done).inspect_err(|why| {
            pr_warn!("no fork point: {why:?}\n");
            if let (Some(page), Some(reason)) = (&self.page, why.reason()) {
                page.reply(ticket, Reply::Refused(reason));
            }
        })
    }

    fn reply(&self, ticket: u32, reply: Reply) {
        if let Some(page) = &self.page {
            page.reply(ticket, reply);
        }
    }
}

impl Standing<'_> {
    fn is_over(&self) -> bool {
        self.waited.get() >= self.limit
    }
}

impl Machine for Standing<'_> {
    fn id(&self) -> Id {
        self.hypervisor.id()
    }

    fn counter(&self) -> u32 {
        self.hypervisor.counter()
    }

    fn told(&self) -> u32 {
        // SAFETY: The state is held.
        unsafe { sysgenid_held_told(self.held.get()) }
    }

    fn reseed(&self, id: &Id) -> bool {
        let seed = self.page.seed();
        let seed = seed.as_ref().map_or(&[][..], Seed::as_slice);
        let hypervisor = self.hypervisor;
        let reseeded = hypervisor.rng.reseed_standing(id, seed, self.counter());
        hypervisor.reseeded.store(reseeded, Relaxed);
        reseeded
    }

    fn reseeded(&self, counter: u32) {
        self.page.reseeded(counter);
    }

    fn adjust(&self) {
        self.hypervisor.expect_chain();
    }

    fn begin(&self, seen: u32) -> bool {
        // SAFETY: The state is held.
        unsafe { sysgenid_held_begin(self.held.get(), seen) }
    }
}

impl Still for Standing<'_> {
    fn stand(&self) {
        self.now.set(now());
        self.page.stand(self.ticket);
    }

    fn answer(&self) -> Answer {
        self.page.answer()
    }

    /// The time is added up, so that a clock that wraps or is set back ends nothing too early, and
    /// cannot keep the machine from going on.
    fn is_late(&self) -> bool {
        // SAFETY: The function has no requirements.
        unsafe { sysgenid_relax() };
        let now = now();
        let more = now.saturating_sub(self.now.replace(now));
        self.waited.set(self.waited.get().saturating_add(more));
        self.is_over()
    }

    fn give_up(&self) {
        self.page.give_up(self.ticket);
    }
}

/// A clock that can be read at any time, in nanoseconds.
fn now() -> u64 {
    // SAFETY: The function has no requirements.
    unsafe { bindings::ktime_get_mono_fast_ns() }
}

/// Stops the machine. Then the clock is set, before anybody is told of a generation.
///
/// # Safety
///
/// The context is a [`Standing`], and `held` the state.
unsafe extern "C" fn hold(context: *mut c_void, held: *mut c_void) {
    // SAFETY: See above.
    let standing = unsafe { &*context.cast::<Standing<'_>>() };
    standing.held.set(held);
    // SAFETY: The function may be called with the context.
    if unsafe { sysgenid_stop_machine(still, context) } != 0 {
        return;
    }
    standing.hypervisor.step_clock(match standing.stood.get() {
        Some(Stood::Clone) => Lag::Any,
        _ => Lag::Pause,
    });
    // Before anybody can know of the generation, so that whoever does finds it queued. The
    // original has been reseeded as well.
    standing.hypervisor.following.queue();
}

/// # Safety
///
/// The context is a [`Standing`], whose state is held, and all CPUs stand still.
unsafe extern "C" fn still(context: *mut c_void) -> c_int {
    // SAFETY: See above. The one CPU that does not wait is the only one that has it.
    let standing = unsafe { &*context.cast::<Standing<'_>>() };
    if let Some(settled) = standing.settled.take() {
        standing.stood.set(Some(settled.stand(standing)));
    }
    0
}

/// # Safety
///
/// The context is a [`Hypervisor`].
pub(crate) unsafe extern "C" fn limit(context: *mut c_void) -> u32 {
    // SAFETY: See above.
    let hypervisor = unsafe { &*context.cast::<Hypervisor>() };
    let request = hypervisor.page.as_ref().and_then(CounterPage::request);
    request.map_or(0, |request| request.1)
}

/// # Safety
///
/// The context is a [`Hypervisor`].
pub(crate) unsafe extern "C" fn fork_point(
    context: *mut c_void,
    ticket: u32,
    limit: u32,
    done: u32,
) -> c_int {
    // SAFETY: See above.
    let hypervisor = unsafe { &*context.cast::<Hypervisor>() };
    match hypervisor.fork_point_or_refusal(ticket, limit, done) {
        Ok(fork) => fork as c_int,
        Err(why) => Error::from(why).to_errno(),
    }
}

/// # Safety
///
/// The context is a [`Hypervisor`].
pub(crate) unsafe extern "C" fn refuse(context: *mut c_void, ticket: u32, reason: u32) {
    // SAFETY: See above.
    let hypervisor = unsafe { &*context.cast::<Hypervisor>() };
    hypervisor.reply(ticket, Reply::Refused(reason));
}

/// # Safety
///
/// The context is a [`Hypervisor`].
pub(crate) unsafe extern "C" fn identity(context: *mut c_void, counter: u32) {
    // SAFETY: See above.
    let hypervisor = unsafe { &*context.cast::<Hypervisor>() };
    hypervisor.reply(counter, Reply::Identity);
}
