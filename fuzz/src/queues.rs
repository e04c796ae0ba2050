//! A driver and one virtio device: the input is what the driver does.

use std::sync::Arc;

use vmgenie_devices::virtio::block::Block;
use vmgenie_devices::virtio::entropy::Entropy;
use vmgenie_devices::virtio::net::{Net, NetSettings};
use vmgenie_devices::virtio::vsock::Vsock;
use vmgenie_devices::virtio::{GuestMemory, Transport, TransportState, VirtioDevice, VirtioMmio};

use crate::Input;
use crate::backends::{Disk, Network, Programs, Shared};
use crate::driver::{self, Driver};
use crate::machine::{self, Nowhere};

/// The CID of the guest, and of the host.
const CID: u64 = 3;
const HOST_CID: u64 = 2;

/// A device of some kind.
pub(crate) enum Device {
    Block(Arc<VirtioMmio<Block<Disk>>>),
    Net(Arc<VirtioMmio<Net<Network>>>),
    Vsock(Arc<VirtioMmio<Vsock<Programs>>>),
    Entropy(Arc<VirtioMmio<Entropy>>),
}

fn on_transport<D: VirtioDevice>(device: D, memory: &GuestMemory) -> Arc<VirtioMmio<D>> {
    let wires = Box::new(Nowhere);
    Arc::new(VirtioMmio::new(device, memory.clone(), wires))
}

#[allow(
    clippy::expect_used,
    reason = "whatever was saved can be restored: that is what is tested"
)]
fn restored<D: VirtioDevice>(
    device: D,
    state: &TransportState,
    memory: &GuestMemory,
) -> Arc<VirtioMmio<D>> {
    let wires = Box::new(Nowhere);
    let device = VirtioMmio::from_state(device, state, memory.clone(), wires);
    Arc::new(device.expect("a state that was saved"))
}

#[allow(
    clippy::expect_used,
    reason = "whatever was saved can be restored: that is what is tested"
)]
impl Device {
    pub(crate) fn new(kind: u8, memory: &GuestMemory, shared: &Shared) -> Self {
        match kind % 4 {
            0 => {
                let disk = Disk::new(shared, kind & 0x80 != 0);
                Self::Block(on_transport(Block::new("fuzz", disk), memory))
            }
            1 => {
                let settings = NetSettings {
                    mac: [2, 0, 0, 0, 0, 1],
                    mtu: (kind & 0x80 != 0).then_some(1400),
                };
                let net = Net::new(settings, Network(shared.clone()));
                Self::Net(on_transport(net, memory))
            }
            2 => {
                let vsock = Vsock::new(CID, Programs::new(shared)).expect("a good CID");
                Self::Vsock(on_transport(vsock, memory))
            }
            _ => Self::Entropy(on_transport(Entropy::default(), memory)),
        }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        match self {
            Self::Block(device) => &**device,
            Self::Net(device) => &**device,
            Self::Vsock(device) => &**device,
            Self::Entropy(device) => &**device,
        }
    }

    /// Saves the device and restores it, as a clone has it.
    pub(crate) fn cloned(&self, memory: &GuestMemory, shared: &Shared) -> Self {
        let clone = self.restored(memory, shared);
        clone.transport().restored();
        clone
    }

    /// The same behind a shut gate.
    fn cloned_behind_a_gate(&self, memory: &GuestMemory, shared: &Shared) -> Self {
        let clone = self.restored(memory, shared);
        match &clone {
            Self::Net(device) => device.with_device(|net, _| net.shut_gate()),
            Self::Vsock(device) => device.with_device(|vsock, _| vsock.shut_gate()),
            Self::Block(_) | Self::Entropy(_) => {}
        }
        clone.transport().restored();
        clone
    }

    /// Opens that gate, if it is shut.
    fn open_gate(&self) {
        match self {
            Self::Net(device) => device.with_device(|net, active| net.open_gate(active)),
            Self::Vsock(device) => device.with_device(|vsock, active| {
                vsock.open_gate_to_guest(active);
                vsock.open_gate_to_host();
            }),
            Self::Block(_) | Self::Entropy(_) => {}
        }
    }

    fn restored(&self, memory: &GuestMemory, shared: &Shared) -> Self {
        self.transport().drain();
        let state = self.transport().save();
        match self {
            Self::Block(device) => {
                let (saved, read_only) =
                    device.with_device(|disk, _| (disk.save(), disk.store().read_only));
                let disk = Disk::new(shared, read_only);
                let disk = Block::from_state(&saved, disk).expect("a saved disk");
                Self::Block(restored(disk, &state, memory))
            }
            Self::Net(device) => {
                let saved = device.with_device(|net, _| net.save());
                let network = Network(shared.clone());
                let net = Net::from_state(&saved, None, network).expect("a saved network device");
                Self::Net(restored(net, &state, memory))
            }
            Self::Vsock(device) => {
                let saved = device.with_device(|vsock, _| vsock.save());
                let host = Programs::new(shared);
                let vsock = Vsock::from_state(&saved, host).expect("a saved vsock device");
                Self::Vsock(restored(vsock, &state, memory))
            }
            Self::Entropy(_) => Self::Entropy(restored(Entropy::default(), &state, memory)),
        }
    }

    /// Rings all doorbells.
    fn ring_all(&self) {
        for queue in 0..self.transport().queue_count() {
            driver::turns(|| self.transport().doorbell(queue));
        }
        driver::turns(|| self.transport().backend_ready());
    }
}

/// A driver does what the input says to a device of the kind that it names.
pub fn queues(data: &[u8]) {
    let mut input = Input(data);
    let memory = machine::memory();
    let shared = Shared::default();
    shared.get().room = 1 << 16;
    let mut device = Device::new(input.u8(), &memory, &shared);
    let mut driver = Driver::new(&memory);
    driver.start(device.transport(), &mut input);
    while !input.is_empty() {
        match input.u8() % 20 {
            0 => driver.any_descriptor(&mut input),
            1 => driver.offer(input.u8(), input.u16()),
            2 => driver.set_avail(input.u8(), input.u16()),
            3 => {
                let gpa = input.gpa();
                driver.store(gpa, input.short());
            }
            4 | 5 => {
                let queue = u16::from(input.u8() % 4);
                driver::turns(|| device.transport().doorbell(queue));
            }
            6 => driver::turns(|| device.transport().backend_ready()),
            7 | 8 => any_chain(&mut driver, &mut input),
            9 => disk_request(&mut driver, &mut input),
            10 => vsock_packet(&mut driver, &mut input),
            11 => device = device.cloned(&memory, &shared),
            12 => {
                let frame = input.short().to_vec();
                shared.get().incoming.push_back(frame);
            }
            13 => {
                let what = input.u8();
                let mut said = shared.get();
                said.held = what & 1 != 0;
                said.ended = what & 2 != 0;
                said.error = (what & 4 != 0).then_some(i32::from(what >> 3));
                said.room = usize::from(what) << 6;
            }
            14 => driver::write(device.transport(), input.u8().into(), input.u32()),
            15 => device.ring_all(),
            16 => vsock_connect(&mut driver, &shared, &mut input),
            18 => device = device.cloned_behind_a_gate(&memory, &shared),
            19 => device.open_gate(),
            _ => driver.start(device.transport(), &mut input),
        }
    }
    device.ring_all();
    device.cloned(&memory, &shared).ring_all();
}

/// Any pieces of memory, as a chain that keeps to the rules.
fn any_chain(driver: &mut Driver, input: &mut Input<'_>) {
    let queue = input.u8();
    let shape = input.u8();
    let pieces: Vec<_> = (0..=shape % 8)
        .map(|_| {
            let what = input.u8();
            (input.gpa(), input.len(), what & 1 != 0)
        })
        .collect();
    let indirect = (shape & 0x80 != 0).then(|| input.gpa());
    driver.send(queue, &pieces, indirect);
}

/// A request to a disk, with a header that makes sense.
fn disk_request(driver: &mut Driver, input: &mut Input<'_>) {
    const HEADER: u64 = 0x8000;
    let kinds = [0_u32, 1, 4, 8, 11, 13];
    let kind = kinds[usize::from(input.u8()) % kinds.len()];
    let sector = u64::from(input.u8());
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.store(HEADER, &header);
    let data = (input.gpa(), input.len());
    if kind > 8 {
        // A range: sector, number of sectors, flags.
        let mut range = [0; 16];
        range[0] = input.u8();
        range[8] = input.u8();
        range[12] = input.u8();
        driver.store(data.0, &range);
    }
    let writable = matches!(kind, 0 | 8);
    let pieces = [
        (HEADER, 16, false),
        (data.0, data.1, writable),
        (HEADER + 16, 1, true),
    ];
    driver.send(0, &pieces, None);
}

/// A packet whose header makes sense.
fn vsock_packet(driver: &mut Driver, input: &mut Input<'_>) {
    let (op, ports, flags) = (input.u8() % 9, input.u8(), input.u8());
    let credit = input.u32();
    let data = (input.gpa(), input.len());
    let mut header = [0; 44];
    header[..8].copy_from_slice(&CID.to_le_bytes());
    header[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
    header[16] = ports >> 4;
    header[20] = ports & 0xf;
    // Connections that the host has wanted have large ports.
    header[23] = if flags & 0x40 != 0 { 0x40 } else { 0 };
    header[24..28].copy_from_slice(&data.1.to_le_bytes());
    header[28] = 1 + u8::from(flags & 0x80 != 0);
    header[30] = op;
    header[32] = flags & 3;
    header[36..40].copy_from_slice(&credit.to_le_bytes());
    header[40..].copy_from_slice(&input.u32().to_le_bytes());
    let place = input.gpa();
    driver.store(place, &header);
    driver.send(1, &[(place, 44, false), (data.0, data.1, false)], None);
}

/// A program on the host that wants to connect, and buffers for the answer.
fn vsock_connect(driver: &mut Driver, shared: &Shared, input: &mut Input<'_>) {
    let says = format!("CONNECT {}\n{:?}", input.u8() & 0xf, input.short());
    shared.get().incoming.push_back(says.into_bytes());
    let gpa = input.gpa();
    driver.send(0, &[(gpa, 4096, true)], None);
    driver.send(2, &[(gpa, 8, true)], None);
}
