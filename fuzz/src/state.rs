//! State files: any bytes, any payload under a good checksum, and a good file of which parts have been changed.

use std::sync::LazyLock;

use serde::Serialize;
use vmgenie_devices::fw_cfg::{FwCfg, InstanceData};
use vmgenie_devices::pm::{PowerManagement, PowerManagementState};
use vmgenie_devices::serial::{SerialPort, SerialPortState};
use vmgenie_devices::sgen::SysGen;
use vmgenie_devices::virtio::block::{Block, BlockState};
use vmgenie_devices::virtio::entropy::Entropy;
use vmgenie_devices::virtio::net::{Net, NetState};
use vmgenie_devices::virtio::vsock::{Vsock, VsockState};
use vmgenie_devices::virtio::{
    QueueRegisters, Transport, TransportState, VirtioDevice, VirtioMmio,
};
use vmgenie_devices::vmgenid::VmGenIdState;
use vmgenie_devices::{Persist, Restore, VmClock};
use vmgenie_machine::SavedMachine;
use vmgenie_machine::config::{
    Cid, DeviceId, DriveConfig, InterfaceName, NetConfig, VsockConfig, VsockPeers,
};
use vmgenie_machine::layout;
use vmgenie_machine::memory::GuestMemory;
use vmgenie_machine::state::{MachineState, SysGenPart, VmGenIdPart};
use vmgenie_machine::virtio::drive_files::DriveFileState;
use vmgenie_machine::virtio::kinds::{DevicesConfig, EntropyConfig};
use vmgenie_machine::virtio::kinds::{DevicesPart, SavedDevices};
use vmgenie_snapshot::{Header, Part, StateReader};

use crate::Input;
use crate::backends::{Disk, Network, Programs, Shared};
use crate::driver;
use crate::machine::Nowhere;

/// MiB of guest memory in the good file.
const MEMORY_MIB: u64 = 32;
/// The most memory of a changed file for which there shall be some here, in bytes.
const MAX_MEMORY: u64 = 64 << 20;

/// A part of a state file.
#[derive(Debug, Clone)]
struct Record {
    tag: &'static str,
    index: Option<u32>,
    version: u16,
    body: Vec<u8>,
}

#[allow(clippy::expect_used, reason = "our own states")]
fn encoded(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("a state")
}

fn once(tag: &'static str, body: &impl Serialize) -> Record {
    Record {
        tag,
        index: None,
        version: 1,
        body: encoded(body),
    }
}

/// The devices of the good file: two drives, an interface, vsock, entropy.
#[allow(clippy::expect_used, reason = "constants")]
fn devices() -> DevicesConfig {
    let id = |text| DeviceId::new(text).expect("a name");
    let mut devices = DevicesConfig::default();
    for (name, read_only) in [("disk0", false), ("disk1", true)] {
        let drive = DriveConfig {
            id: id(name),
            path: format!("/{name}").into(),
            overlay: None,
            read_only,
            is_root: false,
            cache: Default::default(),
            io_engine: Default::default(),
            partuuid: None,
        };
        devices.put_drive(drive).expect("a drive");
    }
    let net = NetConfig {
        id: id("net0"),
        host_dev_name: InterfaceName::new("tap0").expect("a name"),
        guest_mac: None,
        mtu: None,
    };
    devices.put_net(net).expect("an interface");
    devices.set_vsock(VsockConfig {
        guest_cid: Cid::new(3).expect("a CID"),
        uds_path: "/vsock".into(),
        peers: VsockPeers::Own,
    });
    devices.set_entropy(EntropyConfig {});
    devices
}

/// A driver that uses the device, with queues that lie in memory one behind the other.
fn transport(slot: u64, device: &impl VirtioDevice) -> TransportState {
    let queues = (0..).zip(device.queue_sizes()).map(|(queue, &max_size)| {
        let base = 0x10_0000 + (slot * 4 + queue) * 0x1_0000;
        QueueRegisters {
            max_size,
            size: max_size,
            ready: true,
            next_avail: 0,
            next_used: 0,
            desc_table: base,
            avail_ring: base + 0x4000,
            used_ring: base + 0x8000,
        }
    });
    TransportState {
        status: 0xf,
        needs_reset: false,
        driver_features: device.features() | 1 << 32,
        device_features_sel: 0,
        driver_features_sel: 0,
        queue_sel: 0,
        interrupt_status: 0,
        config_generation: 0,
        queues: queues.collect(),
    }
}

/// A good file in its parts.
#[allow(clippy::expect_used, reason = "constants")]
fn records() -> Vec<Record> {
    let bytes = MEMORY_MIB << 20;
    let memory = memory(bytes);
    let shared = Shared::default();
    let disk = |read_only| Block::new("disk", Disk::new(&shared, read_only));
    let disks = [disk(false), disk(true)];
    let state = NetState {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        features: 0,
        link: true,
        announce: false,
    };
    let net = Net::from_state(&state, None, Network(shared.clone())).expect("an interface");
    let vsock = Vsock::new(3, Programs::new(&shared)).expect("a CID");
    let transports = [
        transport(0, &disks[0]),
        transport(1, &disks[1]),
        transport(2, &net),
        transport(3, &vsock),
        transport(4, &Entropy::default()),
    ];
    let net_state = NetState {
        features: transports[2].driver_features,
        ..state
    };
    let machine = MachineState {
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        smt: false,
    };
    // The same each time, as hardly a part with IDs and times is.
    let vmgenid = VmGenIdState {
        gpa: layout::generation_id(bytes).0,
        id: [7; 16],
        changes: 2,
        changed_at_secs: 1_700_000_000,
        changed_at_nanos: 5,
        ancestors: vec![[5; 16], [6; 16]],
    };
    let sysgen = SysGen::new(&memory, layout::generation_counter(bytes).0, 0).expect("a counter");
    let vmclock = VmClock::new(&memory, layout::vmclock(bytes).0).expect("a clock");
    let mut records = vec![
        Record {
            version: MachineState::VERSION,
            ..once("machine", &machine)
        },
        Record {
            index: Some(0),
            ..once("vcpu", &vcpu())
        },
        once("platform", &platform()),
        once("pm", &PowerManagementState::default()),
        once("com1", &SerialPort::new(Nowhere, Vec::new()).save()),
        Record {
            version: VmGenIdPart::VERSION,
            ..once("vmgenid", &vmgenid)
        },
        Record {
            version: SysGenPart::VERSION,
            ..once("sgen", &sysgen.save())
        },
        once("vmclock", &vmclock.save()),
        once("fw-cfg", &FwCfg::new(InstanceData::default()).save()),
        Record {
            version: DevicesPart::VERSION,
            ..once("virtio", &SavedDevices::from(&devices()))
        },
    ];
    let several = |tag, bodies: Vec<Vec<u8>>| {
        let record = move |(index, body)| Record {
            tag,
            index: Some(index),
            version: 1,
            body,
        };
        (0..).zip(bodies).map(record).collect::<Vec<_>>()
    };
    records.extend(several(
        "virtio-mmio",
        transports.iter().map(encoded).collect(),
    ));
    let disks = disks.iter().map(|disk| encoded(&disk.save()));
    records.extend(several("virtio-block", disks.collect()));
    let files = vec![encoded(&DriveFileState::default()); 2];
    records.extend(several("virtio-drive-file", files));
    records.extend(several("virtio-net", vec![encoded(&net_state)]));
    records.push(once("virtio-vsock", &vsock.save()));
    records.push(once("virtio-entropy", &()));
    records
}

fn vcpu() -> vmgenie_machine::state::VcpuState {
    vmgenie_machine::state::VcpuState {
        cpuid: Vec::new(),
        msrs: Vec::new(),
        regs: Default::default(),
        sregs: Default::default(),
        pdptrs: None,
        xsave: vec![0; 64],
        xcrs: Default::default(),
        debug_regs: Default::default(),
        lapic: Default::default(),
        events: Default::default(),
        mp_state: Default::default(),
        tsc_khz: 0,
        shadow_stack_pointer: None,
    }
}

fn platform() -> vmgenie_machine::state::PlatformState {
    vmgenie_machine::state::PlatformState {
        irqchips: Default::default(),
        clock: Default::default(),
        pit: None,
    }
}

#[allow(clippy::expect_used, reason = "a fuzzer without memory has to end")]
fn memory(bytes: u64) -> GuestMemory {
    let ranges: Vec<_> = layout::ram_ranges(bytes)
        .iter()
        .map(|range| (range.start, range.len as usize))
        .collect();
    GuestMemory::from_ranges(&ranges).expect("guest memory")
}

/// The file that consists of these parts.
#[allow(clippy::expect_used, reason = "our own states")]
fn file(records: &[Record]) -> Vec<u8> {
    let mut payload = encoded(&(records.len() as u32));
    for record in records {
        let Record {
            tag,
            index,
            version,
            body,
        } = record;
        payload.extend(encoded(&(tag, index, version, body)));
    }
    sealed(&payload)
}

#[allow(clippy::expect_used, reason = "the host's random numbers")]
fn sealed(payload: &[u8]) -> Vec<u8> {
    let id = vmgenie_snapshot::SnapshotId::generate().expect("an ID");
    Header::seal(id, MEMORY_MIB << 20, payload)
}

/// Does to the parts what the input says.
fn change(records: &mut Vec<Record>, input: &mut Input<'_>) {
    while !input.is_empty() && !records.is_empty() {
        let (what, which) = (input.u8(), usize::from(input.u8()) % records.len());
        let count = records.len();
        let record = &mut records[which];
        match what % 8 {
            0 => record.body = input.short().to_vec(),
            1 => record.version = input.u16(),
            2 => record.index = Some(input.u32()),
            3 => drop(records.remove(which)),
            4 => {
                let again = record.clone();
                // Enough to be twice, and no more than a file may have.
                (count < 64).then(|| records.push(again));
            }
            5 => record.body.truncate(input.u16().into()),
            _ => {
                let at = usize::from(input.u16()) % (record.body.len() + 1);
                let bytes = input.short();
                let end = record.body.len().min(at + bytes.len());
                record.body.splice(at..end, bytes.iter().copied());
            }
        }
    }
}

/// Reads the file; what is taken becomes devices, whose doorbells ring.
fn read(bytes: Vec<u8>, records: &[Record]) {
    let Ok(saved) = StateReader::from_bytes(bytes).map(SavedMachine::read) else {
        return;
    };
    let Ok(saved) = saved.inspect_err(|error| assert!(!error.to_string().is_empty())) else {
        return;
    };
    if saved.machine().memory_bytes() > MAX_MEMORY {
        return;
    }
    let memory = memory(saved.machine().memory_bytes());
    if saved.check_virtio(saved.devices(), &memory).is_ok() {
        restore(records, saved.devices(), &memory);
    }
}

fn bodies<'a>(records: &'a [Record], tag: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let with_tag = records.iter().filter(move |record| record.tag == tag);
    with_tag.map(|record| &record.body[..])
}

/// Devices out of states that were checked.
#[allow(
    clippy::expect_used,
    reason = "what was checked can be restored: that is what is tested"
)]
fn restore(records: &[Record], devices: &DevicesConfig, memory: &GuestMemory) {
    fn decoded<T: serde::de::DeserializeOwned>(body: &[u8]) -> T {
        postcard::from_bytes(body).expect("a state that was decoded before")
    }
    let shared = Shared::default();
    shared.get().room = 1 << 16;
    let transports: Vec<TransportState> = bodies(records, "virtio-mmio").map(decoded).collect();
    let mut transports = transports.iter();
    for (body, config) in bodies(records, "virtio-block").zip(devices.drives()) {
        let disk = Disk::new(&shared, config.read_only);
        let disk = Block::from_state(&decoded::<BlockState>(body), disk).expect("a checked disk");
        ring(disk, transports.next(), memory);
    }
    for body in bodies(records, "virtio-net") {
        let state = decoded::<NetState>(body);
        let net = Net::from_state(&state, None, Network(shared.clone()));
        ring(net.expect("a checked interface"), transports.next(), memory);
    }
    for body in bodies(records, "virtio-vsock") {
        let vsock = Vsock::from_state(&decoded::<VsockState>(body), Programs::new(&shared));
        ring(
            vsock.expect("a checked vsock device"),
            transports.next(),
            memory,
        );
    }
    for body in bodies(records, "pm") {
        let mut pm = PowerManagement::new(Nowhere, || 1 << 40, Box::new(|_| {}));
        if pm.restore(&decoded::<PowerManagementState>(body)).is_ok() {
            let _ = (pm.sync_line(), pm.tick(), pm.next_timer_edge());
        }
    }
    for body in bodies(records, "com1") {
        let mut serial = SerialPort::new(Nowhere, Vec::new());
        if serial.restore(&decoded::<SerialPortState>(body)).is_ok() {
            let _ = (serial.sync_line(), serial.enqueue(b"input"), serial.save());
        }
    }
}

#[allow(
    clippy::expect_used,
    reason = "what was checked can be restored: that is what is tested"
)]
fn ring<D: VirtioDevice>(device: D, state: Option<&TransportState>, memory: &GuestMemory) {
    let state = state.expect("as many transports as devices");
    let device = VirtioMmio::from_state(device, state, memory.clone(), Box::new(Nowhere));
    let device = device.expect("a checked transport");
    device.restored();
    for queue in 0..device.queue_count() {
        driver::turns(|| device.doorbell(queue));
    }
    driver::turns(|| device.backend_ready());
    device.drain();
    device.save();
}

/// A state file. The first byte says what the others are.
pub fn state(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() {
        0 => read(input.0.to_vec(), &[]),
        1 => read(sealed(input.0), &[]),
        _ => {
            // Made once: an input would take ten times as long.
            static GOOD: LazyLock<Vec<Record>> = LazyLock::new(records);
            let mut records = GOOD.clone();
            change(&mut records, &mut input);
            read(file(&records), &records);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_good_file_is_good() {
        let records = records();
        let saved = SavedMachine::read(StateReader::from_bytes(file(&records)).unwrap()).unwrap();
        let memory = memory(MEMORY_MIB << 20);
        saved.check_virtio(saved.devices(), &memory).unwrap();
        restore(&records, saved.devices(), &memory);
    }
}

#[cfg(test)]
#[path = "golden_test.rs"]
mod golden_test;
