// SPDX-License-Identifier: GPL-2.0

//! Reseeding the kernel's random number generator.
//!
//! The kernel has one function for the purpose, `add_vmfork_randomness()`, which modules have only
//! where the kernel's vmgenid driver is a module too. Elsewhere the ID is mixed in as a device's,
//! and the reseeding asked for by `ioctl()` on a file of the kernel's own generator.

use crate::sysgenid_settle::Id;
use core::ptr;
use kernel::{bindings, c_str, ffi::c_int, prelude::*, static_lock_class, types::Opaque};

/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: u32 = 0x5207;
/// `MKDEV(1, 9)`.
const URANDOM: u32 = 1 << 20 | 9;

/// The open file of the kernel's generator, and work for callers that must not reseed it
/// themselves.
#[pin_data(PinnedDrop)]
pub(crate) struct Urandom {
    file: *mut bindings::file,
    #[pin]
    work: Opaque<bindings::work_struct>,
}

// SAFETY: The file and the work may be used by any thread.
unsafe impl Send for Urandom {}
// SAFETY: As above; the caller of `reseed` holds a lock around it.
unsafe impl Sync for Urandom {}

impl Urandom {
    /// Opens the file.
    pub(crate) fn new() -> Result<Pin<KBox<Self>>> {
        let file = open()?;
        let key = static_lock_class!();
        let made = KBox::pin_init(
            pin_init!(Self {
                file,
                work <- Opaque::ffi_init(move |slot| {
                    // SAFETY: The slot may be written, and stays where it is.
                    unsafe {
                        bindings::init_work_with_key(
                            slot,
                            Some(work),
                            false,
                            c_str!("sysgenid reseed").as_char_ptr(),
                            key.as_ptr(),
                        )
                    }
                }),
            }),
            GFP_KERNEL,
        );
        if made.is_err() {
            // SAFETY: The file is ours, and not used.
            unsafe { bindings::filp_close(file, ptr::null_mut()) };
        }
        made.map_err(Error::from)
    }

    /// Mixes the ID in and has the generator reseeded before it returns. Callers take turns.
    pub(crate) fn reseed(&self, id: &Id) {
        // SAFETY: The ID has as many bytes as are said.
        unsafe { bindings::add_device_randomness(id.as_ptr().cast(), id.len()) };
        if self.ask() != EPERM.to_errno() {
            return;
        }
        // The calling program must not; the kernel may.
        let work = self.work.get();
        // SAFETY: The work has been initialised, and is cancelled before it goes.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                work,
            );
            bindings::flush_work(work);
        }
    }

    /// Asks with the caller's capabilities. Before the generator is ready it refuses, and needs
    /// none.
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
        // SAFETY: Nobody queues the work any more, and the file is ours.
        unsafe {
            bindings::cancel_work_sync(self.work.get());
            bindings::filp_close(self.file, ptr::null_mut());
        }
    }
}

/// # Safety
///
/// The work is that of a [`Urandom`].
unsafe extern "C" fn work(work: *mut bindings::work_struct) {
    // SAFETY: The work is a field of that, which waits for it before it goes.
    unsafe {
        let urandom = kernel::container_of!(Opaque::cast_from(work), Urandom, work);
        (*urandom).ask();
    }
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
