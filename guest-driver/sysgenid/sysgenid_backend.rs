// SPDX-License-Identifier: GPL-2.0

//! `include/linux/sysgenid.h` in Rust: what sysgenid and its backends know of each other.

use kernel::{bindings, ffi::c_void};

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
    /// A generation has begun (`began`), or the number of outdated watchers is another. Called
    /// with a mutex held; must not call back.
    pub(crate) report:
        unsafe extern "C" fn(*mut c_void, counter: u32, outdated: u32, began: bool),
}
