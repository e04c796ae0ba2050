// SPDX-License-Identifier: GPL-2.0

//! The counter's page, the lock around the watchers, and who is woken: what `sysgenid_core.rs`
//! leaves to a kernel.

use crate::{
    sysgenid_backend::{Backend, Report},
    sysgenid_core::{Generations, Numbers, Refusal, Tracking, Wake, Waiting, Watcher, Word},
    sysgenid_request::Round,
};
use core::ptr;
use kernel::{
    bindings,
    new_mutex, new_poll_condvar,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            ordering::{Acquire, Full, Relaxed, Release},
            Atomic,
        },
        lock::mutex::MutexGuard,
        poll::PollCondVar,
        CondVarTimeoutResult, Mutex,
    },
    time::Jiffies,
};

/// A page of our own for the counter, where no hypervisor has one.
#[repr(C, align(4096))]
struct OwnPage {
    counter: Atomic<u32>,
    /// Not 0 while there is a request for a fork point.
    pending: Atomic<u32>,
    rest: [u8; bindings::PAGE_SIZE - 8],
}

/// The word that holds the counter.
#[derive(Clone, Copy)]
pub(crate) struct Counter(*mut u32);

impl Counter {
    fn atomic(&self) -> &Atomic<u32> {
        // SAFETY: The word is that of the own page, which lives as long as the device, or that of
        // a backend, which lives until it has been unregistered; both are aligned, and only
        // accessed atomically.
        unsafe { Atomic::from_ptr(self.0) }
    }
}

impl Word for Counter {
    fn load(&self) -> u32 {
        self.atomic().load(Relaxed)
    }

    fn compare_exchange(&self, old: u32, new: u32) -> bool {
        self.atomic().cmpxchg(old, new, Full).is_ok()
    }
}

/// What the lock is around.
pub(crate) struct State {
    pub(crate) generations: Generations,
    pub(crate) counter: Counter,
    pub(crate) backend: *const Backend,
    /// The numbers that the backend was told.
    reported: Numbers,
}

// SAFETY: The pointers are to memory that outlives their being here, and that any thread may
// access.
unsafe impl Send for State {}

impl State {
    /// The watchers.
    pub(crate) fn generations(&self) -> &Generations {
        &self.generations
    }
}

/// The backend that has a page.
struct Shown(*const Backend);

// SAFETY: A backend may be held by any thread.
unsafe impl Send for Shown {}

/// The device, of which there is one.
#[pin_data]
pub(crate) struct Device {
    #[pin]
    pub(crate) state: Mutex<State>,
    /// Those who read and poll.
    #[pin]
    readers: PollCondVar,
    /// Those who wait for watchers.
    #[pin]
    waiters: PollCondVar,
    /// The present request, and who takes part; see `sysgenid_request.rs`.
    #[pin]
    pub(crate) cycle: Mutex<Round>,
    /// Those who poll for requests, are parked, or wait for such.
    #[pin]
    pub(crate) members: PollCondVar,
    own_page: VBox<OwnPage>,
    /// The backend whose page is mapped; null for the own page. Its lock is the innermost one: who
    /// maps has an address space locked, and that lock may be wanted by those who hold up a stop
    /// of the machine, before which the state is locked.
    #[pin]
    shown: Mutex<Shown>,
    /// That of `/dev/sysgenid`, for uevents; null until there is one.
    kobject: Atomic<*mut bindings::kobject>,
}

// SAFETY: What is shared is behind the lock; the page is only accessed atomically.
unsafe impl Send for Device {}
// SAFETY: As above.
unsafe impl Sync for Device {}

impl Device {
    /// A device whose counter is 0, in a page of its own.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        let own_page = VBox::new(
            OwnPage {
                counter: Atomic::new(0),
                pending: Atomic::new(0),
                rest: [0; bindings::PAGE_SIZE - 8],
            },
            GFP_KERNEL | __GFP_ZERO,
        );
        pin_init::pin_init_scope(move || {
            let own_page = own_page?;
            let counter = Counter(own_page.counter.as_ptr());
            Ok(try_pin_init!(Self {
                state <- new_mutex!(State {
                    generations: Generations::new(0),
                    counter,
                    backend: ptr::null(),
                    reported: Numbers::default(),
                }),
                readers <- new_poll_condvar!(),
                waiters <- new_poll_condvar!(),
                cycle <- new_mutex!(Round::default()),
                members <- new_poll_condvar!(),
                own_page,
                shown <- new_mutex!(Shown(ptr::null())),
                kobject: Atomic::new(ptr::null_mut()),
            }))
        })
    }

    /// The lock, with the hypervisor's latest generation dealt with: no caller sees an older one.
    ///
    /// The word may move again at any time after; whoever compares with it sees that.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        loop {
            let settled = self.settle();
            let state = self.state.lock();
            // A backend that goes deals with nothing any more, and takes its counter with it.
            if !settled || state.counter.load() == state.generations.told() {
                return state;
            }
        }
    }

    /// Has the backend look for a new generation. Returns whether there is one that can.
    fn settle(&self) -> bool {
        // SAFETY: The context is the backend's.
        self.with_backend(|backend| unsafe { (backend.settle)(backend.context) })
            .is_some()
    }

    /// Calls a function of the backend's that may sleep, if there is one.
    pub(crate) fn with_backend<R>(&self, function: impl FnOnce(&Backend) -> R) -> Option<R> {
        let backend = self.state.lock().hold_backend()?;
        // SAFETY: The backend is held: it stays as long as we call it.
        let result = function(unsafe { &*backend });
        release_backend(backend);
        Some(result)
    }

    /// A new watcher.
    pub(crate) fn open(&self, tracking: Tracking) -> Result<Watcher> {
        self.lock().generations.open(tracking).ok_or(EMFILE)
    }

    /// A watcher goes.
    pub(crate) fn close(&self, watcher: &Mutex<Watcher>) {
        let mut state = self.state.lock();
        // Nobody else has it any more; its lock is taken inside the other one here as everywhere.
        let wake = state.generations.close(&mut watcher.lock());
        self.finish(state, wake, Report::NUMBERS);
    }

    /// A watcher acknowledges, or is refused.
    pub(crate) fn acknowledge(&self, watcher: &Mutex<Watcher>, counter: u32) -> Result {
        loop {
            let mut state = self.lock();
            let word = state.counter;
            let result = state
                .generations
                .acknowledge(&word, &mut watcher.lock(), counter);
            match result {
                Ok(wake) => {
                    self.finish(state, wake, Report::NUMBERS);
                    return Ok(());
                }
                Err(Refusal::Moved) => {}
                Err(_) => return Err(EINVAL),
            }
        }
    }

    /// An agent has finished, or is refused.
    pub(crate) fn ready(&self, watcher: &Mutex<Watcher>, counter: u32) -> Result {
        loop {
            self.wait_for_backend()?;
            let mut state = self.lock();
            let word = state.counter;
            let result = state
                .generations
                .ready(&word, &mut watcher.lock(), counter);
            match result {
                Ok(()) => {
                    self.finish(state, Wake::default(), Report::NUMBERS);
                    return Ok(());
                }
                Err(Refusal::Moved) => {}
                Err(_) => return Err(EINVAL),
            }
        }
    }

    /// Others wait for a watcher, or don't.
    pub(crate) fn track(&self, watcher: &Mutex<Watcher>, tracking: Tracking) {
        let mut state = self.lock();
        let wake = state.generations.track(&mut watcher.lock(), tracking);
        self.finish(state, wake, Report::NUMBERS);
    }

    /// Whether a watcher is outdated, and the counter.
    pub(crate) fn look(&self, watcher: &Mutex<Watcher>) -> (bool, u32) {
        let state = self.lock();
        let outdated = state.generations.is_outdated(&watcher.lock());
        (outdated, state.generations.told())
    }

    /// Sleeps until a watcher is outdated; returns the counter.
    pub(crate) fn read(&self, watcher: &Mutex<Watcher>) -> Result<u32> {
        let mut state = self.lock();
        loop {
            if state.generations.is_outdated(&watcher.lock()) {
                return Ok(state.generations.told());
            }
            if self.readers.wait_interruptible(&mut state) {
                return Err(ERESTARTSYS);
            }
            drop(state);
            state = self.lock();
        }
    }

    /// Sleeps until no watcher is outdated, for `limit` or, without one, as long as it takes.
    ///
    /// A call that was interrupted begins anew where that is the same call. With a limit it is
    /// not: what was waited already would be waited again.
    pub(crate) fn wait(&self, watcher: &Mutex<Watcher>, limit: Option<Jiffies>) -> Result {
        let mut left = limit.unwrap_or(Jiffies::MAX);
        let mut state = self.lock();
        loop {
            match state.generations.wait(&watcher.lock()) {
                Waiting::Done => return Ok(()),
                Waiting::Outdated => return Err(EINTR),
                Waiting::Sleep if left == 0 => return Err(ETIME),
                Waiting::Sleep => {}
            }
            let result = self.waiters.wait_interruptible_timeout(&mut state, left);
            left = match result {
                CondVarTimeoutResult::Signal { .. } if limit.is_some() => return Err(EINTR),
                CondVarTimeoutResult::Signal { .. } => return Err(ERESTARTSYS),
                CondVarTimeoutResult::Woken { jiffies } if limit.is_some() => jiffies,
                CondVarTimeoutResult::Woken { .. } => left,
                CondVarTimeoutResult::Timeout if limit.is_some() => 0,
                CondVarTimeoutResult::Timeout => left,
            };
            drop(state);
            state = self.lock();
        }
    }

    /// Where readers and pollers wait.
    pub(crate) fn readers(&self) -> &PollCondVar {
        &self.readers
    }

    /// Begins a generation on request.
    pub(crate) fn force(&self, min: u32) -> Result {
        loop {
            let mut state = self.lock();
            let word = state.counter;
            match state.generations.force(&word, min) {
                Ok(wake) => {
                    self.finish(state, wake, Report::BEGAN);
                    return Ok(());
                }
                Err(Refusal::Moved) => {}
                Err(_) => return Err(EOVERFLOW),
            }
        }
    }

    /// Begins a generation for a backend that only knows that there is one; the counter wraps.
    pub(crate) fn bump(&self, min: u32) {
        if self.force(min).is_err() {
            while !self.begin(self.counters().0) {}
        }
    }

    /// Begins a generation of the hypervisor's, if the counter still is `seen`.
    pub(crate) fn begin(&self, seen: u32) -> bool {
        let mut state = self.state.lock();
        let word = state.counter;
        match state.generations.begin(&word, seen) {
            Ok(wake) => {
                self.finish(state, wake, Report::BEGAN);
                true
            }
            Err(_) => false,
        }
    }

    /// The counter as it is now, and as it was told.
    pub(crate) fn counters(&self) -> (u32, u32) {
        let state = self.state.lock();
        (state.counter.load(), state.generations.told())
    }

    /// The present state for those who show it, settled.
    pub(crate) fn show<R>(&self, show: impl FnOnce(&Generations) -> R) -> R {
        show(self.lock().generations())
    }

    /// Takes a backend, and its counter if it has one. `seen` is that from before the kernel's
    /// random number generator was reseeded; EAGAIN if it has moved since.
    pub(crate) fn register(&self, backend: *const Backend, seen: u32) -> Result {
        let mut state = self.state.lock();
        if !state.backend.is_null() {
            return Err(EBUSY);
        }
        // SAFETY: The caller gives us a backend that lives until it is unregistered.
        let word = unsafe { (*backend).word };
        let mut wake = Wake::default();
        if !word.is_null() {
            let counter = Counter(word);
            wake = state
                .generations
                .adopt(&counter, seen)
                .map_err(|_| EAGAIN)?;
            state.counter = counter;
            self.shown.lock().0 = backend;
        }
        state.backend = backend;
        self.finish(state, wake, Report::REGISTERED);
        // Its page may say that a request is pending, of a kernel's that was there before.
        self.ask(0);
        Ok(())
    }

    /// Lets a backend go. The counter goes on in the own page, which was kept in step.
    pub(crate) fn unregister(&self, backend: *const Backend) {
        let mut state = self.state.lock();
        if state.backend == backend {
            self.shown.lock().0 = ptr::null();
            state.backend = ptr::null();
            state.counter = self.own_counter();
            drop(state);
            // Nobody is there any more who would say that a request is over.
            self.ask(0);
        }
    }

    /// The frame of the page that holds the counter, and the backend that it belongs to, held.
    ///
    /// The hypervisor is not looked at: the caller has its address space locked, and those who are
    /// told of a reseeding may take locks under which others touch user memory. The page shows
    /// what there is anyway, and the file's opening has looked.
    pub(crate) fn page(&self) -> (usize, Option<*const Backend>) {
        if let Some(backend) = hold(self.shown.lock().0) {
            // SAFETY: It is held.
            return (unsafe { (*backend).pfn }, Some(backend));
        }
        let own = (&raw const *self.own_page).cast();
        // SAFETY: The page was allocated by vmalloc.
        (unsafe { bindings::vmalloc_to_pfn(own) }, None)
    }

    fn own_counter(&self) -> Counter {
        Counter(self.own_page.counter.as_ptr())
    }

    /// The own page is kept in step, where another one has the counter.
    pub(crate) fn show_in_own_page(&self, told: u32) {
        self.own_page.counter.store(told, Relaxed);
    }

    /// Shows whether there is a request, wherever programs may have the page from.
    pub(crate) fn show_pending(&self, pending: bool) {
        let pending = u32::from(pending);
        self.own_page.pending.store(pending, Relaxed);
        let shown = self.shown.lock();
        if !shown.0.is_null() {
            // SAFETY: A backend that is registered is alive, and its word at the start of a page.
            unsafe { Atomic::from_ptr((*shown.0).word.add(1)) }.store(pending, Relaxed);
        }
    }

    /// What has to follow each change: the own page, the host, those who sleep, user space.
    pub(crate) fn finish(&self, mut state: MutexGuard<'_, State>, wake: Wake, event: u32) {
        let told = state.generations.told();
        self.show_in_own_page(told);
        state.report(event);
        drop(state);
        if wake.readers {
            self.readers.notify_all();
        }
        if wake.waiters {
            self.waiters.notify_all();
        }
        if wake.readers {
            self.send_uevent(told);
            pr_debug!("generation {told}\n");
        }
    }

    /// Sends uevents from there from now on.
    pub(crate) fn set_kobject(&self, kobject: *mut bindings::kobject) {
        self.kobject.store(kobject, Release);
    }

    fn send_uevent(&self, counter: u32) {
        let kobject = self.kobject.load(Acquire);
        if kobject.is_null() {
            return;
        }
        let Ok(line) = CString::try_from_fmt(fmt!("SYSGENID={counter}")) else {
            pr_warn!("no memory for the uevent of generation {counter}\n");
            return;
        };
        let mut environment = [line.as_char_ptr().cast_mut(), ptr::null_mut()];
        // SAFETY: Watchers and backends, by whom alone this is called once there is a kobject,
        // hold the module, and so the misc device that has it. The environment is not written to.
        unsafe {
            bindings::kobject_uevent_env(
                kobject,
                bindings::kobject_action_KOBJ_CHANGE,
                environment.as_mut_ptr(),
            )
        };
    }
}

impl State {
    /// The backend, which stays until it is released.
    fn hold_backend(&self) -> Option<*const Backend> {
        hold(self.backend)
    }

    /// Tells the backend what it does not know yet.
    fn report(&mut self, event: u32) {
        let numbers = self.generations.numbers();
        if self.backend.is_null() || event == Report::NUMBERS && numbers == self.reported {
            return;
        }
        self.reported = numbers;
        let report = Report {
            counter: self.generations.told(),
            outdated: numbers.outdated,
            required: numbers.required,
            ready: numbers.ready,
            event,
        };
        // SAFETY: A backend that is registered is alive.
        unsafe { ((*self.backend).report)((*self.backend).context, &report) };
    }
}

/// Holds a backend that is registered, or null, under the lock that it was taken from.
fn hold(backend: *const Backend) -> Option<*const Backend> {
    // SAFETY: A backend that is registered is alive.
    let held = !backend.is_null() && unsafe { bindings::try_module_get((*backend).owner) };
    held.then_some(backend)
}

/// The counterpart of [`hold`].
pub(crate) fn release_backend(backend: *const Backend) {
    // SAFETY: The caller holds the backend.
    unsafe { bindings::module_put((*backend).owner) };
}
