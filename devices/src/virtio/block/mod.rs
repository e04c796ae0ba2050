//! A disk (virtio 1.2, section 5.2). Requests go to a [`BlockBackend`] as they come and are answered as they end, in any order.
//!
//! One queue. A request may have as many bytes as [`MAX_REQUEST`]; a driver that keeps to the limits in the configuration space cannot
//! exceed that.

mod backend;
mod metrics;
mod request;
mod state;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::bindings::virtio_blk as ids;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{
    ActivateError, Active, F_EVENT_IDX, F_INDIRECT_DESC, GuestMemory, QueueBroken, Turn,
    VirtioDevice, await_doorbell, give_back, mark_used, next_chain, notify_used,
};
use crate::throttle::Throttle;

pub use backend::{BlockBackend, Buffers, Operation, SECTOR, Task};
pub use metrics::BlockMetrics;
use metrics::Counted;
use request::{ID_BYTES, Request, Rules, S_IOERR, S_OK, S_UNSUPP, What};
use state::check_access;
pub use state::{BlockError, BlockState};

/// The device's number (section 5).
pub const DEVICE_ID: u32 = 2;
/// Descriptors in the queue.
pub const QUEUE_SIZE: u16 = 256;
/// The sizes of all queues.
pub const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];

/// The most pieces of guest memory in one request: more than [`SEG_MAX`] and what surrounds them, less than the kernel takes (`IOV_MAX`).
const MAX_SEGMENTS: usize = 512;
/// Pieces of data in one request: a queue full, without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes in one piece of data.
const SIZE_MAX: u32 = 64 << 10;
/// The most bytes in one request, so that what is in flight has a bound: 16 MiB, as much as `SEG_MAX` and `SIZE_MAX` allow.
pub const MAX_REQUEST: u32 = SEG_MAX * SIZE_MAX;
/// The most descriptors that are looked at: a chain that is longer has no end for us. Twice as many as there can be pieces.
const MAX_DESCRIPTORS: usize = 2 * MAX_SEGMENTS;
/// The most sectors that one request may discard: 1 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most sectors that one request may zero: 16 MiB, because a file system that makes no zeros has them written, and a snapshot waits for that.
const MAX_ZERO_SECTORS: u32 = 1 << 15;
/// The block size that the guest should prefer, as a power of two of sectors: 4 KiB, the page of the host's cache.
const PHYSICAL_BLOCK_EXP: u8 = 3;
/// What the guest should align discards to, in sectors.
const PHYSICAL_BLOCK_SECTORS: u32 = 1 << PHYSICAL_BLOCK_EXP;

const F_SIZE_MAX: u64 = 1 << ids::VIRTIO_BLK_F_SIZE_MAX;
const F_SEG_MAX: u64 = 1 << ids::VIRTIO_BLK_F_SEG_MAX;
const F_RO: u64 = 1 << ids::VIRTIO_BLK_F_RO;
const F_BLK_SIZE: u64 = 1 << ids::VIRTIO_BLK_F_BLK_SIZE;
const F_FLUSH: u64 = 1 << ids::VIRTIO_BLK_F_FLUSH;
const F_TOPOLOGY: u64 = 1 << ids::VIRTIO_BLK_F_TOPOLOGY;
const F_DISCARD: u64 = 1 << ids::VIRTIO_BLK_F_DISCARD;
const F_WRITE_ZEROES: u64 = 1 << ids::VIRTIO_BLK_F_WRITE_ZEROES;

/// What every disk offers.
const F_ALWAYS: u64 =
    F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_EVENT_IDX | F_INDIRECT_DESC;
/// What a disk offers if its backend can do it.
const F_SOMETIMES: u64 = F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

/// Bytes of the configuration space, up to the limits of writing zeros (section 5.2.4).
const CONFIG_LEN: usize = 60;

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    status: GuestAddress,
    written: u32,
    counted: Counted,
}

/// A disk.
#[derive(Debug)]
pub struct Block<B> {
    id: String,
    features: u64,
    sectors: u64,
    backend: B,
    /// By token.
    pending: Vec<Option<Pending>>,
    /// Tokens that are not in use.
    free: Vec<u16>,
    /// Kept for requests in flight, whose buffers must stay mapped.
    memory: Option<Arc<GuestMemory>>,
    /// The driver has not been told yet that the size has changed.
    resized: bool,
    /// Something may have been written since the disk was last synced: by the driver, or by whoever had the file before.
    dirty: bool,
    complaints: Throttle,
    metrics: Arc<BlockMetrics>,
}

impl<B: BlockBackend> Block<B> {
    /// A disk called `id`, of which a guest sees the first 20 bytes.
    pub fn new(id: &str, backend: B) -> Self {
        let mut features = F_ALWAYS;
        if backend.flushes() {
            features |= F_FLUSH;
        }
        if backend.read_only() {
            features |= F_RO;
        } else if backend.discards() {
            features |= F_DISCARD | F_WRITE_ZEROES;
        }
        Self::with_features(id, features, backend)
    }

    fn with_features(id: &str, features: u64, backend: B) -> Self {
        let depth = backend.depth().clamp(1, QUEUE_SIZE);
        Self {
            id: id.to_owned(),
            features,
            sectors: backend.sectors(),
            backend,
            pending: vec![None; depth.into()],
            free: (0..depth).rev().collect(),
            memory: None,
            resized: false,
            dirty: true,
            complaints: Throttle::default(),
            metrics: Arc::default(),
        }
    }

    /// Counts in `metrics` from now on.
    pub fn with_metrics(mut self, metrics: Arc<BlockMetrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Where it counts.
    pub fn metrics(&self) -> &BlockMetrics {
        &self.metrics
    }

    /// The disk's state. It has been drained.
    pub fn save(&self) -> BlockState {
        BlockState {
            id: self.id.clone(),
            features: self.features,
            sectors: self.sectors,
        }
    }

    /// The disk that was saved, on another backend. The driver is told if the size is another one.
    ///
    /// A backend that cannot do what was on offer answers that the request is not supported, which a driver can live with.
    ///
    /// # Errors
    /// The state cannot have been saved, or the backend's access is not what the driver was told.
    pub fn from_state(state: &BlockState, backend: B) -> Result<Self, BlockError> {
        state.check(backend.read_only())?;
        let mut disk = Self::with_features(&state.id, state.features, backend);
        disk.resized = disk.sectors != state.sectors;
        Ok(disk)
    }

    /// Has the disk stored elsewhere from now on, and tells the driver of its size. Requests in flight are ended before that, on the
    /// old backend.
    ///
    /// # Errors
    /// The backend's access is not what the driver was told.
    pub fn replace(
        &mut self,
        backend: B,
        active: Option<&mut Active<'_>>,
    ) -> Result<(), BlockError> {
        check_access(&self.id, self.features, backend.read_only())?;
        let depth = backend.depth().clamp(1, QUEUE_SIZE);
        match active {
            Some(active) => {
                self.end_all(Some(&mut *active));
                active.interrupt.config_changed();
            }
            None => self.end_all(None),
        }
        self.sectors = backend.sectors();
        self.pending = vec![None; depth.into()];
        self.free = (0..depth).rev().collect();
        self.backend = backend;
        self.dirty = true;
        Ok(())
    }

    /// The disk's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What stores the disk.
    pub fn store(&self) -> &B {
        &self.backend
    }

    /// The configuration space (section 5.2.4).
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP]);
        put(26, &(PHYSICAL_BLOCK_SECTORS as u16).to_le_bytes());
        // One queue.
        put(34, &1_u16.to_le_bytes());
        if self.features & F_DISCARD != 0 {
            // One range a request, at most so long, so aligned.
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &1_u32.to_le_bytes());
            put(44, &PHYSICAL_BLOCK_SECTORS.to_le_bytes());
            // One range of zeros a request, which may be given back.
            put(48, &MAX_ZERO_SECTORS.to_le_bytes());
            put(52, &1_u32.to_le_bytes());
            put(56, &[1]);
        }
        config
    }

    /// Looks at queue and backend until there is nothing more to do now.
    fn work(&mut self, active: &mut Active<'_>) -> Turn {
        let mark = mark_used(active, 0);
        self.backend.turn_begins();
        let turn = self.work_through(active).unwrap_or(Turn::Done);
        // The driver is told of what was used before the queue broke, too.
        let _ = notify_used(active, 0, mark);
        turn
    }

    fn work_through(&mut self, active: &mut Active<'_>) -> Result<Turn, QueueBroken> {
        let mut budget = QUEUE_SIZE;
        loop {
            let taken = self.take_requests(active, &mut budget)?;
            let mut begun = self.backend.kick();
            let ended = self.answer_ended(active)?;
            // What has ended in part has gone on.
            begun &= self.backend.kick();
            if budget == 0 || !begun {
                self.metrics.remaining_reqs_count.inc();
                return Ok(Turn::More);
            }
            if taken || ended {
                continue;
            }
            // With all tokens in use the next end brings us back here.
            let full = self.free.is_empty();
            if full || !await_doorbell(&mut active.queues[0], active.memory, active.interrupt)? {
                return Ok(Turn::Done);
            }
        }
    }

    /// Takes requests as long as there are some and tokens for them, `budget` of them at most. Were there any?
    fn take_requests(
        &mut self,
        active: &mut Active<'_>,
        budget: &mut u16,
    ) -> Result<bool, QueueBroken> {
        let memory = self
            .memory
            .get_or_insert_with(|| Arc::new(active.memory.clone()))
            .clone();
        let rules = Rules {
            sectors: self.sectors,
            features: active.features,
            flushes: self.backend.flushes(),
            read_only: self.features & F_RO != 0,
        };
        let mut any = false;
        // Doorbells are of no use while we look. That a driver rings nevertheless does no harm, nor does an error, which the
        // next access meets as well.
        let _ = active.queues[0].disable_notification(active.memory);
        while *budget > 0 {
            if self.free.is_empty() {
                self.metrics.io_engine_throttled_events.inc();
                break;
            }
            let Some(chain) = next_chain(&mut active.queues[0], active.memory, active.interrupt)?
            else {
                break;
            };
            any = true;
            *budget -= 1;
            let head = chain.head_index();
            match Request::parse(chain, &memory, rules) {
                Some(request) => self.begin(active, head, request)?,
                // Nothing can be said but that the chain is done with.
                None => {
                    self.metrics.invalid_reqs_count.inc();
                    end(active, head, 0)?;
                }
            }
        }
        Ok(any)
    }

    fn begin(
        &mut self,
        active: &mut Active<'_>,
        head: u16,
        request: Request,
    ) -> Result<(), QueueBroken> {
        let pending = Pending {
            head,
            status: request.status,
            written: request.written,
            counted: Counted::of(&request.what),
        };
        match request.what {
            Ok(What::Operation(operation)) => {
                let Some(token) = self.free.pop() else {
                    unreachable!("the caller has seen a free token");
                };
                self.pending[usize::from(token)] = Some(pending);
                self.dirty |= operation.writes();
                self.backend.start(Task { token, operation });
                Ok(())
            }
            Ok(What::Id(segments)) => {
                let mut id = [0; ID_BYTES];
                for (to, from) in id.iter_mut().zip(self.id.bytes()) {
                    *to = from;
                }
                let given = request::give(active.memory, &segments, &id);
                answer(active, pending, given.err().unwrap_or(S_OK))
            }
            Err(status) => {
                self.metrics.invalid_reqs_count.inc();
                answer(active, pending, status)
            }
        }
    }

    /// Answers all requests that have ended. Were there any?
    fn answer_ended(&mut self, active: &mut Active<'_>) -> Result<bool, QueueBroken> {
        let mut any = false;
        while let Some((pending, result)) = self.next_ended() {
            any = true;
            pending.counted.count(&self.metrics, result.is_ok());
            let status = match result {
                Ok(()) => S_OK,
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => S_UNSUPP,
                Err(error) => {
                    if let Some(more) = self.complaints.allows(Instant::now()) {
                        tracing::warn!(disk = self.id, %error, more, "a request has failed");
                    }
                    S_IOERR
                }
            };
            answer(active, pending, status)?;
        }
        Ok(any)
    }

    fn next_ended(&mut self) -> Option<(Pending, std::io::Result<()>)> {
        let (token, result) = self.backend.ended()?;
        let pending = self
            .pending
            .get_mut(usize::from(token))
            .and_then(Option::take)?;
        self.free.push(token);
        Some((pending, result))
    }

    /// Makes durable what is on the disk, before a snapshot refers to it. Nothing is in flight: the disk is drained or has no driver.
    ///
    /// # Errors
    /// The backend's: a snapshot would refer to what is not there. Not before the disk is on another backend does it succeed again.
    pub fn sync(&mut self) -> std::io::Result<()> {
        if self.dirty {
            self.backend.sync()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Waits for all requests in flight, and answers them if there is somebody to answer to.
    fn end_all(&mut self, mut active: Option<&mut Active<'_>>) {
        // What does not begin now does while it is waited for.
        let _ = self.backend.kick();
        let mark = active.as_deref().map(|active| mark_used(active, 0));
        let any = self.free.len() < self.pending.len();
        while self.free.len() < self.pending.len() {
            match active.as_deref_mut() {
                Some(now) => {
                    if self.answer_ended(now).is_err() {
                        // Nobody to answer to any more.
                        active = None;
                    }
                }
                None => while self.next_ended().is_some() {},
            }
            if self.free.len() < self.pending.len() {
                self.backend.wait();
            }
        }
        if let (Some(active), Some(mark), true) = (active, mark, any) {
            let _ = notify_used(active, 0, mark);
        }
    }
}

fn answer(active: &mut Active<'_>, pending: Pending, status: u8) -> Result<(), QueueBroken> {
    // Its address was checked, and memory does not go away.
    let _ = active.memory.write_obj(status, pending.status);
    let written = if status == S_OK { pending.written } else { 0 };
    end(active, pending.head, written + 1)
}

fn end(active: &mut Active<'_>, head: u16, written: u32) -> Result<(), QueueBroken> {
    give_back(
        &mut active.queues[0],
        active.memory,
        active.interrupt,
        head,
        written,
    )
}

impl<B: BlockBackend> VirtioDevice for Block<B> {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = usize::try_from(offset).map_or(CONFIG_LEN, |offset| offset.min(CONFIG_LEN));
        for (to, from) in data.iter_mut().zip(&config[from..]) {
            *to = *from;
        }
    }

    fn activate(&mut self, active: &mut Active<'_>) -> Result<(), ActivateError> {
        self.memory = Some(Arc::new(active.memory.clone()));
        Ok(())
    }

    fn reset(&mut self) {
        self.end_all(None);
        self.memory = None;
    }

    fn queue_ready(&mut self, _queue: u16, active: &mut Active<'_>) -> Turn {
        self.metrics.queue_event_count.inc();
        self.work(active)
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.backend.fd()
    }

    fn backend_ready(&mut self, active: &mut Active<'_>) -> Turn {
        if !active.queues.first().is_some_and(QueueT::ready) {
            return Turn::Done;
        }
        self.work(active)
    }

    fn drain(&mut self, active: &mut Active<'_>) {
        self.end_all(Some(active));
    }

    fn restored(&mut self, active: &mut Active<'_>) {
        if std::mem::take(&mut self.resized) {
            active.interrupt.config_changed();
        }
    }
}

#[cfg(test)]
mod chain_test;
#[cfg(test)]
#[path = "block_test.rs"]
mod test;
#[cfg(test)]
mod testing;
