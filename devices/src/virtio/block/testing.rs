//! A disk in memory whose requests end when the test says so, and a driver that knows how requests look.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Buffer, Harness, readable, writable};
use super::{Block, BlockBackend, Operation, SECTOR, Task};

/// Where the driver has its requests: header, data, status.
pub(super) const HEADER: u64 = 0x1000;
pub(super) const DATA: u64 = 0x2_0000;
pub(super) const STATUS: u64 = 0x1800;
/// What the status byte is before the device has written it.
pub(super) const UNTOUCHED: u8 = 0xee;

/// Sectors of the test's disk.
pub(super) const SECTORS: u64 = 64;

/// What test and backend share.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) bytes: Vec<u8>,
    /// Tasks end only when there is nothing else to do: in [`BlockBackend::wait`], or when the test ends them.
    pub(super) held: bool,
    pub(super) waiting: VecDeque<Task>,
    pub(super) ended: VecDeque<(u16, io::Result<()>)>,
    pub(super) flushes: u32,
    pub(super) syncs: u32,
    pub(super) durable: u32,
    pub(super) most_in_flight: usize,
    /// The error with which the next tasks end.
    pub(super) error: Option<i32>,
    /// So often the host has no room for tasks.
    pub(super) no_room: u32,
    /// The error with which the next sync ends, and after it all.
    pub(super) sync_error: Option<i32>,
    pub(super) lost: bool,
}

impl Store {
    /// Ends the task that has waited longest, or the one that came last.
    pub(super) fn end_one(&mut self, last: bool) {
        let task = if last {
            self.waiting.pop_back()
        } else {
            self.waiting.pop_front()
        };
        if let Some(task) = task {
            let result = match self.error {
                Some(error) => Err(io::Error::from_raw_os_error(error)),
                None => {
                    self.carry_out(task.operation);
                    Ok(())
                }
            };
            self.ended.push_back((task.token, result));
        }
    }

    fn carry_out(&mut self, operation: Operation) {
        match operation {
            Operation::Read { offset, buffers } => {
                let mut from = offset as usize;
                for piece in buffers.iovecs() {
                    let bytes = &self.bytes[from..from + piece.iov_len];
                    // SAFETY: the buffers keep their memory mapped, and nobody else uses it now.
                    unsafe {
                        std::ptr::copy(bytes.as_ptr(), piece.iov_base.cast(), bytes.len());
                    }
                    from += piece.iov_len;
                }
            }
            Operation::Write {
                offset,
                buffers,
                durable,
            } => {
                let mut to = offset as usize;
                for piece in buffers.iovecs() {
                    let bytes = &mut self.bytes[to..to + piece.iov_len];
                    // SAFETY: as above.
                    unsafe {
                        std::ptr::copy(piece.iov_base.cast(), bytes.as_mut_ptr(), bytes.len());
                    }
                    to += piece.iov_len;
                }
                self.durable += u32::from(durable);
            }
            Operation::Flush => self.flushes += 1,
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                self.bytes[offset as usize..(offset + len) as usize].fill(0);
            }
        }
    }
}

/// The backend.
#[derive(Debug, Clone)]
pub(super) struct TestDisk {
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) read_only: bool,
    pub(super) flushes: bool,
    pub(super) discards: bool,
    pub(super) depth: u16,
}

impl TestDisk {
    pub(super) fn new() -> Self {
        Self::of(SECTORS)
    }

    /// A disk of so many sectors, each filled with its own number.
    pub(super) fn of(sectors: u64) -> Self {
        let bytes = (0..sectors * SECTOR)
            .map(|at| (at / SECTOR) as u8)
            .collect();
        Self {
            store: Arc::new(Mutex::new(Store {
                bytes,
                ..Store::default()
            })),
            read_only: false,
            flushes: true,
            discards: true,
            depth: 8,
        }
    }

    pub(super) fn disk(&self) -> Block<Self> {
        Block::new("a disk", self.clone())
    }

    pub(super) fn with<T>(&self, action: impl FnOnce(&mut Store) -> T) -> T {
        action(&mut self.store.lock().unwrap())
    }
}

impl BlockBackend for TestDisk {
    fn sectors(&self) -> u64 {
        self.with(|store| store.bytes.len() as u64 / SECTOR)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn flushes(&self) -> bool {
        self.flushes
    }

    fn discards(&self) -> bool {
        self.discards
    }

    fn depth(&self) -> u16 {
        self.depth
    }

    fn start(&mut self, task: Task) {
        assert!(task.token < self.depth);
        self.with(|store| {
            assert!(store.waiting.iter().all(|other| other.token != task.token));
            store.waiting.push_back(task);
            store.most_in_flight = store.most_in_flight.max(store.waiting.len());
        });
    }

    fn kick(&mut self) -> bool {
        self.with(|store| {
            if store.no_room > 0 {
                store.no_room -= 1;
                return false;
            }
            while !store.held && !store.waiting.is_empty() {
                store.end_one(false);
            }
            true
        })
    }

    fn ended(&mut self) -> Option<(u16, io::Result<()>)> {
        self.with(|store| store.ended.pop_front())
    }

    fn wait(&mut self) {
        self.with(|store| {
            assert!(!store.waiting.is_empty() || !store.ended.is_empty());
            store.end_one(true);
        });
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|store| match store.sync_error.take() {
            Some(error) => {
                store.lost = true;
                Err(io::Error::from_raw_os_error(error))
            }
            None if store.lost => Err(io::Error::other("lost")),
            None => {
                store.syncs += 1;
                Ok(())
            }
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A driver of one disk.
pub(super) type Driver = Harness<Block<TestDisk>>;

/// Writes a header at [`HEADER`] + 16 × `slot`, and forgets the status at [`STATUS`] + `slot`.
pub(super) fn header(driver: &Driver, slot: u64, kind: u32, sector: u64) -> Buffer {
    let gpa = HEADER + 16 * slot;
    let write = |gpa, value: u64| driver.memory.write_obj(value, GuestAddress(gpa)).unwrap();
    write(gpa, kind.into());
    write(gpa + 8, sector);
    driver
        .memory
        .write_obj(UNTOUCHED, GuestAddress(STATUS + slot))
        .unwrap();
    readable(gpa, 16)
}

/// Where the status of the request in `slot` goes.
pub(super) fn status_byte(slot: u64) -> Buffer {
    writable(STATUS + slot, 1)
}

/// The status of the request in `slot`.
pub(super) fn status(driver: &Driver, slot: u64) -> u8 {
    driver.memory.read_obj(GuestAddress(STATUS + slot)).unwrap()
}

/// Sends a request with `data` in the middle, rings, and returns the used length and the status.
pub(super) fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> (u32, u8) {
    let mut buffers = vec![header(driver, 0, kind, sector)];
    buffers.extend_from_slice(data);
    buffers.push(status_byte(0));
    driver.queues[0].send(&buffers);
    driver.doorbell(0);
    let used = driver.queues[0].take_used();
    assert_eq!(used.len(), 1, "{used:?}");
    (used[0].1, status(driver, 0))
}

/// Bytes of guest memory.
pub(super) fn bytes(driver: &Driver, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    driver
        .memory
        .read_slice(&mut bytes, GuestAddress(gpa))
        .unwrap();
    bytes
}
