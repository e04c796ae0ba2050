//! For the tests of virtio devices: guest memory, a driver that may break every rule, and a machine around the device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_mmio as register;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};

use super::{GuestMemory, Transport, TransportState, Turn, VirtioDevice, VirtioMmio, Wires};

/// Guest memory has two ranges with a hole between them: the first one of so many bytes, from gpa 0 on ...
pub(crate) const MEMORY_LEN: u64 = 0x20_0000;
/// ... and the second one, of 64 KiB, from here on.
pub(crate) const HIGH_MEMORY: u64 = 0x40_0000;
/// The length of the second range.
pub(crate) const HIGH_MEMORY_LEN: u64 = 0x1_0000;
/// Where the rings lie; queue *n* has [`RING_AREA`] bytes.
const RINGS: u64 = 0x10_0000;
const RING_AREA: u64 = 0x2_0000;
/// Where buffers may lie: a mebibyte from 0 on, which no ring touches.
pub(crate) const BUFFERS_LEN: u64 = RINGS;

/// Descriptor flags (section 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory as the constants of this module describe it.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[
        (GuestAddress(0), MEMORY_LEN as usize),
        (GuestAddress(HIGH_MEMORY), HIGH_MEMORY_LEN as usize),
    ])
    .unwrap()
}

/// Counts what a device does to its wires.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestWires {
    interrupts: Arc<AtomicU64>,
    kicks: Arc<AtomicU64>,
}

impl TestWires {
    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::SeqCst)
    }

    pub(crate) fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::SeqCst)
    }
}

impl Wires for TestWires {
    fn interrupt(&self) -> io::Result<()> {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) gpa: u64,
    pub(crate) len: u32,
    /// The device writes it.
    pub(crate) write: bool,
}

/// A buffer that the device reads.
pub(crate) fn readable(gpa: u64, len: u32) -> Buffer {
    Buffer {
        gpa,
        len,
        write: false,
    }
}

/// A buffer that the device writes.
pub(crate) fn writable(gpa: u64, len: u32) -> Buffer {
    Buffer {
        gpa,
        len,
        write: true,
    }
}

/// The driver's side of one queue.
#[derive(Clone, Debug)]
pub(crate) struct DriverQueue {
    memory: GuestMemory,
    pub(crate) size: u16,
    pub(crate) desc_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
    next_desc: u16,
    next_avail: u16,
    seen_used: u16,
}

impl DriverQueue {
    /// Queue number `number` with `size` entries.
    pub(crate) fn new(memory: &GuestMemory, number: u16, size: u16) -> Self {
        let base = RINGS + u64::from(number) * RING_AREA;
        let avail_ring = base + 16 * u64::from(size);
        let used_ring = (avail_ring + 6 + 2 * u64::from(size)).next_multiple_of(4);
        assert!(used_ring + 6 + 8 * u64::from(size) <= base + RING_AREA);
        assert!(base + RING_AREA <= MEMORY_LEN);
        Self {
            memory: memory.clone(),
            size,
            desc_table: base,
            avail_ring,
            used_ring,
            next_desc: 0,
            next_avail: 0,
            seen_used: 0,
        }
    }

    /// Writes any descriptor.
    pub(crate) fn descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        write_descriptor(&self.memory, self.desc_table, index, gpa, len, flags, next);
    }

    /// Writes a chain into the next descriptors; returns the index of its head. It is not offered yet.
    pub(crate) fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let next = if n + 1 < buffers.len() { NEXT } else { 0 };
            let write = if buffer.write { WRITE } else { 0 };
            self.descriptor(index, buffer.gpa, buffer.len, next | write, self.next_desc);
        }
        head
    }

    /// Offers the chain that begins with `head`, which may be any number.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = self.avail_ring + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.set_avail_idx(self.next_avail.wrapping_add(1));
    }

    /// Writes and offers a chain.
    pub(crate) fn send(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.chain(buffers);
        self.offer(head);
        head
    }

    /// Sets the index of the available ring to any value.
    pub(crate) fn set_avail_idx(&mut self, idx: u16) {
        self.next_avail = idx;
        let gpa = GuestAddress(self.avail_ring + 2);
        self.memory.write_obj(idx, gpa).unwrap();
    }

    /// The index of the used ring.
    pub(crate) fn used_idx(&self) -> u16 {
        self.memory
            .read_obj(GuestAddress(self.used_ring + 2))
            .unwrap()
    }

    /// What came back since the last call: heads and lengths.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while self.seen_used != self.used_idx() {
            let entry = self.used_ring + 4 + 8 * u64::from(self.seen_used % self.size);
            let read = |gpa| self.memory.read_obj(GuestAddress(gpa)).unwrap();
            used.push((read(entry), read(entry + 4)));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        used
    }

    /// Sets the driver's and the device's indices, as after so many chains. Before the queue is set up in the device.
    pub(crate) fn start_at(&mut self, idx: u16) {
        self.set_avail_idx(idx);
        self.seen_used = idx;
        let gpa = GuestAddress(self.used_ring + 2);
        self.memory.write_obj(idx, gpa).unwrap();
    }
}

/// Writes any descriptor of a table at `table`, which may be one of indirect descriptors.
pub(crate) fn write_descriptor(
    memory: &GuestMemory,
    table: u64,
    index: u16,
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let base = table + 16 * u64::from(index);
    memory.write_obj(gpa, GuestAddress(base)).unwrap();
    memory.write_obj(len, GuestAddress(base + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(base + 12)).unwrap();
    memory.write_obj(next, GuestAddress(base + 14)).unwrap();
}

/// A device in a machine, and its driver.
#[derive(Debug)]
pub(crate) struct Harness<D> {
    pub(crate) memory: GuestMemory,
    pub(crate) wires: TestWires,
    pub(crate) transport: VirtioMmio<D>,
    pub(crate) queues: Vec<DriverQueue>,
    kicks_seen: u64,
}

impl<D: VirtioDevice> Harness<D> {
    /// A device as after power-on; the driver's queues have the largest sizes.
    pub(crate) fn new(device: D) -> Self {
        let memory = memory();
        let wires = TestWires::default();
        let queues = (0..)
            .zip(device.queue_sizes())
            .map(|(number, &size)| DriverQueue::new(&memory, number, size))
            .collect();
        let transport = VirtioMmio::new(device, memory.clone(), Box::new(wires.clone()));
        Self {
            memory,
            wires,
            transport,
            queues,
            kicks_seen: 0,
        }
    }

    /// A device whose driver uses all the features on offer but `without`, and all queues.
    pub(crate) fn active(device: D, without: u64) -> Self {
        let mut harness = Self::new(device);
        harness.start(without);
        harness
    }

    /// What a driver does from the beginning to `DRIVER_OK`; then a turn of the event loop.
    pub(crate) fn start(&mut self, without: u64) {
        self.negotiate(without);
        for queue in 0..self.queues.len() as u32 {
            self.set_up_queue(queue);
        }
        let status = self.read(register::VIRTIO_MMIO_STATUS);
        self.write(
            register::VIRTIO_MMIO_STATUS,
            status | VIRTIO_CONFIG_S_DRIVER_OK,
        );
        self.turn();
    }

    /// Up to `FEATURES_OK`.
    pub(crate) fn negotiate(&self, without: u64) {
        self.write(register::VIRTIO_MMIO_STATUS, 0);
        let mut status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        self.write(register::VIRTIO_MMIO_STATUS, status);
        for select in 0..2 {
            self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            let offered = self.read(register::VIRTIO_MMIO_DEVICE_FEATURES);
            let without = (without >> (32 * select)) as u32;
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, offered & !without);
        }
        status |= VIRTIO_CONFIG_S_FEATURES_OK;
        self.write(register::VIRTIO_MMIO_STATUS, status);
    }

    /// Tells the device where a queue lies.
    pub(crate) fn set_up_queue(&self, number: u32) {
        let queue = &self.queues[number as usize];
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, number);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, queue.size.into());
        for (low, gpa) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.desc_table),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.avail_ring),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used_ring),
        ] {
            self.write(low, gpa as u32);
            self.write(low + 4, (gpa >> 32) as u32);
        }
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Reads a register.
    pub(crate) fn read(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        self.transport
            .mmio_read(MmioAddress(0), offset.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    pub(crate) fn write(&self, offset: u32, value: u32) {
        self.transport
            .mmio_write(MmioAddress(0), offset.into(), &value.to_le_bytes());
    }

    /// Reads `len` bytes of the configuration space.
    pub(crate) fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xaa; len];
        let offset = u64::from(register::VIRTIO_MMIO_CONFIG) + offset;
        self.transport.mmio_read(MmioAddress(0), offset, &mut bytes);
        bytes
    }

    /// The device's status, as the driver reads it.
    pub(crate) fn status(&self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }

    /// Takes and acknowledges the cause of interrupts, as a driver's interrupt handler does.
    pub(crate) fn take_interrupt(&self) -> u32 {
        let cause = self.read(register::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(register::VIRTIO_MMIO_INTERRUPT_ACK, cause);
        cause
    }

    /// Rings a doorbell, as often as the device asks to be called again; says how often that was.
    pub(crate) fn doorbell(&self, queue: u16) -> u32 {
        for turns in 1..10_000 {
            if self.transport.doorbell(queue) == Turn::Done {
                return turns;
            }
        }
        panic!("the device never has enough");
    }

    /// The backend is ready, as often as the device asks to be called again.
    pub(crate) fn backend_ready(&self) -> u32 {
        for turns in 1..10_000 {
            if self.transport.backend_ready() == Turn::Done {
                return turns;
            }
        }
        panic!("the device never has enough");
    }

    /// What the event loop does for a device that has kicked it; false if it has not.
    pub(crate) fn turn(&mut self) -> bool {
        let kicks = self.wires.kicks();
        let kicked = std::mem::replace(&mut self.kicks_seen, kicks) != kicks;
        if kicked {
            for queue in 0..self.transport.queue_count() {
                self.doorbell(queue);
            }
            self.backend_ready();
        }
        kicked
    }

    /// The transport's state after all was drained, through the snapshot's encoding.
    pub(crate) fn saved(&self) -> TransportState {
        self.transport.drain();
        self.transport.save()
    }

    /// The machine restored: the same memory and driver, `device` as it was saved. Kicked as after a restore.
    pub(crate) fn restore(mut self, device: D) -> Self {
        let state = self.saved();
        let memory = self.memory.clone();
        let wires = Box::new(self.wires.clone());
        self.transport = VirtioMmio::from_state(device, &state, memory, wires).unwrap();
        self.transport.restored();
        for queue in 0..self.transport.queue_count() {
            self.doorbell(queue);
        }
        self.backend_ready();
        self
    }
}
