// SPDX-License-Identifier: GPL-2.0

//! What the backend needs of ACPI: devices, the address of the ID, notifications.

use core::ptr::{self, NonNull};
use kernel::{bindings, ffi::c_void, prelude::*};

/// `ACPI_DEVICE_NOTIFY`: notifications with values from 0x80 on.
const DEVICE_NOTIFY: u32 = 2;
/// `ACPI_ALLOCATE_BUFFER`.
const ALLOCATE_BUFFER: u64 = u64::MAX;
/// `ACPI_TYPE_INTEGER` and `ACPI_TYPE_PACKAGE`.
const TYPE_INTEGER: u32 = 1;
const TYPE_PACKAGE: u32 = 4;
/// `IORESOURCE_IO` and `IORESOURCE_MEM`.
const RESOURCE_IO: u32 = 0x100;
const RESOURCE_MEM: u32 = 0x200;

/// A device of the ACPI namespace, held.
pub(crate) struct AcpiDevice(NonNull<bindings::acpi_device>);

// SAFETY: The device is counted, and may be used and released by any thread.
unsafe impl Send for AcpiDevice {}
// SAFETY: As above; nothing of it is written.
unsafe impl Sync for AcpiDevice {}

impl AcpiDevice {
    /// The first device with one of these IDs, as `_HID` or `_CID`.
    pub(crate) fn find(ids: &[&CStr]) -> Option<Self> {
        ids.iter().find_map(|id| {
            // SAFETY: The ID is a string; no unique ID is asked for, and no revision.
            let found = unsafe {
                bindings::acpi_dev_get_first_match_dev(id.as_char_ptr(), ptr::null(), -1)
            };
            NonNull::new(found).map(Self)
        })
    }

    fn handle(&self) -> bindings::acpi_handle {
        // SAFETY: The device is held.
        unsafe { (*self.0.as_ptr()).handle }
    }

    /// The device that the namespace's one stands for, if there is one.
    fn physical(&self) -> Option<NonNull<bindings::device>> {
        // SAFETY: The device is held.
        NonNull::new(unsafe { bindings::acpi_get_first_physical_node(self.0.as_ptr()) })
    }

    /// Whether another driver has it.
    pub(crate) fn is_bound(&self) -> bool {
        // SAFETY: The device is there as long as the namespace's one is.
        self.physical()
            .is_some_and(|device| unsafe { !(*device.as_ptr()).driver.is_null() })
    }

    /// The first range of memory of a platform device: start and length in bytes.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        self.resource(RESOURCE_MEM)
    }

    /// The same of its I/O ports.
    pub(crate) fn ports(&self) -> Option<(u64, u64)> {
        self.resource(RESOURCE_IO)
    }

    fn resource(&self, kind: u32) -> Option<(u64, u64)> {
        let device = self.physical()?.as_ptr();
        // SAFETY: The device is there as long as the namespace's one is.
        if !ptr::eq(unsafe { (*device).bus }, &raw const bindings::platform_bus_type) {
            return None;
        }
        // SAFETY: The device is on the platform bus, so it is a platform device.
        let resource = unsafe {
            let platform = kernel::container_of!(device, bindings::platform_device, dev);
            bindings::platform_get_resource(platform, kind, 0)
        };
        if resource.is_null() {
            return None;
        }
        // SAFETY: The resource lives as long as the device.
        let (start, end) = unsafe { ((*resource).start, (*resource).end) };
        Some((start, end.checked_sub(start)?.checked_add(1)?))
    }

    /// The address that `ADDR` evaluates to: a package of its low and its high half.
    pub(crate) fn address(&self) -> Result<u64> {
        let mut buffer = bindings::acpi_buffer {
            length: ALLOCATE_BUFFER,
            pointer: ptr::null_mut(),
        };
        // SAFETY: The handle is a device's, and the buffer says that it is to be allocated.
        let status = unsafe {
            bindings::acpi_evaluate_object(
                self.handle(),
                c"ADDR".as_char_ptr().cast_mut(),
                ptr::null_mut(),
                &mut buffer,
            )
        };
        if status != 0 {
            return Err(ENODEV);
        }
        // SAFETY: The evaluation allocated an object, or nothing.
        let address = unsafe { package_address(buffer.pointer.cast()) };
        // SAFETY: The object was allocated for us, and is not used any more.
        unsafe { bindings::kfree(buffer.pointer) };
        address.ok_or(EINVAL)
    }
}

impl Drop for AcpiDevice {
    fn drop(&mut self) {
        // SAFETY: We hold the device.
        unsafe { bindings::put_device(&raw mut (*self.0.as_ptr()).dev) };
    }
}

/// # Safety
///
/// `object` is null or an object that ACPI has built.
unsafe fn package_address(object: *const bindings::acpi_object) -> Option<u64> {
    if object.is_null() {
        return None;
    }
    // SAFETY: Each object begins with its type, and a package has `count` elements.
    unsafe {
        if (*object).type_ != TYPE_PACKAGE || (*object).package.count != 2 {
            return None;
        }
        let elements = (*object).package.elements;
        let (low, high) = (elements, elements.add(1));
        if (*low).type_ != TYPE_INTEGER || (*high).type_ != TYPE_INTEGER {
            return None;
        }
        let (low, high) = ((*low).integer.value, (*high).integer.value);
        (low <= u64::from(u32::MAX) && high <= u64::from(u32::MAX)).then_some(high << 32 | low)
    }
}

/// Waits until what ACPI has heard of has been handled.
pub(crate) fn wait_for_events() {
    // SAFETY: The caller may sleep, and handles no notification.
    unsafe { bindings::acpi_os_wait_events_complete() };
}

/// A handler of a device's notifications, until it is dropped.
pub(crate) struct NotifyHandler {
    device: AcpiDevice,
    handler: Handler,
}

/// Called in process context.
pub(crate) type Handler = unsafe extern "C" fn(bindings::acpi_handle, u32, *mut c_void);

impl NotifyHandler {
    /// Has `handler` called with `context` from now on.
    ///
    /// # Safety
    ///
    /// The handler may be called with the context until this is dropped.
    pub(crate) unsafe fn install(
        device: AcpiDevice,
        handler: Handler,
        context: *mut c_void,
    ) -> Result<Self> {
        // SAFETY: The caller promises what the handler needs.
        let status = unsafe {
            bindings::acpi_install_notify_handler(
                device.handle(),
                DEVICE_NOTIFY,
                Some(handler),
                context,
            )
        };
        match status {
            0 => Ok(Self { device, handler }),
            _ => Err(ENODEV),
        }
    }
}

impl Drop for NotifyHandler {
    fn drop(&mut self) {
        // SAFETY: The handler was installed. When the call is back, no handler runs any more.
        unsafe {
            bindings::acpi_remove_notify_handler(
                self.device.handle(),
                DEVICE_NOTIFY,
                Some(self.handler),
            )
        };
    }
}

/// Memory of the hypervisor's, mapped cacheable until this is dropped.
pub(crate) struct Mapping(NonNull<c_void>);

// SAFETY: The mapping may be used and released by any thread.
unsafe impl Send for Mapping {}
// SAFETY: As above; it is only accessed atomically.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes from guest physical address `start` on.
    pub(crate) fn new(start: u64, length: usize) -> Result<Self> {
        const MEMREMAP_WB: usize = 1 << 0;
        // The hypervisor sees it as it is, also where a guest's memory is encrypted.
        const MEMREMAP_DEC: usize = 1 << 4;
        // SAFETY: What the address is of is the hypervisor's word; nothing is accessed here.
        NonNull::new(unsafe { bindings::memremap(start, length, MEMREMAP_WB | MEMREMAP_DEC) })
            .map(Self)
            .ok_or(ENXIO)
    }

    /// Where it is.
    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: We mapped it, and nobody uses it any more.
        unsafe { bindings::memunmap(self.0.as_ptr()) };
    }
}
