// SPDX-License-Identifier: GPL-2.0

//! Reseeding the kernel's random number generator.
//!
//! The kernel has one function for the purpose, `add_vmfork_randomness()`, which modules have only
//! where the kernel's vmgenid driver is a module too, and which tells its notifier chain, so that
//! it must not be called with a lock held. So the ID is mixed in as a device's, and the reseeding
//! asked for by `ioctl()` on a file of the kernel's own generator.

use crate::{
    sysgenid_settle::Id,
    sysgenid_work::Work,
};
use core::ptr;
use kernel::{
    bindings, c_str,
    ffi::{c_int, c_void},
    prelude::*,
    static_lock_class,
    sync::atomic::{
        ordering::{Acquire, Release},
        Atomic,
    },
};

/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: u32 = 0x5207;
/// `MKDEV(1, 9)`.
const URANDOM: u32 = 1 << 20 | 9;

/// The open file of the kernel's generator, and work for callers who are programs.
#[pin_data(PinnedDrop)]
pub(crate) struct Urandom {
    file: *mut bindings::file,
    /// What the work was answered.
    answer: Atomic<c_int>,
    #[pin]
    work: Work,
}

// SAFETY: The file and the work may be used by any thread.
unsafe impl Send for Urandom {}
// SAFETY: As above; the caller of `reseed` holds a lock around it.
unsafe impl Sync for Urandom {}

impl Urandom {
    /// Opens the file.
    pub(crate) fn new() -> Result<Pin<KBox<Self>>> {
        let file = open()?;
        let made = KBox::pin_init(
            pin_init!(&this in Self {
                file,
                answer: Atomic::new(0),
                // SAFETY: The work is a field of what it is called with, and goes with it.
                work <- unsafe {
                    Work::new(
                        c"sysgenid reseed",
                        static_lock_class!(),
                        work,
                        this.as_ptr().cast_const().cast(),
                    )
                },
            }),
            GFP_KERNEL,
        );
        if made.is_err() {
            // SAFETY: The file is ours, and not used.
            unsafe { bindings::filp_close(file, ptr::null_mut()) };
        }
        made.map_err(Error::from)
    }

    /// Mixes the ID in and has the generator reseeded before it returns; whether it was. Callers
    /// take turns.
    pub(crate) fn reseed(&self, id: &Id) -> bool {
        mix(id);
        self.again()
    }

    /// The same in a machine that stands still, where nothing may sleep. The caller is a thread of
    /// the kernel's.
    pub(crate) fn reseed_standing(&self, id: &Id, seed: &[u8], counter: u32) -> bool {
        mix(id);
        mix(seed);
        mix(&counter.to_ne_bytes());
        self.ask() == 0
    }

    /// Has the generator reseeded once more.
    ///
    /// It asks who asks for a capability. A program has it or not, and to ask is an event for the
    /// audit log; a thread of the kernel has it.
    pub(crate) fn again(&self) -> bool {
        if is_kernel_thread() {
            return self.ask() == 0;
        }
        self.work.queue();
        self.work.flush();
        self.answer.load(Acquire) == 0
    }

    /// Asks with the caller's capabilities. Before the generator is ready it refuses.
    fn ask(&self) -> c_int {
        // SAFETY: The file is open, and has been found to be the generator's, which has the
        // function.
        unsafe {
            match (*(*self.file).f_op).unlocked_ioctl {
                Some(ioctl) => ioctl(self.file, RNDRESEEDCRNG, 0) as c_int,
                None => ENOTTY.to_errno(),
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Urandom {
    fn drop(self: Pin<&mut Self>) {
        // The work is not under way: whoever queues it waits for it.
        // SAFETY: The file is ours.
        unsafe { bindings::filp_close(self.file, ptr::null_mut()) };
    }
}

/// # Safety
///
/// The context is a [`Urandom`].
unsafe fn work(context: *const c_void) {
    // SAFETY: See above.
    let urandom = unsafe { &*context.cast::<Urandom>() };
    urandom.answer.store(urandom.ask(), Release);
}

/// Mixes bytes in, whatever they are worth.
fn mix(bytes: &[u8]) {
    // SAFETY: There are as many bytes as are said.
    unsafe { bindings::add_device_randomness(bytes.as_ptr().cast(), bytes.len()) };
}

/// Whether the generator can be reseeded.
pub(crate) fn is_ready() -> bool {
    // SAFETY: The function has no requirements.
    unsafe { bindings::rng_is_initialized() }
}

/// Whether the caller is a thread of the kernel's.
fn is_kernel_thread() -> bool {
    // SAFETY: The present task is there; that flag of it does not change.
    unsafe { (*bindings::get_current()).flags & bindings::PF_KTHREAD != 0 }
}

/// The kernel's generator, and not what somebody has put in its place.
fn open() -> Result<*mut bindings::file> {
    let path = c_str!("/dev/urandom");
    // SAFETY: The path is a string. The access mode is reading.
    let file = unsafe { bindings::filp_open(path.as_char_ptr(), 0, 0) };
    let file = kernel::error::from_err_ptr(file)
        .inspect_err(|_| pr_err!("could not open /dev/urandom, by which to reseed\n"))?;
    // SAFETY: The file is open.
    let inode = unsafe { &*(*file).f_inode };
    const S_IFMT: u16 = 0o170000;
    const S_IFCHR: u16 = 0o020000;
    if inode.i_mode & S_IFMT == S_IFCHR && inode.i_rdev == URANDOM {
        return Ok(file);
    }
    pr_err!("/dev/urandom is not the kernel's generator\n");
    // SAFETY: The file is ours.
    unsafe { bindings::filp_close(file, ptr::null_mut()) };
    Err(ENODEV)
}
