use super::*;
use crate::config::{Cid, VsockPeers};
use vmgenie_devices::virtio::QueueRegisters;
use vmgenie_devices::virtio::entropy::{self, EntropyState};
use vmgenie_devices::virtio::vsock::VsockState;
use vmgenie_snapshot::SnapshotId;

fn written(saved: &SavedVirtio) -> Vec<u8> {
    let mut writer = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
    saved.write(&mut writer).unwrap();
    writer.finish().unwrap()
}

fn read(bytes: Vec<u8>) -> SavedVirtio {
    let mut reader = StateReader::from_bytes(bytes).unwrap();
    let saved = SavedVirtio::read(&mut reader).unwrap();
    reader.finish().unwrap();
    saved
}

fn with_entropy() -> SavedVirtio {
    let mut saved = SavedVirtio::default();
    saved.config.set_entropy(EntropyConfig {});
    saved.entropy = Some(EntropyPart(EntropyState {}));
    saved.transports = vec![TransportPart(TransportState {
        status: 0xf,
        needs_reset: false,
        driver_features: 1 << 32,
        device_features_sel: 1,
        driver_features_sel: 1,
        queue_sel: 0,
        interrupt_status: 1,
        config_generation: 7,
        queues: Vec::new(),
    })];
    saved
}

#[test]
fn a_machine_without_devices_adds_nothing_to_its_snapshot() {
    let saved = SavedVirtio::default();
    let empty = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
    assert_eq!(written(&saved).len(), empty.finish().unwrap().len());
    let saved = read(written(&saved));
    assert!(saved.config.is_empty());
    assert_eq!(saved.contradiction(), None);
}

#[test]
fn what_was_saved_is_read() {
    let saved = with_entropy();
    let again = read(written(&saved));
    assert_eq!(again.config, saved.config);
    assert_eq!(again.transports(), saved.transports());
    assert!(again.entropy.is_some());
    assert_eq!(again.contradiction(), None);
}

/// The part as it was written before a vsock device knew whose programs its guest may reach.
#[derive(Serialize, Deserialize)]
struct OldDevicesPart(SavedDevicesV2);

impl Part for OldDevicesPart {
    const TAG: &'static str = DevicesPart::TAG;
    const VERSION: u16 = 2;
}

#[test]
fn devices_of_an_older_state_file_reach_whom_they_reached_then() {
    let vsock = |peers| VsockConfig {
        guest_cid: Cid::new(5).unwrap(),
        uds_path: "/v".into(),
        peers,
    };
    let mut saved = SavedVirtio::default();
    saved.config.set_vsock(vsock(VsockPeers::Own));
    saved.config.set_entropy(EntropyConfig {});
    let again = read(written(&saved)).config;
    assert_eq!(again, saved.config, "the choice is saved");
    // No drive, no interface; a vsock device with its CID and path; an entropy device.
    let old = [0, 0, 1, 5, 2, b'/', b'v', 1];
    let old = OldDevicesPart(postcard::from_bytes(&old).unwrap());
    let mut writer = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
    writer.part(&old).unwrap();
    let read = read(writer.finish().unwrap()).config;
    assert_eq!(read.vsock(), Some(&vsock(VsockPeers::Any)));
    assert!(read.entropy().is_some());
}

#[test]
fn a_state_that_no_device_can_have_saved_is_refused_without_any_device() {
    let ranges = [(vm_memory::GuestAddress(0), 1 << 20)];
    let memory = GuestMemory::from_ranges(&ranges).unwrap();
    let good = QueueRegisters {
        max_size: entropy::QUEUE_SIZES[0],
        size: 16,
        ready: true,
        next_avail: 0,
        next_used: 0,
        desc_table: 0,
        avail_ring: 0x1000,
        used_ring: 0x2000,
    };
    let mut saved = with_entropy();
    saved.transports[0].0.queues = vec![good];
    saved.check(&saved.config, &memory).unwrap();
    type Change = fn(&mut TransportState);
    let changes: [(&str, Change); 5] = [
        ("another size", |s| s.queues[0].max_size = 512),
        ("a ring outside of memory", |s| {
            s.queues[0].used_ring = 2 << 20
        }),
        ("no queue", |s| s.queues.clear()),
        ("features of another device", |s| s.driver_features |= 1),
        ("no status", |s| s.status = 4),
    ];
    for (what, change) in changes {
        let mut saved = saved.clone();
        change(&mut saved.transports[0].0);
        let refused = saved.check(&saved.config, &memory);
        assert!(
            matches!(refused, Err(VirtioError::Restore { slot: 0, .. })),
            "{what}"
        );
    }
    let vsock = VsockState {
        guest_cid: 2,
        last_port: 0,
        unanswered: Vec::new(),
    };
    saved.vsock = Some(VsockPart(vsock));
    saved.config.set_vsock(VsockConfig {
        guest_cid: Cid::new(3).unwrap(),
        uds_path: "/v".into(),
        peers: VsockPeers::Any,
    });
    let refused = saved.check(&saved.config, &memory);
    assert!(matches!(refused, Err(VirtioError::State { .. })));
}

#[test]
fn states_without_a_device_and_devices_without_a_state_are_contradictions() {
    type Change = fn(&mut SavedVirtio);
    let changes: [(&str, Change); 5] = [
        ("a vsock device too many", |s| {
            s.vsock = Some(VsockPart(VsockState {
                guest_cid: 3,
                last_port: 0,
                unanswered: Vec::new(),
            }));
        }),
        ("no transport", |s| s.transports.clear()),
        ("a transport too many", |s| {
            s.transports.push(s.transports[0].clone())
        }),
        ("no entropy", |s| s.entropy = None),
        ("no device", |s| s.config = DevicesConfig::default()),
    ];
    for (what, change) in changes {
        let mut saved = with_entropy();
        change(&mut saved);
        assert!(saved.contradiction().is_some(), "{what}");
    }
}
