// SPDX-License-Identifier: GPL-2.0

//! System generation ID: a counter that moves whenever this machine's life stops being unique, and
//! `/dev/sysgenid`, by which programs learn of it.
//!
//! The logic is in `sysgenid_core.rs`, the interface in `include/uapi/linux/sysgenid.h`.

use core::ptr;
use kernel::{
    debugfs,
    ffi::{c_int, c_void},
    fmt,
    prelude::*,
    sync::atomic::{
        ordering::{Acquire, Release},
        Atomic,
    },
};

use crate::{
    sysgenid_abi::Abi, sysgenid_backend::Backend, sysgenid_core::Generations,
    sysgenid_device::Device, sysgenid_file::Registration, sysgenid_held::Held,
};

mod sysgenid_abi;
mod sysgenid_away;
mod sysgenid_backend;
mod sysgenid_core;
mod sysgenid_cycle;
mod sysgenid_device;
mod sysgenid_file;
mod sysgenid_held;
mod sysgenid_request;

module! {
    type: SysGenId,
    name: "sysgenid",
    authors: ["The vmgenie developers"],
    description: "System generation ID",
    license: "GPL",
    params: {
        abi: i32 {
            default: 5,
            description: "Numbering of the interface: 5 (default), or 8 as in deployed programs",
        },
        mmap: bool {
            default: true,
            description: "Let programs map the counter where no hypervisor keeps it, too: late",
        },
    },
}

/// The device, for the exported functions: set while the module is there.
static DEVICE: Atomic<*mut Device> = Atomic::new(ptr::null_mut());

/// The module. What is named first is dropped first.
struct SysGenId {
    _registration: Pin<KBox<Registration>>,
    _files: [Pin<KBox<debugfs::File<Shown>>>; 3],
    _directory: debugfs::Dir,
    _device: OwnedDevice,
}

impl kernel::Module for SysGenId {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let abi = Abi::from_parameter(module_parameters::abi.value())?;
        let mmap = module_parameters::mmap.value();
        let owned = OwnedDevice::new()?;
        let device = owned.0;
        let directory = debugfs::Dir::new(c"sysgenid");
        let file = |name: &CStr, what: What| {
            KBox::pin_init(
                directory.read_only_file(name, Shown { device, what }),
                GFP_KERNEL,
            )
        };
        let files = [
            file(c"generation", |all| all.told())?,
            file(c"watchers", |all| all.watchers())?,
            file(c"outdated_watchers", |all| all.outdated())?,
        ];
        let registration = KBox::pin_init(Registration::new(device, abi, mmap), GFP_KERNEL)?;
        owned.publish();
        Ok(Self {
            _registration: registration,
            _files: files,
            _directory: directory,
            _device: owned,
        })
    }
}

/// The device, as long as the module is there. It is referred to as if it were for ever by those
/// who hold the module or go before this.
struct OwnedDevice(&'static Device);

impl OwnedDevice {
    fn new() -> Result<Self> {
        let device = KBox::pin_init(Device::new(), GFP_KERNEL)?;
        // SAFETY: The device stays pinned: it is only dropped where it is.
        let device = KBox::into_raw(unsafe { Pin::into_inner_unchecked(device) });
        // SAFETY: It is freed by our drop alone.
        Ok(Self(unsafe { &*device }))
    }

    /// Lets the exported functions find it, once the initialisation cannot fail any more.
    fn publish(&self) {
        DEVICE.store(ptr::from_ref(self.0).cast_mut(), Release);
    }
}

impl Drop for OwnedDevice {
    fn drop(&mut self) {
        DEVICE.store(ptr::null_mut(), Release);
        // SAFETY: The device came from `KBox::into_raw`, and nobody refers to it any more.
        drop(unsafe { KBox::from_raw(ptr::from_ref(self.0).cast_mut()) });
    }
}

/// A number in debugfs.
struct Shown {
    device: &'static Device,
    what: What,
}

type What = fn(&Generations) -> u32;

impl debugfs::Writer for Shown {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device.show(self.what))
    }
}

/// The device, if the module has been initialised: what is built into the kernel may call before,
/// or where that failed.
fn device() -> Option<&'static Device> {
    let device = DEVICE.load(Acquire);
    // SAFETY: The pointer is null, or to the device of a module whose initialisation has succeeded.
    // A caller that is a module holds ours by its symbols, so that it stays; one that is built into
    // the kernel calls one that is built in, which never goes.
    unsafe { device.as_ref() }
}

/// Begins a generation: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_bump_generation() {
    sysgenid_bump_generation_to(0);
}

/// Begins a generation with a counter of at least so much: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_bump_generation_to(min_gen: u32) {
    if let Some(device) = device() {
        device.bump(min_gen);
    }
}

/// Makes a backend known: `include/linux/sysgenid.h`.
///
/// # Safety
///
/// The backend is valid, and stays until it has been unregistered.
#[no_mangle]
pub(crate) unsafe extern "C" fn sysgenid_register_backend(
    backend: *const Backend,
    seen: u32,
) -> c_int {
    match device().ok_or(ENODEV).and_then(|device| device.register(backend, seen)) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Lets a backend go: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_unregister_backend(backend: *const Backend) {
    if let Some(device) = device() {
        device.unregister(backend);
    }
}

/// The counter as it is now: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_counter() -> u32 {
    device().map_or(0, |device| device.counters().0)
}

/// The counter as the watchers were told: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_told() -> u32 {
    device().map_or(0, |device| device.counters().1)
}

/// Begins a generation if the counter still is `seen`: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_begin_generation(seen: u32) -> bool {
    device().is_some_and(|device| device.begin(seen))
}

/// The hypervisor asks for a fork point, or does not any more: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_ask(ticket: u32) -> bool {
    device().is_some_and(|device| device.ask(ticket))
}

/// A request is over: `include/linux/sysgenid.h`.
#[no_mangle]
pub(crate) extern "C" fn sysgenid_over(ticket: u32) {
    if let Some(device) = device() {
        device.over(ticket);
    }
}

/// Calls `hold` with the state locked: `include/linux/sysgenid.h`.
///
/// # Safety
///
/// The function may be called with the context.
#[no_mangle]
pub(crate) unsafe extern "C" fn sysgenid_hold(
    backend: *const Backend,
    hold: unsafe extern "C" fn(*mut c_void, *mut c_void),
    context: *mut c_void,
) -> bool {
    device().is_some_and(|device| {
        device.hold(backend, |held| {
            // SAFETY: See above.
            unsafe { hold(context, ptr::from_mut(held).cast()) };
        })
    })
}

/// The counter as the watchers were told: `include/linux/sysgenid.h`.
///
/// # Safety
///
/// `held` is what `hold` was called with, which has not returned yet.
#[no_mangle]
pub(crate) unsafe extern "C" fn sysgenid_held_told(held: *const c_void) -> u32 {
    // SAFETY: See above.
    unsafe { &*held.cast::<Held<'_>>() }.told()
}

/// Begins a generation if the counter still is `seen`: `include/linux/sysgenid.h`.
///
/// # Safety
///
/// As for [`sysgenid_held_told`]; one call at a time.
#[no_mangle]
pub(crate) unsafe extern "C" fn sysgenid_held_begin(held: *mut c_void, seen: u32) -> bool {
    // SAFETY: See above.
    unsafe { &mut *held.cast::<Held<'_>>() }.begin(seen)
}
