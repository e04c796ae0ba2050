//! A driver's side of the queues, and a network that tests fill and read.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::{FrameBackend, Net, NetSettings, Offloads};
use crate::virtio::{Active, GuestMemory, Interrupt, Turn, VirtioDevice};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// Where tests may put buffers.
pub(super) const DATA: u64 = 0x10_0000;
/// The guest's memory in bytes, in two regions that touch in the middle.
pub(super) const MEMORY: u64 = 0x40_0000;
/// Where one region ends and the other begins.
pub(super) const SEAM: u64 = MEMORY / 2;

/// A network in which frames lie until somebody takes them.
#[derive(Debug)]
pub(super) struct TestNetwork {
    pub(super) to_guest: VecDeque<Vec<u8>>,
    pub(super) from_guest: Vec<Vec<u8>>,
    /// How many frames it takes before it blocks.
    pub(super) room: usize,
    /// The error number of every call.
    pub(super) broken: Option<i32>,
    pub(super) can: Offloads,
    pub(super) set: Option<Offloads>,
}

impl Default for TestNetwork {
    fn default() -> Self {
        Self {
            to_guest: VecDeque::new(),
            from_guest: Vec::new(),
            room: usize::MAX,
            broken: None,
            can: Offloads::ALL,
            set: None,
        }
    }
}

impl TestNetwork {
    fn check(&self) -> io::Result<()> {
        self.broken
            .map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }
}

impl FrameBackend for TestNetwork {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check()?;
        if self.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= 1;
        let mut bytes = Vec::new();
        for slice in frame {
            let mut part = vec![0; slice.len()];
            slice.copy_to(&mut part[..]);
            bytes.extend(part);
        }
        self.from_guest.push(bytes);
        Ok(())
    }

    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        assert!(buffers.len() <= 1024, "readv takes no more");
        let frame = self.to_guest.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &frame[..];
        for buffer in buffers {
            let len = rest.len().min(buffer.len());
            buffer.copy_from(&rest[..len]);
            rest = &rest[len..];
        }
        Ok(frame.len() - rest.len())
    }

    fn offloads(&self) -> Offloads {
        self.can
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        assert!(self.can.contains(offloads));
        self.set = Some(offloads);
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[derive(Debug, Default)]
pub(super) struct TestInterrupt {
    used: AtomicU32,
    config: AtomicU32,
    broken: AtomicU32,
}

impl Interrupt for TestInterrupt {
    fn used(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }

    fn needs_reset(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }
}

/// A frame of `len` bytes with its header, of which the device writes two bytes.
pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_add(seed)).collect();
    frame[10..12].fill(0);
    frame
}

/// An active device, its memory and its queues.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) device: Net<TestNetwork>,
    pub(super) memory: GuestMemory,
    pub(super) queues: Vec<Queue>,
    pub(super) features: u64,
    pub(super) interrupt: TestInterrupt,
}

impl Bench {
    /// A device whose driver has agreed to all features of it but `without`, with queues of `size`.
    pub(super) fn new(size: u16, without: u64) -> Self {
        let settings = NetSettings {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
        };
        Self::with(Net::new(settings, TestNetwork::default()), size, without)
    }

    pub(super) fn with(device: Net<TestNetwork>, size: u16, without: u64) -> Self {
        let regions = [
            (GuestAddress(0), SEAM as usize),
            (GuestAddress(SEAM), SEAM as usize),
        ];
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        let features = device.features() & !without;
        let queues = (0..3)
            .map(|index| {
                let mut queue = Queue::new(256).unwrap();
                queue.set_size(size);
                let base = 0x1_0000 * (index + 1);
                queue.set_desc_table_address(Some(base), Some(0));
                queue.set_avail_ring_address(Some(base + 0x8000), Some(0));
                queue.set_used_ring_address(Some(base + 0xc000), Some(0));
                queue.set_event_idx(features & crate::virtio::F_EVENT_IDX != 0);
                queue.set_ready(true);
                assert!(queue.is_valid(&memory));
                queue
            })
            .collect();
        let mut bench = Self {
            device,
            memory,
            queues,
            features,
            interrupt: TestInterrupt::default(),
        };
        assert!(bench.device.accepts(features));
        bench
            .call(|device, active| device.activate(active))
            .unwrap();
        bench
    }

    pub(super) fn call<T>(
        &mut self,
        action: impl FnOnce(&mut Net<TestNetwork>, &mut Active<'_>) -> T,
    ) -> T {
        let mut active = Active {
            memory: &self.memory,
            queues: &mut self.queues,
            features: self.features,
            interrupt: &self.interrupt,
        };
        action(&mut self.device, &mut active)
    }

    pub(super) fn doorbell(&mut self, queue: u16) -> Turn {
        self.call(|device, active| device.queue_ready(queue, active))
    }

    pub(super) fn network(&mut self) -> &mut TestNetwork {
        &mut self.device.backend
    }

    /// How often the driver has been interrupted for used buffers, for the configuration and for a broken queue since
    /// the last look.
    pub(super) fn interrupts(&self) -> [u32; 3] {
        let TestInterrupt {
            used,
            config,
            broken,
        } = &self.interrupt;
        [used, config, broken].map(|count| count.swap(0, Ordering::Relaxed))
    }

    pub(super) fn table(&self, queue: u16) -> u64 {
        self.queues[usize::from(queue)].desc_table()
    }

    /// Writes a descriptor of a queue's table, or any other at `table`.
    pub(super) fn descriptor(&self, table: u64, index: u16, parts: (u64, u32, u16, u16)) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let (address, len, flags, next) = parts;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    pub(super) fn avail_index(&self, queue: u16) -> u16 {
        let ring = self.queues[usize::from(queue)].avail_ring();
        self.memory.read_obj(GuestAddress(ring + 2)).unwrap()
    }

    pub(super) fn set_avail_index(&self, queue: u16, index: u16) {
        let ring = self.queues[usize::from(queue)].avail_ring();
        self.memory
            .write_obj(index, GuestAddress(ring + 2))
            .unwrap();
    }

    /// Makes the chain that begins at `head` available.
    pub(super) fn offer(&self, queue: u16, head: u16) {
        let index = self.avail_index(queue);
        let (ring, size) = {
            let queue = &self.queues[usize::from(queue)];
            (queue.avail_ring(), queue.size())
        };
        let slot = ring + 4 + 2 * u64::from(index % size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail_index(queue, index.wrapping_add(1));
    }

    /// Makes a chain of these pieces of memory, in descriptors from `head` on, and offers it.
    pub(super) fn offer_chain(&self, queue: u16, head: u16, write: bool, pieces: &[(u64, u32)]) {
        for (n, (address, len)) in pieces.iter().enumerate() {
            let index = head + n as u16;
            let mut flags = if write { WRITE } else { 0 };
            if n + 1 < pieces.len() {
                flags |= NEXT;
            }
            let parts = (*address, *len, flags, index + 1);
            self.descriptor(self.table(queue), index, parts);
        }
        self.offer(queue, head);
    }

    pub(super) fn used_index(&self, queue: u16) -> u16 {
        let ring = self.queues[usize::from(queue)].used_ring();
        self.memory.read_obj(GuestAddress(ring + 2)).unwrap()
    }

    /// The used elements from `from` on: head and length.
    pub(super) fn used(&self, queue: u16, from: u16) -> Vec<(u32, u32)> {
        let (ring, size) = {
            let queue = &self.queues[usize::from(queue)];
            (queue.used_ring(), queue.size())
        };
        let mut elements = Vec::new();
        let mut index = from;
        while index != self.used_index(queue) {
            let at = GuestAddress(ring + 4 + 8 * u64::from(index % size));
            let element: [u32; 2] = self.memory.read_obj(at).unwrap();
            elements.push((element[0], element[1]));
            index = index.wrapping_add(1);
        }
        elements
    }

    pub(super) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}
