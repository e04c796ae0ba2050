//! The network device (virtio 1.2, section 5.1): one pair of queues, checksums and segmentation left to the other side,
//! received frames over several buffers.
//!
//! Frames go between guest memory and the backend without a copy. A frame that cannot be sent or received is lost,
//! as on any network; nothing of a frame is kept when a snapshot is taken.
//!
//! | configuration space | |
//! |---|---|
//! | 0x0 | MAC address, 6 bytes |
//! | 0x6 | u16: bit 0 link is up, bit 1 announce yourself |
//! | 0x8 | u16: pairs of queues, not offered, 0 |
//! | 0xa | u16: MTU, if there is one |
//!
//! **Clones.** A restored device may have another MAC address than the one that was saved, and is told to announce itself, because
//! its network may never have heard of it. Drivers read the address when they bind to the device and not again: until then (unbind and bind)
//! a guest keeps its old one, unless it sets another by itself.

mod backend;
mod control;
mod gate;
#[cfg(test)]
mod gate_test;
mod metrics;
mod ring;
mod rx;
#[cfg(test)]
mod rx_test;
mod state;
#[cfg(test)]
mod testing;
mod tx;
#[cfg(test)]
mod tx_test;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::{Queue, QueueT};

pub use backend::{FrameBackend, HEADER_LEN, MAX_FRAME_LEN, Offloads};
pub use metrics::NetMetrics;
pub use state::{NetRestoreError, NetState};

use super::{ActivateError, Active, F_EVENT_IDX, F_INDIRECT_DESC, Interrupt, Turn, VirtioDevice};
use crate::random::{self, RandomError};
use ring::QueueError;
use rx::{Buffers, Receive};
use tx::Transmit;

/// The smallest MTU in bytes (virtio 1.2, 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// The queues' numbers.
const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
/// The sizes of all queues: frames for the guest, frames from it, commands.
pub const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// How many frames or chains one turn of a queue handles, so that a guest's flood leaves the event loop to others.
const BUDGET: usize = 256;
/// How much longer a frame may be than the MTU, in bytes: Ethernet's header, with a VLAN tag.
const LINK_HEADER: usize = 18;
/// The MTU of a network that nobody has said anything else of.
const DEFAULT_MTU: u16 = 1500;

/// What the guest is told of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSettings {
    /// The guest's MAC address, in the order in which it is sent.
    pub mac: [u8; 6],
    /// The largest packet, in bytes, at least [`MIN_MTU`]; none to leave it to the guest.
    pub mtu: Option<u16>,
}

/// A MAC address of no manufacturer's, for a guest that nobody has given one: locally administered, of one station, the rest random.
///
/// # Errors
/// The host has no random numbers.
pub fn random_mac() -> Result<[u8; 6], RandomError> {
    let mut mac = [0; 6];
    random::fill(&mut mac)?;
    mac[0] = mac[0] & !0b01 | 0b10;
    Ok(mac)
}

/// What a queue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The driver's doorbell.
    Driver,
    /// The backend.
    Backend,
    /// Nothing: its budget is spent.
    Again,
}

impl From<Next> for Turn {
    fn from(next: Next) -> Self {
        match next {
            Next::Driver | Next::Backend => Self::Done,
            Next::Again => Self::More,
        }
    }
}

/// The network device.
#[derive(Debug)]
pub struct Net<B> {
    backend: B,
    settings: NetSettings,
    /// What driver and device have agreed on; 0 if the device is not active.
    features: u64,
    /// The cable is plugged in.
    link: bool,
    /// The device is kept off its network, whatever the cable: see [`Self::shut_gate`].
    shut: bool,
    /// The driver has been told to announce itself, and has not done so yet.
    announce: bool,
    /// The configuration space is not what the driver has read. It is told when the machine is restored.
    config_changed: bool,
    buffers: Buffers,
    /// The backend had no room for a frame, which waits in its queue.
    tx_waits: bool,
    metrics: Arc<NetMetrics>,
}

impl<B: FrameBackend> Net<B> {
    /// A device as after power-on, with its link up.
    pub fn new(settings: NetSettings, backend: B) -> Self {
        Self {
            backend,
            settings,
            features: 0,
            link: true,
            shut: false,
            announce: false,
            config_changed: false,
            buffers: Buffers::default(),
            tx_waits: false,
            metrics: Arc::default(),
        }
    }

    /// What the guest is told.
    pub fn settings(&self) -> NetSettings {
        self.settings
    }

    /// Counts in `metrics` from now on.
    pub fn with_metrics(mut self, metrics: Arc<NetMetrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Whether the cable is plugged in.
    pub fn link(&self) -> bool {
        self.link
    }

    /// Whether the guest has a network: what it is told of its link.
    fn carrier(&self) -> bool {
        self.link && !self.shut
    }

    /// Plugs the cable in or out. `active` is there if a driver uses the device; it is told. The caller has the backend looked at afterwards
    /// ([`VirtioDevice::backend_ready`]).
    ///
    /// Frames that come without a link wait in the backend, as long as that has room.
    pub fn set_link(&mut self, up: bool, active: Option<&mut Active<'_>>) {
        if up == self.link {
            return;
        }
        self.link = up;
        if !self.shut {
            self.tell_of_carrier(active);
        }
    }

    /// Tells the driver to announce itself, if it has a link.
    pub fn announce(&mut self, active: Option<&mut Active<'_>>) {
        if self.carrier() && self.has(VIRTIO_NET_F_GUEST_ANNOUNCE) {
            self.tell_of_carrier(active);
        }
    }

    /// The link is not what it was. Who has a network again announces itself there.
    fn tell_of_carrier(&mut self, active: Option<&mut Active<'_>>) {
        if let Some(active) = active {
            self.announce |= self.carrier() && self.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
            active.interrupt.config_changed();
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// What the guest lets the backend leave to it.
    fn wanted_offloads(&self) -> Offloads {
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        Offloads {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_GUEST_TSO6),
            ufo: checksum && self.has(VIRTIO_NET_F_GUEST_UFO),
        }
    }

    fn longest_frame(&self) -> usize {
        if self.wanted_offloads().segments() {
            return MAX_FRAME_LEN;
        }
        let mtu = self.settings.mtu.unwrap_or(DEFAULT_MTU);
        HEADER_LEN + LINK_HEADER + usize::from(mtu.max(DEFAULT_MTU))
    }

    fn receive(&mut self, active: &mut Active<'_>) -> Turn {
        if !self.carrier() {
            return Turn::Done;
        }
        let (mergeable, longest) = (self.has(VIRTIO_NET_F_MRG_RXBUF), self.longest_frame());
        let Some(queue) = queue(active.queues, RX) else {
            return Turn::Done;
        };
        let receive = Receive {
            queue,
            memory: active.memory,
            backend: &mut self.backend,
            buffers: &mut self.buffers,
            metrics: &self.metrics,
            mergeable,
            longest,
        };
        let done = receive.run(BUDGET);
        self.finish(done, active.interrupt)
    }

    fn transmit(&mut self, active: &mut Active<'_>, budget: usize) -> Turn {
        let link = self.carrier();
        let Some(queue) = queue(active.queues, TX) else {
            return Turn::Done;
        };
        let transmit = Transmit {
            queue,
            memory: active.memory,
            backend: &mut self.backend,
            link,
            metrics: &self.metrics,
        };
        let done = transmit.run(budget);
        self.tx_waits = matches!(done, Ok((Next::Backend, _)));
        if matches!(done, Ok((Next::Again, _))) {
            self.metrics.tx_remaining_reqs_count.inc();
        }
        self.finish(done, active.interrupt)
    }

    fn control(&mut self, active: &mut Active<'_>) -> Turn {
        let Some(queue) = queue(active.queues, CONTROL) else {
            return Turn::Done;
        };
        let done = control::process(queue, active.memory, BUDGET).map(|(commands, next, wants)| {
            self.announce &= !commands.announced;
            (next, wants)
        });
        self.finish(done, active.interrupt)
    }

    /// Interrupts the driver if it wants that, or tells it that it has broken a queue.
    fn finish(&self, done: Result<(Next, bool), QueueError>, interrupt: &dyn Interrupt) -> Turn {
        match done {
            Ok((next, wants_interrupt)) => {
                if wants_interrupt {
                    interrupt.used();
                }
                next.into()
            }
            Err(error) => {
                tracing::debug!(%error, "network device");
                self.metrics.event_fails.inc();
                interrupt.needs_reset();
                Turn::Done
            }
        }
    }

    fn config(&self) -> [u8; 12] {
        let mut status = 0;
        if self.carrier() {
            status |= VIRTIO_NET_S_LINK_UP;
        }
        // Nobody would hear it without a link.
        if self.announce && self.carrier() {
            status |= VIRTIO_NET_S_ANNOUNCE;
        }
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.settings.mac);
        config[6..8].copy_from_slice(&(status as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.settings.mtu.unwrap_or(0).to_le_bytes());
        config
    }
}

/// A queue that the driver has set up.
fn queue(queues: &mut [Queue], index: u16) -> Option<&mut Queue> {
    queues
        .get_mut(usize::from(index))
        .filter(|queue| queue.ready())
}

fn both(one: Turn, other: Turn) -> Turn {
    match (one, other) {
        (Turn::Done, Turn::Done) => Turn::Done,
        _ => Turn::More,
    }
}

/// The features of a device with these settings on a backend that can do `offloads`.
fn offered(settings: NetSettings, offloads: Offloads) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
    ];
    for (there, host, guest) in [
        (
            offloads.checksum,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
        ),
        (
            offloads.tso4,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_GUEST_TSO4,
        ),
        (
            offloads.tso6,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_GUEST_TSO6,
        ),
        (offloads.ufo, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_GUEST_UFO),
    ] {
        if there {
            bits.extend([host, guest]);
        }
    }
    if settings.mtu.is_some() {
        bits.push(VIRTIO_NET_F_MTU);
    }
    let bits = bits.into_iter().fold(0, |all, bit| all | 1 << bit);
    bits | F_EVENT_IDX | F_INDIRECT_DESC
}

/// Whether each feature has the ones that it depends on (virtio 1.2, 5.1.3.1).
fn is_consistent(features: u64) -> bool {
    let has = |bit: u32| features & (1 << bit) != 0;
    let needs = |dependent: &[u32], needed: u32| {
        has(needed) || dependent.iter().all(|&feature| !has(feature))
    };
    needs(
        &[
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_UFO,
        ],
        VIRTIO_NET_F_GUEST_CSUM,
    ) && needs(
        &[
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_UFO,
        ],
        VIRTIO_NET_F_CSUM,
    ) && needs(&[VIRTIO_NET_F_GUEST_ANNOUNCE], VIRTIO_NET_F_CTRL_VQ)
}

impl<B: FrameBackend> VirtioDevice for Net<B> {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        offered(self.settings, self.backend.offloads())
    }

    fn accepts(&self, features: u64) -> bool {
        is_consistent(features)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn activate(&mut self, active: &mut Active<'_>) -> Result<(), ActivateError> {
        self.features = active.features;
        let offloads = self.wanted_offloads();
        self.backend.set_offloads(offloads).map_err(|error| {
            self.metrics.activate_fails.inc();
            ActivateError(format!("the network cannot do {offloads:?}: {error}"))
        })
    }

    fn reset(&mut self) {
        self.buffers.forget();
        self.tx_waits = false;
        self.features = 0;
        self.announce = false;
    }

    fn queue_ready(&mut self, queue: u16, active: &mut Active<'_>) -> Turn {
        match queue {
            RX => {
                self.metrics.rx_queue_event_count.inc();
                self.receive(active)
            }
            TX => {
                self.metrics.tx_queue_event_count.inc();
                self.transmit(active, BUDGET)
            }
            CONTROL => self.control(active),
            _ => Turn::Done,
        }
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.backend.fd()
    }

    fn backend_ready(&mut self, active: &mut Active<'_>) -> Turn {
        self.metrics.rx_tap_event_count.inc();
        let received = self.receive(active);
        match self.tx_waits {
            true => both(received, self.transmit(active, BUDGET)),
            false => received,
        }
    }

    /// Frames are sent and received within a call; what is taken beforehand goes back to the queue.
    fn drain(&mut self, active: &mut Active<'_>) {
        if let Some(queue) = queue(active.queues, RX) {
            self.buffers.give_back(queue);
        }
    }

    fn restored(&mut self, active: &mut Active<'_>) {
        if std::mem::take(&mut self.config_changed) {
            active.interrupt.config_changed();
        }
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
