//! The MMIO transport: registers, feature negotiation, queues, interrupt (virtio 1.2, section 4.2, register layout version 2).

use std::fmt::Debug;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueT};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::held::Held;
use super::irq::{IrqState, Wires};
use super::registers::Registers;
use super::state::{TransportRestoreError, TransportState};
use super::{Active, F_EVENT_IDX, F_VERSION_1, GuestMemory, Interrupt, Turn, VirtioDevice};
use crate::throttle::Throttle;

/// `MagicValue`: "virt".
const MAGIC: u32 = 0x7472_6976;
/// `Version`: not legacy.
const VERSION: u32 = 2;
/// `VendorID`: "vmge".
const VENDOR: u32 = 0x6567_6d76;
/// Of a shared memory region that there is not (section 4.2.2).
const NO_REGION: u32 = u32::MAX;

/// What a driver may write to the status register.
const DRIVER_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// A device on its transport: what the machine's bus and event loop have of it.
#[derive(Debug)]
pub struct VirtioMmio<D> {
    // Dropped first: a device that goes ends what the kernel still does to guest memory for it.
    inner: Held<Inner<D>>,
    irq: IrqState,
    memory: GuestMemory,
    queue_count: u16,
}

/// What the lock of the transport guards.
#[derive(Debug)]
struct Inner<D> {
    device: D,
    registers: Registers,
    queues: Vec<Queue>,
    complaints: Throttle,
}

/// A device on its transport, of whatever kind.
pub trait Transport: DeviceMmio + Send + Sync + Debug {
    /// How many queues the device has.
    fn queue_count(&self) -> u16;

    /// The driver has rung the doorbell of `queue`, which may be any number. *Caller:* the event loop. It does not wait for a vCPU that is in the
    /// device: the device is kicked when that vCPU leaves it.
    fn doorbell(&self, queue: u16) -> Turn;

    /// The device's backend is ready, or the device was kicked ([`Wires::kick`]; then all doorbells are rung as well). *Caller:* the event loop,
    /// which does not wait, as above.
    fn backend_ready(&self) -> Turn;

    /// The file descriptor to watch. It stays open as long as the device, unless the caller has another backend put in.
    fn backend_fd(&self) -> Option<RawFd>;

    /// Ends or takes back all requests that are in flight. *vCPUs:* standing still. *Afterwards:* nobody writes guest memory until
    /// the event loop calls again.
    fn drain(&self);

    /// The registers and queues. The device's own state is saved through [`VirtioMmio::with_device`]. *vCPUs:* standing still;
    /// drained.
    fn save(&self) -> TransportState;

    /// After a restore, when interrupts reach the guest: interrupts that it may not have seen are raised once more, and an active
    /// device is told. *vCPUs:* standing still.
    fn restored(&self);
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// A device as after power-on, connected to the machine by `wires`.
    pub fn new(device: D, memory: GuestMemory, wires: Box<dyn Wires>) -> Self {
        let queues = device.queue_sizes().iter().map(|&max| new_queue(max));
        Self {
            memory,
            irq: IrqState::new(wires),
            queue_count: queue_count(&device),
            inner: Held::new(Inner {
                queues: queues.collect(),
                device,
                registers: Registers::default(),
                complaints: Throttle::default(),
            }),
        }
    }

    /// A device as it was saved; `device` has its own state already. The interrupt's wire is not touched, nor is guest memory:
    /// see [`Transport::restored`].
    ///
    /// # Errors
    /// When `state`, which came from a file and may hold anything, does not fit the device or the memory.
    pub fn from_state(
        device: D,
        state: &TransportState,
        memory: GuestMemory,
        wires: Box<dyn Wires>,
    ) -> Result<Self, TransportRestoreError> {
        let offered = device.features() | F_VERSION_1;
        let queues = state.check(device.queue_sizes(), offered, &memory)?;
        let irq = IrqState::new(wires);
        irq.restore(
            state.interrupt_status,
            state.config_generation,
            state.needs_reset,
        );
        Ok(Self {
            memory,
            irq,
            queue_count: queue_count(&device),
            inner: Held::new(Inner {
                device,
                registers: state.registers(),
                queues,
                complaints: Throttle::default(),
            }),
        })
    }

    fn read_register(&self, offset: u32) -> u32 {
        // An interrupt handler reads these, and shall not wait for the device.
        match offset {
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.irq.status(),
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.irq.config_generation(),
            _ => self.locked(|inner| self.read_guarded(inner, offset)),
        }
    }

    fn read_guarded(&self, inner: &Inner<D>, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => inner.device.device_id(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(inner.offered(), inner.registers.device_features_sel)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                inner.queue().map_or(0, |queue| queue.max_size().into())
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                inner.queue().map_or(0, |queue| queue.ready().into())
            }
            register::VIRTIO_MMIO_STATUS if self.irq.is_broken() => {
                inner.registers.status | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            register::VIRTIO_MMIO_STATUS => inner.registers.status,
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.irq.acknowledge(value),
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            _ => self.locked(|inner| self.write_guarded(inner, offset, value)),
        }
    }

    fn write_guarded(&self, inner: &mut Inner<D>, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => {
                inner.registers.device_features_sel = value;
            }
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => {
                inner.registers.driver_features_sel = value;
            }
            register::VIRTIO_MMIO_DRIVER_FEATURES => inner.set_driver_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => inner.registers.queue_sel = value,
            register::VIRTIO_MMIO_STATUS => self.set_status(inner, value),
            _ => {
                if inner.set_up_queue(offset, value).is_err() {
                    tracing::debug!(offset, value, "a driver has set up a queue wrongly");
                    self.irq.needs_reset();
                }
            }
        }
    }

    /// A doorbell that no ioeventfd has taken: a number out of range, or a machine without KVM. What is left to do is for the event
    /// loop.
    fn notify(&self, value: u32) {
        let turn = u16::try_from(value).map(|queue| self.doorbell(queue));
        if turn == Ok(Turn::More) {
            self.irq.kick();
        }
    }

    /// The driver writes its status: it adds bits, one at a time or several, or resets the device with 0 (section 2.1).
    fn set_status(&self, inner: &mut Inner<D>, value: u32) {
        if value == 0 {
            inner.device.reset();
            inner.queues.iter_mut().for_each(Queue::reset);
            inner.registers = Registers::default();
            self.irq.reset();
            return;
        }
        let old = inner.registers.status;
        let new = (value & DRIVER_STATUS) | old;
        if value & old != old {
            tracing::debug!(old, value, "a driver takes back status bits");
        }
        inner.registers.status = inner.allowed_status(old, new);
        let added = inner.registers.status & !old;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && inner.registers.is_live() {
            self.activate(inner);
        }
    }

    fn activate(&self, inner: &mut Inner<D>) {
        let event_idx = inner.registers.driver_features & F_EVENT_IDX != 0;
        let mut ready = inner.queues.iter_mut().filter(|queue| queue.ready());
        let fit = ready.all(|queue| {
            queue.set_event_idx(event_idx);
            queue.is_valid(&self.memory)
        });
        if !fit {
            tracing::debug!("a driver has put a queue outside of its memory");
            return self.irq.needs_reset();
        }
        let activated = inner.call(&self.memory, &self.irq, |device, active| {
            device.activate(active)
        });
        match activated {
            Ok(()) => self.irq.kick(),
            Err(error) => {
                // The driver may reset the device and try again, as often as it likes.
                if let Some(more) = inner.complaints.allows(Instant::now()) {
                    tracing::warn!(%error, more, "a virtio device");
                }
                self.irq.needs_reset();
            }
        }
    }
}

/// The driver has broken a rule of the queues' registers.
struct BadSetup;

impl<D: VirtioDevice> Inner<D> {
    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1
    }

    /// Calls the device with its queues.
    fn call<T>(
        &mut self,
        memory: &GuestMemory,
        irq: &IrqState,
        action: impl FnOnce(&mut D, &mut Active<'_>) -> T,
    ) -> T {
        let mut active = Active {
            memory,
            queues: &mut self.queues,
            features: self.registers.driver_features,
            interrupt: irq,
        };
        action(&mut self.device, &mut active)
    }

    /// The queue that is selected.
    fn queue(&self) -> Option<&Queue> {
        self.queues
            .get(usize::try_from(self.registers.queue_sel).ok()?)
    }

    /// Features are negotiated between `DRIVER` and `FEATURES_OK`.
    fn set_driver_features(&mut self, value: u32) {
        let registers = &mut self.registers;
        if !registers.has(VIRTIO_CONFIG_S_DRIVER) || registers.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let shift = match registers.driver_features_sel {
            0 => 0,
            1 => 32,
            // Bits that nobody has defined, and that are not on offer.
            _ => return,
        };
        let kept = registers.driver_features & !(u64::from(u32::MAX) << shift);
        registers.driver_features = kept | u64::from(value) << shift;
    }

    /// The status after a driver that had `old` wants `new`, which has all of it. A bit whose condition is not met stays away, and
    /// the driver reads that back (section 3.1.1).
    fn allowed_status(&self, old: u32, mut new: u32) -> u32 {
        let added = new & !old;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let features = self.registers.driver_features;
            let fit = features & !self.offered() == 0
                && features & F_VERSION_1 != 0
                && self.device.accepts(features);
            if !fit || new & VIRTIO_CONFIG_S_DRIVER == 0 {
                tracing::debug!(features, "features that a driver cannot have");
                new &= !VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        if new & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            new &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        new
    }

    /// Writes to the registers of the selected queue. Others are ignored.
    fn set_up_queue(&mut self, offset: u32, value: u32) -> Result<(), BadSetup> {
        let in_setup = self.registers.in_setup();
        let selected = usize::try_from(self.registers.queue_sel).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(selected).filter(|_| in_setup) else {
            return Ok(());
        };
        if offset == register::VIRTIO_MMIO_QUEUE_READY {
            queue.set_ready(value & 1 != 0);
            return Ok(());
        }
        if queue.ready() {
            return Ok(());
        }
        let aligned_to = |alignment: u32| value.is_multiple_of(alignment);
        match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => {
                let size = u16::try_from(value).map_err(|_| BadSetup)?;
                queue.try_set_size(size).map_err(|_| BadSetup)?;
            }
            register::VIRTIO_MMIO_QUEUE_DESC_LOW if aligned_to(16) => {
                queue.set_desc_table_address(Some(value), None);
            }
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                queue.set_desc_table_address(None, Some(value));
            }
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW if aligned_to(2) => {
                queue.set_avail_ring_address(Some(value), None);
            }
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                queue.set_avail_ring_address(None, Some(value));
            }
            register::VIRTIO_MMIO_QUEUE_USED_LOW if aligned_to(4) => {
                queue.set_used_ring_address(Some(value), None);
            }
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                queue.set_used_ring_address(None, Some(value));
            }
            register::VIRTIO_MMIO_QUEUE_DESC_LOW
            | register::VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | register::VIRTIO_MMIO_QUEUE_USED_LOW => return Err(BadSetup),
            _ => {}
        }
        Ok(())
    }
}

impl<D: VirtioDevice> Transport for VirtioMmio<D> {
    fn queue_count(&self) -> u16 {
        self.queue_count
    }

    fn doorbell(&self, queue: u16) -> Turn {
        self.if_free(|device, active| {
            let queues = &active.queues;
            if queues.get(usize::from(queue)).is_some_and(Queue::ready) {
                device.queue_ready(queue, active)
            } else {
                Turn::Done
            }
        })
    }

    fn backend_ready(&self) -> Turn {
        self.if_free(VirtioDevice::backend_ready)
    }

    fn backend_fd(&self) -> Option<RawFd> {
        self.locked(|inner| inner.device.backend().map(|fd| fd.as_raw_fd()))
    }

    fn drain(&self) {
        self.locked(|inner| {
            // Also for a device that is broken: what it had begun before may still be in flight.
            if inner.registers.has(VIRTIO_CONFIG_S_DRIVER_OK) {
                inner.call(&self.memory, &self.irq, VirtioDevice::drain);
            }
        });
    }

    fn save(&self) -> TransportState {
        self.locked(|inner| TransportState::of(&inner.registers, &inner.queues, &self.irq))
    }

    fn restored(&self) {
        self.irq.raise_pending();
        self.with_device(|device, active| active.map_or((), |active| device.restored(active)));
    }
}

impl<D: VirtioDevice> DeviceMmio for VirtioMmio<D> {
    /// The registers are read 32 bits at a time (section 4.2.2.2); all else reads as zeros.
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let Some(config) = offset.checked_sub(register::VIRTIO_MMIO_CONFIG.into()) {
            self.locked(|inner| inner.device.read_config(config, data));
        } else if let (Ok(offset), Ok(data)) = (u32::try_from(offset), data.try_into()) {
            let data: &mut [u8; 4] = data;
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(config) = offset.checked_sub(register::VIRTIO_MMIO_CONFIG.into()) {
            self.locked(|inner| {
                if inner.registers.has(VIRTIO_CONFIG_S_DRIVER) {
                    inner.device.write_config(config, data);
                }
            });
        } else if let (Ok(offset), Ok(data)) = (u32::try_from(offset), data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

fn queue_count(device: &impl VirtioDevice) -> u16 {
    u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX)
}

/// The low (0) or high (1) half of the features; there are no more.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// A queue of at most `max` entries.
pub(super) fn new_queue(max: u16) -> Queue {
    // The sizes are constants of our own devices; one that is no size gives a queue of the smallest.
    Queue::new(max).unwrap_or_else(|_| {
        debug_assert!(false, "{max} is no queue size");
        Queue::default()
    })
}

#[path = "mmio_access.rs"]
mod access;

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
