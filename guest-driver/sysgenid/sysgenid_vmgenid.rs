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

use core::ptr;
use kernel::{
    bindings,
    ffi::{c_int, c_ulong, c_void},
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::Acquire,
            Atomic,
        },
        Mutex,
    },
    types::Opaque,
};

use crate::{
    sysgenid_acpi::{AcpiDevice, Mapping, NotifyHandler},
    sysgenid_backend::Backend,
    sysgenid_page::CounterPage,
    sysgenid_rng::Urandom,
    sysgenid_settle::{Id, Machine, Settled},
};

mod sysgenid_acpi;
mod sysgenid_backend;
mod sysgenid_page;
mod sysgenid_rng;
mod sysgenid_settle;

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

// Only pointers to the kernel's own types are in the backend, and the lint looks behind them.
#[allow(improper_ctypes)]
extern "C" {
    fn sysgenid_register_backend(backend: *const Backend) -> c_int;
    fn sysgenid_unregister_backend(backend: *const Backend);
    fn sysgenid_counter() -> u32;
    fn sysgenid_told() -> u32;
    fn sysgenid_begin_generation(seen: u32) -> bool;
}

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
    _source: Source,
    _registered: Registered,
    _hypervisor: Pin<KBox<Hypervisor>>,
}

impl Driver {
    fn new(device: AcpiDevice) -> Result<Self> {
        let kernels = is_the_kernels(&device);
        let hypervisor = Hypervisor::new(&device, kernels)?;
        // Until the hypervisor is started neither of the two does anything. Nothing may fail once
        // programs can call into the module by the second.
        let source = Source::new(device, &hypervisor, kernels)?;
        let registered = Registered::new(&hypervisor)?;
        hypervisor.start();
        Ok(Self {
            _source: source,
            _registered: registered,
            _hypervisor: hypervisor,
        })
    }
}

/// Whether the kernel's own driver has the device. It must never be unbound.
fn is_the_kernels(device: &AcpiDevice) -> bool {
    cfg!(CONFIG_VMGENID = "y") || device.is_bound()
}

/// How a change is heard of.
enum Source {
    /// The device is ours.
    Own { _handler: NotifyHandler },
    /// The kernel's driver has it.
    #[cfg(CONFIG_VMGENID)]
    Along { _notifier: Pin<KBox<Notifier>> },
}

impl Source {
    fn new(device: AcpiDevice, hypervisor: &Pin<KBox<Hypervisor>>, kernels: bool) -> Result<Self> {
        let hypervisor: *const Hypervisor = &raw const **hypervisor;
        #[cfg(CONFIG_VMGENID)]
        if kernels {
            pr_info!("riding along with the kernel's vmgenid driver\n");
            return Ok(Self::Along {
                _notifier: Notifier::new(hypervisor)?,
            });
        }
        if kernels {
            pr_err!("another driver has the VMGENID device\n");
            return Err(EBUSY);
        }
        pr_info!("driving the VMGENID device\n");
        // SAFETY: The driver drops its source before the hypervisor.
        let handler =
            unsafe { NotifyHandler::install(device, notified, hypervisor.cast_mut().cast()) }?;
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

/// A link of the kernel's chain of those who hear of a fork, until it is dropped.
#[cfg(CONFIG_VMGENID)]
#[pin_data(PinnedDrop)]
struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    hypervisor: *const Hypervisor,
}

// SAFETY: A notifier may be unregistered by any thread.
#[cfg(CONFIG_VMGENID)]
unsafe impl Send for Notifier {}
// SAFETY: Nothing is done with a shared one but by the kernel.
#[cfg(CONFIG_VMGENID)]
unsafe impl Sync for Notifier {}

#[cfg(CONFIG_VMGENID)]
impl Notifier {
    /// The hypervisor has to outlive it.
    fn new(hypervisor: *const Hypervisor) -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(
            try_pin_init!(Self {
                block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: The slot may be written, and stays where it is until it has been
                    // unregistered.
                    kernel::error::to_result(unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(forked),
                            ..Default::default()
                        });
                        bindings::register_random_vmfork_notifier(slot)
                    })
                }),
                hypervisor,
            }),
            GFP_KERNEL,
        )
    }
}

#[cfg(CONFIG_VMGENID)]
#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It was registered. When the call is back, it is not called any more.
        unsafe { bindings::unregister_random_vmfork_notifier(self.block.get()) };
    }
}

/// # Safety
///
/// The block is that of a [`Notifier`].
#[cfg(CONFIG_VMGENID)]
unsafe extern "C" fn forked(
    block: *mut bindings::notifier_block,
    _action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: See above; the hypervisor outlives its notifier.
    unsafe {
        let notifier = kernel::container_of!(Opaque::cast_from(block), Notifier, block);
        (*(*notifier).hypervisor).settle();
    }
    // NOTIFY_DONE
    0
}

/// The backend is known to sysgenid, until this is dropped.
struct Registered(*const Backend);

// SAFETY: A backend may be unregistered by any thread.
unsafe impl Send for Registered {}
// SAFETY: Nothing is done with a shared one.
unsafe impl Sync for Registered {}

impl Registered {
    fn new(hypervisor: &Pin<KBox<Hypervisor>>) -> Result<Self> {
        let backend = &raw const hypervisor.backend;
        // SAFETY: The driver drops the registration before the hypervisor.
        kernel::error::to_result(unsafe { sysgenid_register_backend(backend) })?;
        Ok(Self(backend))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: The backend was registered.
        unsafe { sysgenid_unregister_backend(self.0) };
    }
}

/// Who reseeds the kernel's random number generator.
enum Rng {
    /// The kernel's function for the purpose, which tells its own notifier chain too.
    #[cfg(CONFIG_VMGENID = "m")]
    Fork,
    /// The next best that there is.
    Urandom(Pin<KBox<Urandom>>),
}

impl Rng {
    fn new(kernels: bool) -> Result<Self> {
        #[cfg(CONFIG_VMGENID = "m")]
        if !kernels {
            return Ok(Self::Fork);
        }
        // On the kernel's chain, its function would call us again.
        let _ = kernels;
        Ok(Self::Urandom(Urandom::new()?))
    }
}

/// What is known of the hypervisor.
#[pin_data]
struct Hypervisor {
    backend: Backend,
    id: Mapping,
    page: Option<CounterPage>,
    rng: Rng,
    /// None until it is started.
    #[pin]
    settled: Mutex<Option<Settled>>,
}

// SAFETY: The pointers are to the module and to the value itself.
unsafe impl Send for Hypervisor {}
// SAFETY: As above; what is shared is behind the lock, or atomic.
unsafe impl Sync for Hypervisor {}

impl Hypervisor {
    fn new(device: &AcpiDevice, kernels: bool) -> Result<Pin<KBox<Self>>> {
        let address = device.address()?;
        if address % 8 != 0 {
            pr_err!("the ID's address {address:#x} is not aligned\n");
            return Err(EINVAL);
        }
        let id = Mapping::new(address, size_of::<Id>())?;
        let page = CounterPage::find();
        let rng = Rng::new(kernels)?;
        let (word, pfn) = match &page {
            Some(page) => (page.word(), page.frame()),
            None => (ptr::null_mut(), 0),
        };
        KBox::pin_init(
            pin_init!(&this in Self {
                backend: Backend {
                    owner: kernel::module::this_module::<LocalModule>().as_ptr(),
                    context: this.as_ptr().cast(),
                    word,
                    pfn,
                    settle,
                    report,
                },
                id,
                page,
                rng,
                settled <- new_mutex!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes the machine as it is now for settled, and deals with changes from now on.
    fn start(&self) {
        let mut settled = self.settled.lock();
        *settled = Some(Settled::start(self, |counter| {
            if let Some(page) = &self.page {
                page.hello(counter);
            }
        }));
    }

    /// Deals with what has changed.
    fn settle(&self) {
        if let Some(settled) = &mut *self.settled.lock() {
            settled.settle(self);
        }
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
        // SAFETY: The module is loaded as long as ours is.
        unsafe { sysgenid_counter() }
    }

    fn told(&self) -> u32 {
        // SAFETY: As above.
        unsafe { sysgenid_told() }
    }

    fn reseed(&self, id: &Id) {
        match &self.rng {
            #[cfg(CONFIG_VMGENID = "m")]
            // SAFETY: The ID has as many bytes as are said.
            Rng::Fork => unsafe { bindings::add_vmfork_randomness(id.as_ptr().cast(), id.len()) },
            Rng::Urandom(urandom) => urandom.reseed(id),
        }
    }

    fn begin(&self, seen: u32) -> bool {
        // SAFETY: As for the counter.
        unsafe { sysgenid_begin_generation(seen) }
    }
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
unsafe extern "C" fn report(context: *mut c_void, counter: u32, outdated: u32, began: bool) {
    // SAFETY: See above.
    let hypervisor = unsafe { &*context.cast::<Hypervisor>() };
    if let Some(page) = &hypervisor.page {
        page.report(counter, outdated, began);
    }
}
