// SPDX-License-Identifier: GPL-2.0

//! Drives the system generation counter from the hypervisor's VMGENID.
//!
//! Where the kernel's own vmgenid driver has the device, this one rides along: the notifier chain
//! tells it of a change, after the kernel's random number generator has been reseeded. Elsewhere
//! it takes the device's notifications itself, and reseeds.
//!
//! Either way the ID is looked at before each call to `/dev/sysgenid` is answered, so that no
//! answer is of an older generation while the notification is on its way. The first to see a
//! change deals with it.

use kernel::{
    bindings,
    ffi::{c_int, c_void},
    prelude::*,
};

use crate::{
    sysgenid_acpi::{AcpiDevice, NotifyHandler},
    sysgenid_hypervisor::{Hypervisor, Registered, Teller},
    sysgenid_page::CounterPage,
    sysgenid_work::{Chain, Notifier},
};

mod sysgenid_acpi;
mod sysgenid_ask;
mod sysgenid_backend;
mod sysgenid_clock;
mod sysgenid_fork;
mod sysgenid_hypervisor;
mod sysgenid_page;
mod sysgenid_rng;
mod sysgenid_settle;
mod sysgenid_work;

module! {
    type: VmGenId,
    name: "sysgenid_vmgenid",
    authors: ["The vmgenie developers"],
    description: "System generation ID driven by VMGENID",
    license: "GPL",
    alias: ["acpi*:VMGENCTR:*", "acpi*:VM_GEN_COUNTER:*", "acpi*:VMGE0001:*"],
}

/// IDs of the VMGENID device, as the kernel's driver knows them.
const VMGENID: &[&CStr] = &[c"VMGENCTR", c"VM_GEN_COUNTER"];

/// The module. What is named first is dropped first.
struct VmGenId {
    _driver: Option<Driver>,
}

impl kernel::Module for VmGenId {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let Some(device) = AcpiDevice::find(VMGENID) else {
            pr_info!("no VMGENID device: the generation moves by request alone\n");
            return Ok(Self { _driver: None });
        };
        Ok(Self {
            _driver: Some(Driver::new(device)?),
        })
    }
}

/// The running driver. What is named first is dropped first.
struct Driver {
    _notifications: Option<NotifyHandler>,
    _source: Source,
    _life: Life,
    _registered: Registered,
    _hypervisor: Pin<KBox<Hypervisor>>,
}

impl Driver {
    fn new(device: AcpiDevice) -> Result<Self> {
        let kernels = is_the_kernels(&device);
        let hypervisor = Hypervisor::new(&device, teller(kernels))?;
        // Until the hypervisor is started neither of the two does anything. Nothing may fail once
        // programs can call into the module by the third.
        let source = Source::new(device, &hypervisor, kernels)?;
        let life = Life::new(&hypervisor)?;
        let registered = hypervisor.start()?;
        let notifications = notifications(&hypervisor);
        // There may be a request that nobody has heard of.
        hypervisor.look_for_request();
        Ok(Self {
            _notifications: notifications,
            _source: source,
            _life: life,
            _registered: registered,
            _hypervisor: hypervisor,
        })
    }
}

/// Has the clock set when the hypervisor says that the machine has stood still, and its requests
/// looked at. Without it, the next generation has the clock set, and there is no fork point.
fn notifications(hypervisor: &Pin<KBox<Hypervisor>>) -> Option<NotifyHandler> {
    let context: *const Hypervisor = &raw const **hypervisor;
    let device = CounterPage::device()?;
    // SAFETY: The driver drops the handler before the hypervisor.
    unsafe { NotifyHandler::install(device, told, context.cast_mut().cast()) }
        .inspect_err(|error| pr_warn!("nobody tells of pauses and requests: {error:?}\n"))
        .ok()
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe extern "C" fn told(_: bindings::acpi_handle, _: u32, context: *mut c_void) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.notified();
}

/// Whether the kernel's own driver has the device. It must never be unbound.
fn is_the_kernels(device: &AcpiDevice) -> bool {
    cfg!(CONFIG_VMGENID = "y") || device.is_bound()
}

/// Who tells those of the kernel who want to hear of a fork.
fn teller(kernels: bool) -> Teller {
    match kernels {
        true => Teller::Kernel,
        #[cfg(CONFIG_VMGENID = "m")]
        false => Teller::Us,
        #[cfg(not(CONFIG_VMGENID = "m"))]
        false => Teller::Nobody,
    }
}

/// How a change is heard of.
enum Source {
    /// The device is ours.
    Own { _handler: NotifyHandler },
    /// The kernel's driver has it.
    #[cfg(CONFIG_VMGENID)]
    Along {
        _last: Pin<KBox<Notifier>>,
        _first: Pin<KBox<Notifier>>,
    },
}

impl Source {
    fn new(device: AcpiDevice, hypervisor: &Pin<KBox<Hypervisor>>, kernels: bool) -> Result<Self> {
        let context: *const Hypervisor = &raw const **hypervisor;
        #[cfg(CONFIG_VMGENID)]
        if kernels {
            pr_info!("riding along with the kernel's vmgenid driver\n");
            let chain = (
                bindings::register_random_vmfork_notifier as Chain,
                bindings::unregister_random_vmfork_notifier as Chain,
            );
            // Where ours is the last one called, all others have been.
            // SAFETY: The driver drops its source before the hypervisor.
            return Ok(unsafe {
                Self::Along {
                    _last: Notifier::new(chain, c_int::MIN, forked, context.cast())?,
                    _first: Notifier::new(chain, c_int::MAX, forking, context.cast())?,
                }
            });
        }
        if kernels {
            pr_err!("another driver has the VMGENID device\n");
            return Err(EBUSY);
        }
        pr_info!("driving the VMGENID device\n");
        // SAFETY: The driver drops its source before the hypervisor.
        let handler =
            unsafe { NotifyHandler::install(device, notified, context.cast_mut().cast()) }?;
        Ok(Self::Own { _handler: handler })
    }
}

/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe extern "C" fn notified(_: bindings::acpi_handle, _: u32, context: *mut c_void) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.settle();
}

/// # Safety
///
/// The context is a [`Hypervisor`].
#[cfg(CONFIG_VMGENID)]
unsafe fn forking(context: *const c_void, _: usize) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.forking();
}

/// # Safety
///
/// The context is a [`Hypervisor`].
#[cfg(CONFIG_VMGENID)]
unsafe fn forked(context: *const c_void, _: usize) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.forked();
}

extern "C" {
    fn register_reboot_notifier(block: *mut bindings::notifier_block) -> c_int;
    fn unregister_reboot_notifier(block: *mut bindings::notifier_block) -> c_int;
    #[cfg(CONFIG_PM_SLEEP)]
    fn register_pm_notifier(block: *mut bindings::notifier_block) -> c_int;
    #[cfg(CONFIG_PM_SLEEP)]
    fn unregister_pm_notifier(block: *mut bindings::notifier_block) -> c_int;
}

/// What else befalls a machine.
struct Life {
    _reboot: Pin<KBox<Notifier>>,
    #[cfg(CONFIG_PM_SLEEP)]
    _sleep: Pin<KBox<Notifier>>,
}

impl Life {
    fn new(hypervisor: &Pin<KBox<Hypervisor>>) -> Result<Self> {
        let context: *const Hypervisor = &raw const **hypervisor;
        let context = context.cast();
        let reboot = (register_reboot_notifier as Chain, unregister_reboot_notifier as Chain);
        #[cfg(CONFIG_PM_SLEEP)]
        let sleep = (register_pm_notifier as Chain, unregister_pm_notifier as Chain);
        // SAFETY: The driver drops this before the hypervisor.
        unsafe {
            Ok(Self {
                _reboot: Notifier::new(reboot, 0, rebooting, context)?,
                #[cfg(CONFIG_PM_SLEEP)]
                _sleep: Notifier::new(sleep, 0, slept, context)?,
            })
        }
    }
}

/// The next kernel may have no such driver, where it is started by this one.
///
/// # Safety
///
/// The context is a [`Hypervisor`].
unsafe fn rebooting(context: *const c_void, _: usize) {
    // SAFETY: See above.
    unsafe { &*context.cast::<Hypervisor>() }.goodbye();
}

/// Memory may have been brought into another machine, which has an ID of its own and knows of no
/// driver.
///
/// # Safety
///
/// The context is a [`Hypervisor`].
#[cfg(CONFIG_PM_SLEEP)]
unsafe fn slept(context: *const c_void, event: usize) {
    if event == bindings::PM_POST_HIBERNATION as usize {
        // SAFETY: See above.
        unsafe { &*context.cast::<Hypervisor>() }.woke();
    }
}
