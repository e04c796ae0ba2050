// SPDX-License-Identifier: GPL-2.0

//! Work for the kernel's threads, and links of its notifier chains: functions that are called with
//! a context until what holds them is dropped.

use kernel::{
    bindings,
    ffi::{c_int, c_ulong, c_void},
    prelude::*,
    sync::{
        atomic::{
            ordering::{Acquire, Relaxed, Release},
            Atomic,
        },
        LockClassKey,
    },
    time::msecs_to_jiffies,
    types::Opaque,
};

/// What is called, with the context.
pub(crate) type Function = unsafe fn(*const c_void);

/// A work item. It never runs twice at the same time.
#[pin_data(PinnedDrop)]
pub(crate) struct Work {
    #[pin]
    work: Opaque<bindings::work_struct>,
    function: Function,
    context: *const c_void,
    /// How often it was queued, and as of which of these it has been done.
    queued: Atomic<u32>,
    done: Atomic<u32>,
}

// SAFETY: A work item may be queued and waited for by any thread.
unsafe impl Send for Work {}
// SAFETY: As above.
unsafe impl Sync for Work {}

impl Work {
    /// # Safety
    ///
    /// The function may be called with the context, by any thread, until this is dropped.
    pub(crate) unsafe fn new(
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
        function: Function,
        context: *const c_void,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            work <- Opaque::ffi_init(move |slot| {
                // SAFETY: The slot may be written, and stays where it is.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(run),
                        false,
                        name.as_char_ptr(),
                        key.as_ptr(),
                    )
                }
            }),
            function,
            context,
            queued: Atomic::new(0),
            done: Atomic::new(0),
        })
    }

    /// Has the function called some time from now; not any more once this has been dropped. That
    /// may be while what this is a field of is being dropped, and is still there.
    pub(crate) fn queue(&self) {
        // Before the work is queued: a call that begins later sees it.
        self.queued.add(1, Relaxed);
        // SAFETY: The work has been initialised, and is disabled before it goes.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.work.get(),
            )
        };
    }

    /// Waits until it has been, as often as it was queued for.
    pub(crate) fn flush(&self) {
        // SAFETY: As above.
        unsafe { bindings::flush_work(self.work.get()) };
    }

    /// The same, for about so many milliseconds, and until somebody kills the caller. Returns
    /// whether it has been.
    pub(crate) fn wait(&self, limit: u32) -> bool {
        let wanted = self.queued.load(Relaxed);
        for _ in 0..=msecs_to_jiffies(limit) {
            if wanted.wrapping_sub(self.done.load(Acquire)) as i32 <= 0 {
                return true;
            }
            // Nobody wakes the caller but who kills it.
            // SAFETY: The caller may sleep.
            if unsafe { bindings::schedule_timeout_killable(1) } != 0 {
                return false;
            }
        }
        false
    }
}

#[pinned_drop]
impl PinnedDrop for Work {
    fn drop(self: Pin<&mut Self>) {
        // Others that are dropped after it may still queue it, so it is not only cancelled.
        // SAFETY: The work has been initialised.
        unsafe { bindings::disable_work_sync(self.work.get()) };
    }
}

/// # Safety
///
/// The work is that of a [`Work`].
unsafe extern "C" fn run(work: *mut bindings::work_struct) {
    // SAFETY: The work is a field of that, which waits for it before it goes; what it calls may be
    // called until then.
    unsafe {
        let this = kernel::container_of!(Opaque::cast_from(work), Work, work);
        let queued = (*this).queued.load(Relaxed);
        ((*this).function)((*this).context);
        (*this).done.store(queued, Release);
    }
}

/// Registers or unregisters a link of a chain.
pub(crate) type Chain = unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int;

/// What a chain calls, with the context and what has happened.
pub(crate) type Notified = unsafe fn(*const c_void, usize);

/// A link of one of the kernel's chains.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    unregister: Chain,
    function: Notified,
    context: *const c_void,
}

// SAFETY: A notifier may be unregistered by any thread.
unsafe impl Send for Notifier {}
// SAFETY: Nothing is done with a shared one but by the kernel.
unsafe impl Sync for Notifier {}

impl Notifier {
    /// Links it in: those of higher priority are called first.
    ///
    /// # Safety
    ///
    /// The function may be called with the context until this is dropped.
    pub(crate) unsafe fn new(
        (register, unregister): (Chain, Chain),
        priority: c_int,
        function: Notified,
        context: *const c_void,
    ) -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(
            try_pin_init!(Self {
                function,
                context,
                unregister,
                block <- Opaque::try_ffi_init(move |slot: *mut bindings::notifier_block| {
                    // SAFETY: The slot may be written, and stays where it is until it has been
                    // unregistered. What is beside it has been initialised.
                    kernel::error::to_result(unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(called),
                            priority,
                            ..Default::default()
                        });
                        register(slot)
                    })
                }),
            }),
            GFP_KERNEL,
        )
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It was registered. When the call is back, it is not called any more.
        unsafe { (self.unregister)(self.block.get()) };
    }
}

/// # Safety
///
/// The block is that of a [`Notifier`].
unsafe extern "C" fn called(
    block: *mut bindings::notifier_block,
    action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: See above; what it calls may be called as long as it is linked in.
    unsafe {
        let this = kernel::container_of!(Opaque::cast_from(block), Notifier, block);
        ((*this).function)((*this).context, action as usize);
    }
    // NOTIFY_DONE
    0
}
