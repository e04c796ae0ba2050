// SPDX-License-Identifier: GPL-2.0

//! `include/linux/sysgenid.h` in Rust: what sysgenid and its backends know of each other.

use kernel::{
    bindings,
    ffi::{c_int, c_void},
};

/// What knows of the hypervisor's generations: `struct sysgenid_backend`.
#[repr(C)]
pub(crate) struct Backend {
    /// The module. It is held while `settle` runs, and while a program has the page mapped.
    pub(crate) owner: *mut bindings::module,
    /// Given to the functions.
    pub(crate) context: *mut c_void,
    /// The counter, if the hypervisor keeps it, at the start of a page; or null.
    pub(crate) word: *mut u32,
    /// The frame of that page.
    pub(crate) pfn: usize,
    /// Looks for a new generation and deals with it. Process context, may sleep.
    pub(crate) settle: unsafe extern "C" fn(*mut c_void),
    /// Waits, for a time, until what follows `settle` has been done. Returns 0 or an error number.
    /// Process context, may sleep.
    pub(crate) finish: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// Something is to be told to the hypervisor. Called with a mutex held; must not call back.
    pub(crate) report: unsafe extern "C" fn(*mut c_void, report: *const Report),
    /// Milliseconds that are left for the present request.
    pub(crate) limit: unsafe extern "C" fn(*mut c_void) -> u32,
    /// Has the machine stand still for the request `ticket`, for at most `limit` milliseconds (0:
    /// as long as usual), after what `done` says. Returns who goes on, or an error number. Process
    /// context, may sleep.
    pub(crate) fork_point:
        unsafe extern "C" fn(*mut c_void, ticket: u32, limit: u32, done: u32) -> c_int,
    /// Refuses a request. Must not call back.
    pub(crate) refuse: unsafe extern "C" fn(*mut c_void, ticket: u32, reason: u32),
    /// The machine is another one to its neighbours, in the generation with this counter. Called
    /// with a mutex held; must not call back.
    pub(crate) identity: unsafe extern "C" fn(*mut c_void, counter: u32),
    /// Asks for a snapshot of the machine by `tag`, and waits for the request that answers it, for
    /// at most `limit` milliseconds (0: as long as usual). Returns 0 and its ticket, or an error
    /// number. Process context, may sleep.
    pub(crate) ask:
        unsafe extern "C" fn(*mut c_void, tag: u32, limit: u32, ticket: *mut u32) -> c_int,
}

/// What the hypervisor is to be told: `struct sysgenid_report`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Report {
    /// The counter as the watchers were told.
    pub(crate) counter: u32,
    /// Tracked watchers that are outdated.
    pub(crate) outdated: u32,
    /// Privileged ones of them, and those that went while they were.
    pub(crate) required: u32,
    /// Agents that have finished in this generation.
    pub(crate) ready: u32,
    /// One of the constants below.
    pub(crate) event: u32,
}

impl Report {
    /// The numbers are others.
    #[allow(dead_code)] // A backend needs no name for it.
    pub(crate) const NUMBERS: u32 = 0;
    /// A generation has begun.
    pub(crate) const BEGAN: u32 = 1;
    /// The backend has been registered.
    pub(crate) const REGISTERED: u32 = 2;
}
