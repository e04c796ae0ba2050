//! A driver of one device, which the input tells to keep to the rules or to break them.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_mmio as register;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};
use vmgenie_devices::virtio::{GuestMemory, Transport, Turn};

use crate::Input;

/// Where the rings of the queues lie, one behind the other.
const RINGS: u64 = 0x10_0000;
const RING_AREA: u64 = 0x2_0000;
/// How often a device that has not had enough is called.
const TURNS: u32 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The driver's side of one queue.
#[derive(Debug, Clone, Copy)]
struct Queue {
    size: u16,
    table: u64,
    avail: u64,
    used: u64,
    next_desc: u16,
    next_avail: u16,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Driver {
    memory: GuestMemory,
    queues: Vec<Queue>,
}

impl Driver {
    /// A driver that has done nothing yet.
    pub(crate) fn new(memory: &GuestMemory) -> Self {
        Self {
            memory: memory.clone(),
            queues: Vec::new(),
        }
    }

    /// Sets the device up: features, and queues of sizes that the input says.
    pub(crate) fn start(&mut self, device: &dyn Transport, input: &mut Input<'_>) {
        write(device, register::VIRTIO_MMIO_STATUS, 0);
        let mut status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        write(device, register::VIRTIO_MMIO_STATUS, status);
        let without = input.u64();
        for select in 0..2 {
            write(device, register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            write(device, register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            let offered = read(device, register::VIRTIO_MMIO_DEVICE_FEATURES);
            // Without version 1 nothing goes.
            let without = (without >> (32 * select)) as u32 & !select;
            write(
                device,
                register::VIRTIO_MMIO_DRIVER_FEATURES,
                offered & !without,
            );
        }
        status |= VIRTIO_CONFIG_S_FEATURES_OK;
        write(device, register::VIRTIO_MMIO_STATUS, status);
        let begin = input.u16();
        self.queues = (0..device.queue_count())
            .map(|number| {
                let queue = self.set_up(number, 1 << (input.u8() % 9), begin);
                queue.tell(device, number);
                queue
            })
            .collect();
        status |= VIRTIO_CONFIG_S_DRIVER_OK;
        write(device, register::VIRTIO_MMIO_STATUS, status);
    }

    fn set_up(&self, number: u16, size: u16, begin: u16) -> Queue {
        let table = RINGS + u64::from(number) * RING_AREA;
        let avail = table + 16 * u64::from(size);
        let queue = Queue {
            size,
            table,
            avail,
            used: (avail + 6 + 2 * u64::from(size)).next_multiple_of(4),
            next_desc: 0,
            next_avail: begin,
        };
        self.store(queue.avail + 2, &begin.to_le_bytes());
        self.store(queue.used + 2, &begin.to_le_bytes());
        queue
    }

    /// Writes guest memory, if it is there.
    pub(crate) fn store(&self, gpa: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(gpa));
    }

    /// A queue by a number from the input; none if there is none.
    fn queue(&mut self, number: u8) -> Option<&mut Queue> {
        let count = self.queues.len().max(1);
        self.queues.get_mut(usize::from(number) % count)
    }

    /// Any descriptor of a table, of the queue's or anywhere.
    pub(crate) fn any_descriptor(&mut self, input: &mut Input<'_>) {
        let number = input.u8();
        let Some(queue) = self.queue(number).copied() else {
            return;
        };
        let table = match input.u8() {
            0 => input.gpa(),
            _ => queue.table,
        };
        let index = input.u16() % queue.size.saturating_mul(2);
        let (gpa, len, flags, next) = (input.gpa(), input.len(), input.u16(), input.u16());
        self.descriptor(table, index, (gpa, len), flags, next);
    }

    fn descriptor(&self, table: u64, index: u16, (gpa, len): (u64, u32), flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.store(table.wrapping_add(16 * u64::from(index)), &bytes);
    }

    /// A chain of pieces of memory, in the queue's table or in one of its own; offered.
    pub(crate) fn send(&mut self, number: u8, pieces: &[(u64, u32, bool)], indirect: Option<u64>) {
        let Some(mut queue) = self.queue(number).copied() else {
            return;
        };
        let head = queue.next_desc;
        for (n, &(gpa, len, writable)) in (0_u16..).zip(pieces) {
            let last = usize::from(n) + 1 == pieces.len();
            let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
            match indirect {
                Some(table) => self.descriptor(table, n, (gpa, len), flags, n + 1),
                None => {
                    let index = queue.next_desc;
                    queue.next_desc = (index + 1) % queue.size;
                    self.descriptor(queue.table, index, (gpa, len), flags, queue.next_desc);
                }
            }
        }
        if let Some(table) = indirect {
            queue.next_desc = (head + 1) % queue.size;
            let len = 16 * pieces.len() as u32;
            self.descriptor(queue.table, head, (table, len), INDIRECT, 0);
        }
        if let Some(place) = self.queue(number) {
            *place = queue;
        }
        self.offer(number, head);
    }

    /// Offers the chain that begins with `head`, which may be any number.
    pub(crate) fn offer(&mut self, number: u8, head: u16) {
        let Some(queue) = self.queue(number).copied() else {
            return;
        };
        let entry = queue.avail + 4 + 2 * u64::from(queue.next_avail % queue.size);
        self.store(entry, &head.to_le_bytes());
        self.set_avail(number, queue.next_avail.wrapping_add(1));
    }

    /// Any index of the available ring.
    pub(crate) fn set_avail(&mut self, number: u8, index: u16) {
        if let Some(queue) = self.queue(number) {
            queue.next_avail = index;
            let gpa = queue.avail + 2;
            self.store(gpa, &index.to_le_bytes());
        }
    }
}

impl Queue {
    fn tell(&self, device: &dyn Transport, number: u16) {
        write(device, register::VIRTIO_MMIO_QUEUE_SEL, number.into());
        write(device, register::VIRTIO_MMIO_QUEUE_NUM, self.size.into());
        for (low, gpa) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, self.table),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, self.avail),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, self.used),
        ] {
            write(device, low, gpa as u32);
            write(device, low + 4, (gpa >> 32) as u32);
        }
        write(device, register::VIRTIO_MMIO_QUEUE_READY, 1);
    }
}

/// Reads a register.
pub(crate) fn read(device: &dyn Transport, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    device.mmio_read(MmioAddress(0), offset.into(), &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Writes a register.
pub(crate) fn write(device: &dyn Transport, offset: u32, value: u32) {
    device.mmio_write(MmioAddress(0), offset.into(), &value.to_le_bytes());
}

/// Calls a device as often as it asks for it, within reason: a driver may have it write its own rings, and so go on for ever.
pub(crate) fn turns(mut call: impl FnMut() -> Turn) {
    for _ in 0..TURNS {
        if call() == Turn::Done {
            return;
        }
    }
}
