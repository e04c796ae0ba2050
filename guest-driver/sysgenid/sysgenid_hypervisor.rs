// SPDX-License-Identifier: GPL-2.0

//! The hypervisor: what it says, what it is told, and what is done about a new generation of it.

use core::ptr;
use kernel::{
    bindings,
    ffi::{c_int, c_void},
    new_condvar, new_mutex, pr_warn_once,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            ordering::{Acquire, Relaxed},
            Atomic, AtomicFlag,
        },
        CondVar, CondVarTimeoutResult, Mutex,
    },
    time::msecs_to_jiffies,
};

use crate::{
    sysgenid_acpi::{wait_for_events, AcpiDevice, Mapping},
    sysgenid_ask,
    sysgenid_backend::{Backend, Report},
    sysgenid_clock::{self, Lag},
    sysgenid_fork,
    sysgenid_page::CounterPage,
    sysgenid_rng::Urandom,
    sysgenid_settle::{Id, Machine, Settled},
    sysgenid_work::Work,
    LocalModule,
};

// Only pointers to the kernel's own types are in the backend, and the lint looks behind them.
#[allow(improper_ctypes)]
extern "C" {
    fn sysgenid_register_backend(backend: *const Backend, seen: u32) -> c_int;
    fn sysgenid_unregister_backend(backend: *const Backend);
    fn sysgenid_counter() -> u32;
    fn sysgenid_told() -> u32;
    fn sysgenid_begin_generation(seen: u32) -> bool;
}

/// How long a call waits for what follows a generation, in milliseconds. It is for tasks that were
/// preempted to go on, which one that is kept from running does not.
const FOLLOWING_LIMIT: u32 = 10_000;

/// The backend is known to sysgenid, until this is dropped.
pub(crate) struct Registered(*const Backend);

// SAFETY: A backend may be unregistered by any thread.
unsafe impl Send for Registered {}
// SAFETY: Nothing is done with a shared one.
unsafe impl Sync for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: The backend was registered.
        unsafe { sysgenid_unregister_backend(self.0) };
    }
}

/// Who tells those of the kernel who want to hear of a fork: the vmfork notifier chain, by which
/// WireGuard drops its session keys.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // Which of them there are depends on the kernel's configuration.
pub(crate) enum Teller {
    /// The kernel's vmgenid driver.
    Kernel,
    /// We do.
    Us,
    /// There is no chain.
    Nobody,
}

/// Calls of the chain that are under way, and the ID when the latest began.
struct Chains {
    running: u32,
    id: Id,
}

/// What is known of the hypervisor. What is named first is dropped first.
#[pin_data]
pub(crate) struct Hypervisor {
    /// A fork point without an agent; see `sysgenid_fork.rs`.
    #[pin]
    pub(crate) forking: Work,
    /// What follows a new generation; see [`Hypervisor::follow`].
    #[pin]
    pub(crate) following: Work,
    pub(crate) backend: Backend,
    id: Mapping,
    pub(crate) rng: Pin<KBox<Urandom>>,
    pub(crate) page: Option<CounterPage>,
    pub(crate) teller: Teller,
    /// The ticket of the hypervisor's request, when last looked at; 0 if there was none.
    pub(crate) request: Atomic<u32>,
    /// That of the last one that no agent has.
    pub(crate) alone: Atomic<u32>,
    /// A program asks for a snapshot; see `sysgenid_ask.rs`. Only accessed with `settled` held.
    pub(crate) asking: AtomicFlag,
    /// It waits for an answer.
    #[pin]
    pub(crate) answered: CondVar,
    /// The chain is to be called.
    owed: AtomicFlag,
    /// The kernel's generator has been reseeded in the present generation, and its chain called.
    pub(crate) reseeded: AtomicFlag,
    chained: AtomicFlag,
    #[pin]
    #[cfg_attr(not(CONFIG_VMGENID), allow(dead_code))]
    chains: Mutex<Chains>,
    /// Those who wait until the chain has been called.
    #[pin]
    chain_called: CondVar,
    /// None until it is started.
    #[pin]
    pub(crate) settled: Mutex<Option<Settled>>,
}

// SAFETY: The pointers are to the module and to the value itself.
unsafe impl Send for Hypervisor {}
// SAFETY: As above; what is shared is behind a lock, or atomic.
unsafe impl Sync for Hypervisor {}

impl Hypervisor {
    /// The machine has stood still in the midst of a generation, or there is a request.
    pub(crate) fn notified(&self) {
        // It may be both, but one that only asks does not set the clock of a machine that runs.
        let lag = match self.look_for_request() {
            true => Lag::Pause,
            false => Lag::Any,
        };
        // Who reads the time latches it for all: one at a time.
        let _settled = self.settled.lock();
        self.step_clock(lag);
    }

    /// Sets the clock to the hypervisor's time, if it offers that and the clock is that late.
    pub(crate) fn step_clock(&self, lag: Lag) {
        if let Some(page) = &self.page {
            sysgenid_clock::step(page, lag);
        }
    }

    /// The one that `device` is of; nothing happens until it is started.
    pub(crate) fn new(device: &AcpiDevice, teller: Teller) -> Result<Pin<KBox<Self>>> {
        let address = device.address()?;
        if address % 8 != 0 {
            pr_err!("the ID's address {address:#x} is not aligned\n");
            return Err(EINVAL);
        }
        let id = Mapping::new(address, size_of::<Id>())?;
        let page = CounterPage::find();
        let rng = Urandom::new()?;
        let (word, pfn) = match &page {
            Some(page) => (page.word(), page.frame()),
            None => (ptr::null_mut(), 0),
        };
        KBox::pin_init(
            pin_init!(&this in Self {
                // SAFETY: The work is a field of what it is called with, and goes first.
                forking <- unsafe {
                    Work::new(
                        c"sysgenid fork",
                        static_lock_class!(),
                        fork_alone,
                        this.as_ptr().cast_const().cast(),
                    )
                },
                // SAFETY: As above.
                following <- unsafe {
                    Work::new(
                        c"sysgenid follow",
                        static_lock_class!(),
                        follow,
                        this.as_ptr().cast_const().cast(),
                    )
                },
                backend: Backend {
                    owner: kernel::module::this_module::<LocalModule>().as_ptr(),
                    context: this.as_ptr().cast(),
                    word,
                    pfn,
                    settle,
                    finish,
                    report,
                    limit: sysgenid_fork::limit,
                    fork_point: sysgenid_fork::fork_point,
                    refuse: sysgenid_fork::refuse,
                    identity: sysgenid_fork::identity,
                    ask: sysgenid_ask::ask,
                },
                id,
                rng,
                page,
                teller,
                request: Atomic::new(0),
                alone: Atomic::new(0),
                asking: AtomicFlag::new(false),
                answered <- new_condvar!(),
                owed: AtomicFlag::new(false),
                reseeded: AtomicFlag::new(false),
                chained: AtomicFlag::new(*teller == Teller::Nobody),
                chains <- new_mutex!(Chains { running: 0, id: Id::default() }),
                chain_called <- new_condvar!(),
                settled <- new_mutex!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes the machine as it is now for settled, makes it known to programs, and deals with
    /// changes from now on. The kernel's generator is reseeded before any program is told of a
    /// counter that is new to it.
    pub(crate) fn start(&self) -> Result<Registered> {
        let backend = &raw const self.backend;
        let mut settled = self.settled.lock();
        *settled = Some(Settled::start(self, |seen| {
            // SAFETY: The caller drops what we return before this.
            let registered = unsafe { sysgenid_register_backend(backend, seen) };
            match kernel::error::to_result(registered) {
                Ok(()) => Ok(true),
                Err(error) if error == EAGAIN => Ok(false),
                Err(error) => Err(error),
            }
        })?);
        drop(settled);
        let registered = Registered(backend);
        self.settle();
        self.catch_up();
        Ok(registered)
    }

    /// Deals with what has changed.
    pub(crate) fn settle(&self) {
        if let Some(settled) = &mut *self.settled.lock() {
            settled.settle(self);
        }
    }

    /// A fork from before the start may not have been told to the chain. Where nobody knows, none
    /// is made up.
    fn catch_up(&self) {
        let Some(page) = &self.page else {
            return;
        };
        let Some(id) = self.settled_id() else {
            return;
        };
        if page.knows_chain(self.told()) {
            return;
        }
        match self.teller {
            // Its driver was there before us, and has been notified.
            Teller::Kernel => {
                wait_for_events();
                self.chained_for(&id);
            }
            Teller::Us => {
                self.owed.store(true, Relaxed);
                self.following.queue();
            }
            Teller::Nobody => {}
        }
    }

    /// The ID of the present generation, unless another one has not been dealt with.
    fn settled_id(&self) -> Option<Id> {
        self.settled.lock().as_ref()?.present(self)
    }

    /// The kernel's chain is being called; we are the first in it.
    #[cfg(CONFIG_VMGENID)]
    pub(crate) fn forking(&self) {
        let mut chains = self.chains.lock();
        chains.running += 1;
        chains.id = self.id();
    }

    /// The kernel's chain has been called; we are the last in it. The one that was begun last was
    /// begun with that ID, and no other is under way.
    #[cfg(CONFIG_VMGENID)]
    pub(crate) fn forked(&self) {
        self.settle();
        let mut chains = self.chains.lock();
        // We may have been linked in at the end while the call was under way.
        chains.running = chains.running.saturating_sub(1);
        if chains.running == 0 {
            let id = chains.id;
            drop(chains);
            self.chained_for(&id);
        }
    }

    /// Tells the hypervisor that the chain has been called for `id`, if that is the present one.
    fn chained_for(&self, id: &Id) {
        let settled = self.settled.lock();
        if settled.as_ref().and_then(|settled| settled.present(self)) == Some(*id) {
            self.chained.store(true, Relaxed);
            if let Some(page) = &self.page {
                page.chain(self.told());
            }
            let _chains = self.chains.lock();
            self.chain_called.notify_all();
        }
    }

    /// Nothing has been told to the chain in the generation that begins now.
    pub(crate) fn expect_chain(&self) {
        self.chained.store(self.teller == Teller::Nobody, Relaxed);
        self.owed.store(self.teller == Teller::Us, Relaxed);
    }

    /// Waits until the chain has been called in the present generation, or for so many
    /// milliseconds.
    pub(crate) fn wait_for_chain(&self, limit: u32) {
        let mut left = msecs_to_jiffies(limit);
        let mut chains = self.chains.lock();
        while !self.chained.load(Relaxed) {
            match self.chain_called.wait_interruptible_timeout(&mut chains, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                _ => return,
            }
        }
    }

    /// Waits until what follows a generation has been done, for a time, and unless the caller is
    /// killed. Returns whether it has been.
    pub(crate) fn wait_for_following(&self) -> bool {
        self.following.wait(FOLLOWING_LIMIT)
    }

    /// What follows a new generation, when the watchers know of it.
    ///
    /// The kernel extracts a new key for its generator before it takes the lock to install it. A
    /// task that was preempted between the two when the machine was snapshotted installs a key that
    /// all clones have, over that of the reseeding. When each task that was preempted has gone on
    /// to where it sleeps, none of them is there any more, and another reseeding stays.
    fn follow(&self) {
        // Whoever settles has queued us, and holds the lock until it is done.
        let settled = self.settled_id();
        #[cfg(CONFIG_VMGENID = "m")]
        if self.owed.xchg(false, Relaxed) {
            if let Some(id) = settled {
                // Without a lock: who is told may take any, and call us.
                // SAFETY: The ID has as many bytes as are said.
                unsafe { bindings::add_vmfork_randomness(id.as_ptr().cast(), id.len()) };
                self.chained_for(&id);
            }
        }
        let _ = settled;
        // SAFETY: A work item may sleep.
        #[cfg(CONFIG_TASKS_RCU)]
        unsafe {
            bindings::synchronize_rcu_tasks()
        };
        let settled = self.settled.lock();
        if !self.rng.again() {
            pr_warn_once!("the kernel's random number generator was not reseeded again\n");
        }
        drop(settled);
        // A request may have gone with the generation before.
        self.look_for_request();
    }

    /// Tells the hypervisor that this kernel goes.
    pub(crate) fn goodbye(&self) {
        if let Some(page) = &self.page {
            page.goodbye();
        }
    }

    /// The machine was switched off, and its memory brought back.
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn woke(&self) {
        if let Some(page) = &self.page {
            page.hello();
        }
        self.settle();
    }
}

impl Machine for Hypervisor {
    fn id(&self) -> Id {
        let halves: *mut u64 = self.id.as_ptr().cast();
        // SAFETY: The mapping is of the ID, and aligned.
        let (low, high) =
            unsafe { (Atomic::<u64>::from_ptr(halves), Atomic::<u64>::from_ptr(halves.add(1))) };
        let read = || [low.load(Acquire), high.load(Acquire)];
        let mut before = read();
        // The ID may change between the halves, but does not all the time.
        loop {
            let now = read();
            if now == before {
                let [low, high] = now.map(u64::to_ne_bytes);
                let mut id = Id::default();
                id[..8].copy_from_slice(&low);
                id[8..].copy_from_slice(&high);
                return id;
            }
            before = now;
        }
    }

    fn counter(&self) -> u32 {
        match &self.page {
            // SAFETY: The page is mapped, and the word only accessed atomically.
            Some(page) => unsafe { Atomic::from_ptr(page.word()) }.load(Acquire),
            // SAFETY: The module is loaded as long as ours is.
            None => unsafe { sysgenid_counter() },
        }
    }

    fn told(&self) -> u32 {
        // SAFETY: As above.
        unsafe { sysgenid_told() }
    }

    fn reseed(&self, id: &Id) -> bool {
        let reseeded = self.rng.reseed(id);
        self.reseeded.store(reseeded, Relaxed);
        // Before anybody can know of the generation, so that whoever does finds it queued.
        self.following.queue();
        reseeded
    }

    fn reseeded(&self, counter: u32) {
        if let Some(page) = &self.page {
            page.reseeded(counter);
        }
    }

    fn adjust(&self) {
        self.step_clock(Lag::Any);
        self.expect_chain();
    }

    fn begin(&self, seen: u32) -> bool {
        // SAFETY: As for the counter.
        unsafe { sysgenid_begin_generation(seen) }
    }
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe fn fork_alone(context: *const c_void) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.fork_alone();
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe fn follow(context: *const c_void) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.follow();
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe extern "C" fn settle(context: *mut c_void) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.settle();
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe extern "C" fn finish(context: *mut c_void) -> c_int {
    // SAFETY: See above.
    match unsafe { &*context.cast::<Hypervisor>() }.wait_for_following() {
        true => 0,
        false => EAGAIN.to_errno(),
    }
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe extern "C" fn report(context: *mut c_void, report: *const Report) {
    // SAFETY: See above; the report lives for the call.
    let (hypervisor, report) = unsafe { (&*context.cast::<Hypervisor>(), &*report) };
    if let Some(page) = &hypervisor.page {
        let (reseeded, chained) = (
            hypervisor.reseeded.load(Relaxed),
            hypervisor.chained.load(Relaxed),
        );
        page.report(report, reseeded, chained);
    }
}
