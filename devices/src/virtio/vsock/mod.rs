//! The socket device (virtio 1.2, section 5.10): streams between programs in the guest (`AF_VSOCK`) and programs on the host.
//!
//! | file | what |
//! |---|---|
//! | `packet.rs` | the header, and the guest memory that a packet lies in |
//! | `connection.rs` | one connection: credit, closing |
//! | `greeting.rs` | what a program on the host says first |
//! | `gate.rs` | who is refused while the guest does not know who it is |
//! | `muxer.rs` | all connections, and whose turn it is |
//! | `host.rs` | what the device needs of the host |
//! | `metrics.rs` | what it counts |
//!
//! **After a restore** no program on the host has an end of the guest's connections. The guest is told so by an event
//! (`TRANSPORT_RESET`), upon which it closes them all, keeps its listeners, and reads its CID anew. Until it has given the event's buffer back, no packet
//! goes either way: a connection made before that would be closed with the old ones.

mod connection;
mod gate;
mod greeting;
mod host;
mod metrics;
mod muxer;
mod packet;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Queue, QueueT};

use self::connection::Key;
use self::muxer::{Muxer, Output};
use self::packet::{HEADER_LEN, Header, MAX_PIECES, Pieces};
use super::{
    ActivateError, Active, F_EVENT_IDX, F_INDIRECT_DESC, GuestMemory, Interrupt, QueueBroken, Turn,
    VirtioDevice, await_doorbell, give_back, mark_used, next_chain, notify_used,
};
use crate::DeviceState;

pub use self::host::{Event, Host, LISTENER, Stream, Token};
pub use self::metrics::VsockMetrics;
pub use self::muxer::MAX_CONNECTIONS;

/// The smallest CID that a guest may have: those below mean something else.
pub const MIN_GUEST_CID: u64 = 3;
/// The largest one: the upper half of the field is reserved, and all ones mean "any".
pub const MAX_GUEST_CID: u64 = u32::MAX as u64 - 1;

/// The sizes of all queues: to the guest, from the guest, events (section 5.10.2).
pub const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
const RX: u16 = 0;
const TX: u16 = 1;
const EVENTS: u16 = 2;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;

/// The most packets of one direction in one turn of the event loop.
const MAX_PACKETS: usize = 256;
/// The most bytes that are read from the host at once, and the most buffers of the guest's for them.
const MAX_READ: usize = 64 << 10;
const MAX_BUFFERS: usize = 32;

/// More connections than a device has, of those that a state may list.
const MAX_SAVED: usize = 4096;

/// The device's state in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's CID.
    pub guest_cid: u64,
    /// The last port of the host that was given to a connection to the guest.
    pub last_port: u32,
    /// The host's and the guest's ports of the guest's connections that it does not know to be granted, or that were refused and it has not
    /// been told. A guest that waits for an answer is not told by the event of a restore.
    #[serde(deserialize_with = "crate::bounded::at_most::<_, _, MAX_SAVED>")]
    pub unanswered: Vec<(u32, u32)>,
}

impl DeviceState for VsockState {
    const VERSION: u16 = 1;
}

impl VsockState {
    /// What a device offers, as the driver may have it.
    pub const OFFERED: u64 = F_EVENT_IDX | F_INDIRECT_DESC;

    /// Whether such a device can have saved this.
    ///
    /// # Errors
    /// [`VsockError`].
    pub fn check(&self) -> Result<(), VsockError> {
        if self.unanswered.len() > MAX_CONNECTIONS {
            return Err(VsockError::TooManyConnections(self.unanswered.len()));
        }
        check_cid(self.guest_cid)
    }
}

fn check_cid(guest_cid: u64) -> Result<(), VsockError> {
    if (MIN_GUEST_CID..=MAX_GUEST_CID).contains(&guest_cid) {
        return Ok(());
    }
    Err(VsockError::Cid(guest_cid))
}

/// A guest cannot have this CID, or this state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VsockError {
    /// The CID is reserved.
    #[error("a guest's CID is {MIN_GUEST_CID} to {MAX_GUEST_CID}, not {0}")]
    Cid(u64),
    /// There are more connections than there can be.
    #[error(
        "the state of the vsock device has {0} connections: there are {MAX_CONNECTIONS} at most"
    )]
    TooManyConnections(usize),
}

/// Has the guest been told that it comes out of a snapshot?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    /// It need not be, or it has acknowledged.
    Done,
    /// It has to be.
    Due,
    /// It has been, and has not given the buffer back: the index of the available ring from before is the same.
    Told(u16),
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock<H: Host> {
    muxer: Muxer<H>,
    reset: Reset,
    metrics: Arc<VsockMetrics>,
}

impl<H: Host> Vsock<H> {
    /// The device of a guest that boots.
    ///
    /// # Errors
    /// [`VsockError::Cid`].
    pub fn new(guest_cid: u64, host: H) -> Result<Self, VsockError> {
        check_cid(guest_cid)?;
        let device = Self {
            muxer: Muxer::new(host, guest_cid),
            reset: Reset::Done,
            metrics: Arc::default(),
        };
        let metrics = Arc::clone(&device.metrics);
        Ok(device.with_metrics(metrics))
    }

    /// Counts in `metrics` from now on.
    pub fn with_metrics(mut self, metrics: Arc<VsockMetrics>) -> Self {
        self.muxer.count_in(Arc::clone(&metrics));
        self.metrics = metrics;
        self
    }

    /// Has at most `limit` connections from now on, those included that have not said yet where they want to go: each takes a file
    /// descriptor of the host's. Never more than [`MAX_CONNECTIONS`].
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.muxer.set_limit(limit);
        self
    }

    /// The device that was saved, without its connections. The guest may get another CID by `state`.
    ///
    /// # Errors
    /// [`VsockError`].
    pub fn from_state(state: &VsockState, host: H) -> Result<Self, VsockError> {
        state.check()?;
        let mut device = Self::new(state.guest_cid, host)?;
        let unanswered = state.unanswered.iter();
        let unanswered: Vec<_> = unanswered
            .map(|&(host_port, guest_port)| Key {
                host_port,
                guest_port,
            })
            .collect();
        device.muxer.restore(state.last_port, &unanswered);
        Ok(device)
    }

    /// The device's state. Connections are not part of it: they go on here.
    pub fn save(&self) -> VsockState {
        let (last_port, unanswered) = self.muxer.save();
        let mut unanswered: Vec<_> = (unanswered.into_iter())
            .map(|key| (key.host_port, key.guest_port))
            .collect();
        unanswered.sort_unstable();
        unanswered.dedup();
        // A guest that has provoked so many resets gets no more.
        unanswered.truncate(MAX_CONNECTIONS);
        VsockState {
            guest_cid: self.guest_cid(),
            last_port,
            unanswered,
        }
    }

    /// The guest's CID.
    pub fn guest_cid(&self) -> u64 {
        self.muxer.guest_cid()
    }

    /// The host's side.
    pub fn host(&self) -> &H {
        self.muxer.host()
    }

    /// A turn in both directions.
    fn serve(&mut self, active: &mut Active<'_>) -> Turn {
        let marks = (mark_used(active, TX), mark_used(active, RX));
        let mut turn = || -> Result<Turn, QueueBroken> {
            let in_step = self.is_in_step(active);
            if !in_step.inspect_err(|_| self.metrics.ev_queue_event_fails.inc())? {
                return Ok(Turn::Done);
            }
            let sent = self.transmit(active);
            let sent = sent.inspect_err(|_| self.metrics.tx_queue_event_fails.inc())?;
            self.ring_was_refused();
            let delivered = self.deliver(active);
            let delivered = delivered.inspect_err(|_| self.metrics.rx_queue_event_fails.inc())?;
            notify_used(active, TX, marks.0)?;
            notify_used(active, RX, marks.1)?;
            Ok(match (sent, delivered) {
                (Turn::Done, Turn::Done) => Turn::Done,
                _ => Turn::More,
            })
        };
        // The driver knows already of a queue that is broken.
        turn().unwrap_or(Turn::Done)
    }

    /// Packets from the guest.
    fn transmit(&mut self, active: &mut Active<'_>) -> Result<Turn, QueueBroken> {
        let (memory, interrupt) = (active.memory, active.interrupt);
        let Some(queue) = queue_of(active, TX) else {
            return Ok(Turn::Done);
        };
        for _ in 0..MAX_PACKETS {
            let Some(chain) = next_chain(queue, memory, interrupt)? else {
                if await_doorbell(queue, memory, interrupt)? {
                    continue;
                }
                return Ok(Turn::Done);
            };
            let head = chain.head_index();
            match Header::take(memory, chain) {
                Some((header, data)) => {
                    self.metrics.tx_packets_count.inc();
                    self.metrics.tx_bytes_count.add(packet::len(&data) as u64);
                    self.muxer.receive(&header, &data);
                }
                None => {
                    self.metrics.tx_queue_event_fails.inc();
                    tracing::debug!("a vsock packet of the guest's is malformed");
                }
            }
            give_back(queue, memory, interrupt, head, 0)?;
        }
        Ok(Turn::More)
    }

    /// Packets to the guest.
    fn deliver(&mut self, active: &mut Active<'_>) -> Result<Turn, QueueBroken> {
        let (memory, interrupt) = (active.memory, active.interrupt);
        let Some(queue) = queue_of(active, RX) else {
            return Ok(Turn::Done);
        };
        let mut rx = Rx {
            queue,
            memory,
            interrupt,
            taken: 0,
        };
        while self.muxer.has_output() {
            if rx.taken >= MAX_PACKETS {
                return Ok(Turn::More);
            }
            let Some(buffer) = rx.take()? else {
                return Ok(Turn::Done);
            };
            match self.muxer.output() {
                Some(Output::Packet(header)) => {
                    self.metrics.rx_packets_count.inc();
                    rx.give(&buffer, &header)?;
                }
                Some(Output::Data(key, credit)) => {
                    self.deliver_data(&mut rx, buffer, key, credit)?
                }
                None => rx.untake(1),
            }
        }
        Ok(Turn::Done)
    }

    /// Data of one connection, read into as many buffers as they need.
    fn deliver_data<'m>(
        &mut self,
        rx: &mut Rx<'_, 'm>,
        first: Buffer<'m>,
        key: Key,
        credit: u32,
    ) -> Result<(), QueueBroken> {
        let wanted = MAX_READ.min(usize::try_from(credit).unwrap_or(MAX_READ));
        let mut room = packet::len(&first.data);
        let mut buffers = vec![first];
        while room < wanted && buffers.len() < MAX_BUFFERS {
            let Some(buffer) = rx.take()? else { break };
            room += packet::len(&buffer.data);
            buffers.push(buffer);
        }
        let mut into: Pieces<'_> = (buffers.iter())
            .flat_map(|buffer| buffer.data.iter().copied())
            .collect();
        let mut into = packet::split_front(&mut into, room.min(wanted)).unwrap_or_default();
        into.truncate(MAX_PIECES);
        let mut left = self.muxer.read(key, &into);
        let mut unused = 0;
        for buffer in &buffers {
            let len = packet::len(&buffer.data).min(left);
            left -= len;
            // A header tells the guest of its credit: one that is not sent must not be made.
            if len == 0 {
                unused += 1;
                continue;
            }
            // A u32 holds it: there were `MAX_READ` bytes at most.
            match self.muxer.data_header(key, len as u32) {
                Some(header) => {
                    self.metrics.rx_packets_count.inc();
                    self.metrics.rx_bytes_count.add(len as u64);
                    rx.give(buffer, &header)?;
                }
                None => unused += 1,
            }
        }
        rx.untake(unused);
        self.muxer.after(key);
        Ok(())
    }

    /// May packets go? Not until the guest has acknowledged that it comes out of a snapshot.
    fn is_in_step(&mut self, active: &mut Active<'_>) -> Result<bool, QueueBroken> {
        let (memory, interrupt) = (active.memory, active.interrupt);
        let mark = mark_used(active, EVENTS);
        let Some(queue) = queue_of(active, EVENTS) else {
            self.reset = Reset::Done; // a driver that wants no events gets none
            return Ok(true);
        };
        if self.reset == Reset::Due {
            let mut next = next_chain(queue, memory, interrupt)?;
            if next.is_none() && await_doorbell(queue, memory, interrupt)? {
                next = next_chain(queue, memory, interrupt)?;
            }
            let Some(chain) = next else {
                return Ok(false);
            };
            self.reset = Reset::Told(avail_idx(queue, memory, interrupt)?);
            let head = chain.head_index();
            let event = TRANSPORT_RESET.to_le_bytes();
            let pieces = packet::pieces(memory, chain, true).unwrap_or_default();
            packet::copy_in(&pieces, &event);
            let len = packet::len(&pieces).min(event.len());
            give_back(queue, memory, interrupt, head, len as u32)?;
            ring_at_next_offer(queue, memory, interrupt)?;
            notify_used(active, EVENTS, mark)?;
        }
        if let (Reset::Told(before), Some(queue)) = (self.reset, queue_of(active, EVENTS))
            && avail_idx(queue, memory, interrupt)? != before
        {
            self.reset = Reset::Done;
        }
        Ok(self.reset == Reset::Done)
    }
}

/// A queue, if the driver has set it up.
fn queue_of<'a>(active: &'a mut Active<'_>, number: u16) -> Option<&'a mut Queue> {
    (active.queues.get_mut(usize::from(number))).filter(|queue| queue.ready())
}

fn avail_idx(
    queue: &Queue,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
) -> Result<u16, QueueBroken> {
    match queue.avail_idx(memory, std::sync::atomic::Ordering::Acquire) {
        Ok(idx) => Ok(idx.0),
        Err(_) => {
            interrupt.needs_reset();
            Err(QueueBroken)
        }
    }
}

/// Has the driver ring for the next buffer that it offers, although there are some that nobody has taken: with `EVENT_IDX`, it rings
/// only for the one behind those that were taken.
fn ring_at_next_offer(
    queue: &mut Queue,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
) -> Result<(), QueueBroken> {
    let next = queue.next_avail();
    queue.set_next_avail(avail_idx(queue, memory, interrupt)?);
    let rung = await_doorbell(queue, memory, interrupt);
    queue.set_next_avail(next);
    rung.map(drop)
}

/// A buffer of the guest's for one packet.
#[derive(Debug)]
struct Buffer<'m> {
    head: u16,
    header: Pieces<'m>,
    data: Pieces<'m>,
}

/// The queue to the guest, and the buffers that were taken out of it.
#[derive(Debug)]
struct Rx<'q, 'm> {
    queue: &'q mut Queue,
    memory: &'m GuestMemory,
    interrupt: &'q dyn Interrupt,
    /// How many buffers were taken, those included that were put back.
    taken: usize,
}

impl<'m> Rx<'_, 'm> {
    /// The next buffer that holds a header and some data; none if the guest has to offer more first, or has offered a great many that
    /// hold neither.
    fn take(&mut self) -> Result<Option<Buffer<'m>>, QueueBroken> {
        for _ in 0..=MAX_PACKETS {
            self.taken += 1;
            let Some(chain) = next_chain(self.queue, self.memory, self.interrupt)? else {
                if await_doorbell(self.queue, self.memory, self.interrupt)? {
                    continue;
                }
                return Ok(None);
            };
            let head = chain.head_index();
            let mut data = packet::pieces(self.memory, chain, true).unwrap_or_default();
            match packet::split_front(&mut data, HEADER_LEN) {
                Some(header) if !data.is_empty() => {
                    return Ok(Some(Buffer { head, header, data }));
                }
                _ => give_back(self.queue, self.memory, self.interrupt, head, 0)?,
            }
        }
        Ok(None)
    }

    /// Puts the last `n` buffers back.
    fn untake(&mut self, n: u16) {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_sub(n));
    }

    /// Gives a buffer to the guest, whose data are in it already.
    fn give(&mut self, buffer: &Buffer<'_>, header: &Header) -> Result<(), QueueBroken> {
        packet::copy_in(&buffer.header, zerocopy::IntoBytes::as_bytes(header));
        let len = HEADER_LEN as u32 + header.len.get();
        give_back(self.queue, self.memory, self.interrupt, buffer.head, len)
    }
}

impl<H: Host> VirtioDevice for Vsock<H> {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VsockState::OFFERED
    }

    /// `guest_cid`, 64 bits (section 5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid().to_le_bytes();
        let from = usize::try_from(offset).ok().and_then(|at| config.get(at..));
        for (byte, value) in data.iter_mut().zip(from.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn activate(&mut self, _active: &mut Active<'_>) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.muxer.clear();
        self.reset = Reset::Done;
        self.ring_was_refused();
    }

    fn queue_ready(&mut self, queue: u16, active: &mut Active<'_>) -> Turn {
        match queue {
            RX => self.metrics.rx_queue_event_count.inc(),
            TX => self.metrics.tx_queue_event_count.inc(),
            _ => {}
        }
        self.serve(active)
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.host().fd()
    }

    fn backend_ready(&mut self, active: &mut Active<'_>) -> Turn {
        let more = self.muxer.poll();
        let turn = self.serve(active);
        if more { Turn::More } else { turn }
    }

    fn restored(&mut self, active: &mut Active<'_>) {
        self.reset = Reset::Due;
        // Packets do not go before the guest has answered.
        let _ = self.serve(active);
    }
}

#[cfg(test)]
mod gate_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod vsock_test;
