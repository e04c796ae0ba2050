use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MTU,
};

use super::testing::{Bench, DATA, TestNetwork};
use super::*;

fn settings(mtu: Option<u16>) -> NetSettings {
    NetSettings {
        mac: [2, 0, 0, 0, 0, 1],
        mtu,
    }
}

fn config(device: &impl VirtioDevice) -> [u8; 12] {
    let mut data = [0; 12];
    device.read_config(0, &mut data);
    data
}

#[test]
fn the_configuration_tells_address_link_and_mtu() {
    let device = Net::new(settings(Some(1400)), TestNetwork::default());
    assert_eq!(config(&device), [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0x78, 5]);
    assert_ne!(device.features() & 1 << VIRTIO_NET_F_MTU, 0);
    let device = Net::new(settings(None), TestNetwork::default());
    assert_eq!(config(&device)[10..], [0, 0]);
    assert_eq!(device.features() & 1 << VIRTIO_NET_F_MTU, 0);
}

#[test]
fn a_random_address_is_a_station_of_nobody_s() {
    let [one, other] = [(), ()].map(|()| random_mac().unwrap());
    assert_ne!(one, other);
    assert_eq!(one[0] & 0b11, 0b10);
}

#[test]
fn offloads_are_offered_as_far_as_the_network_has_them() {
    let mut network = TestNetwork::default();
    network.can.ufo = false;
    let device = Net::new(settings(None), network);
    assert_eq!(device.features() & 1 << VIRTIO_NET_F_HOST_UFO, 0);
    assert_ne!(device.features() & 1 << VIRTIO_NET_F_GUEST_TSO4, 0);
}

#[test]
fn a_feature_is_accepted_only_with_those_that_it_needs() {
    let device = Net::new(settings(None), TestNetwork::default());
    let all = device.features();
    assert!(device.accepts(all));
    assert!(!device.accepts(all & !(1 << VIRTIO_NET_F_GUEST_CSUM)));
    assert!(!device.accepts(1 << VIRTIO_NET_F_HOST_UFO));
    assert!(!device.accepts(1 << VIRTIO_NET_F_GUEST_ANNOUNCE));
    assert!(device.accepts(0));
}

#[test]
fn the_network_gives_the_guest_what_it_takes() {
    let mut bench = Bench::new(8, 1 << VIRTIO_NET_F_GUEST_TSO4);
    let expected = Offloads {
        tso4: false,
        ..Offloads::ALL
    };
    assert_eq!(bench.network().set, Some(expected));
}

#[test]
fn a_restored_device_is_the_saved_one_and_asks_to_be_announced() {
    let bench = Bench::new(8, 0);
    let state = bench.device.save();
    let restored = Net::from_state(&state, None, TestNetwork::default()).unwrap();
    assert_eq!(restored.settings(), bench.device.settings());
    assert_eq!(restored.backend.set, Some(Offloads::ALL));
    let mut bench = Bench {
        device: restored,
        ..bench
    };
    assert_eq!(config(&bench.device)[6], 0b11);
    bench.call(|device, active| device.restored(active));
    assert_eq!(bench.interrupts(), [0, 1, 0]);

    // Class 3, command 0, and one byte for the answer.
    bench.write(DATA, &[3, 0, 0xee]);
    command(&bench);
    let _ = bench.doorbell(CONTROL);
    assert_eq!(bench.bytes(DATA + 2, 1), [0]);
    assert_eq!(bench.used(CONTROL, 0), [(0, 1)]);
    assert_eq!(config(&bench.device)[6], 0b01);
}

fn command(bench: &Bench) {
    let table = bench.table(CONTROL);
    bench.descriptor(table, 0, (DATA, 2, super::testing::NEXT, 1));
    bench.descriptor(table, 1, (DATA + 2, 1, super::testing::WRITE, 0));
    bench.offer(CONTROL, 0);
}

#[test]
fn any_other_command_is_refused() {
    let mut bench = Bench::new(8, 0);
    bench.write(DATA, &[1, 0, 0xee]);
    command(&bench);
    let _ = bench.doorbell(CONTROL);
    assert_eq!(bench.bytes(DATA + 2, 1), [1]);
    assert_eq!(bench.interrupts(), [1, 0, 0]);
}

#[test]
fn a_driver_is_told_to_announce_itself_as_often_as_is_asked_if_it_can_and_has_a_link() {
    let announced = |without: u64, link: bool| {
        let mut bench = Bench::new(8, without);
        bench.call(|device, active| device.set_link(link, Some(active)));
        bench.interrupts();
        let mut told = Vec::new();
        for _ in 0..2 {
            bench.call(|device, active| device.announce(Some(active)));
            told.push((config(&bench.device)[6] & 0b10 != 0, bench.interrupts()));
            bench.device.announce = false;
        }
        told
    };
    assert_eq!(announced(0, true), [(true, [0, 1, 0]); 2]);
    assert_eq!(announced(0, false), [(false, [0, 0, 0]); 2]);
    let without = 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;
    assert_eq!(announced(without, true), [(false, [0, 0, 0]); 2]);
}

#[test]
fn a_clone_may_have_another_address() {
    let bench = Bench::new(8, 1 << VIRTIO_NET_F_GUEST_ANNOUNCE);
    let mac = [2, 0, 0, 0, 0, 2];
    let state = bench.device.save();
    let device = Net::from_state(&state, Some(mac), TestNetwork::default()).unwrap();
    assert_eq!(config(&device)[..7], [2, 0, 0, 0, 0, 2, 1]);
    let mut bench = Bench { device, ..bench };
    bench.call(|device, active| device.restored(active));
    assert_eq!(bench.interrupts(), [0, 1, 0]);
}

#[test]
fn a_device_that_no_driver_used_is_restored_in_silence() {
    let device = Net::new(settings(None), TestNetwork::default());
    let mut device = Net::from_state(&device.save(), None, TestNetwork::default()).unwrap();
    assert_eq!(config(&device)[6], 0b01);
    assert_eq!(device.backend.set, None);
    assert!(!device.config_changed);
    device.set_link(false, None);
    assert_eq!(config(&device)[6], 0);
}

#[test]
fn a_state_that_no_device_can_have_is_refused() {
    let good = Bench::new(8, 0).device.save();
    let refused = |state: NetState, can: Offloads| {
        let network = TestNetwork {
            can,
            ..TestNetwork::default()
        };
        Net::from_state(&state, None, network).unwrap_err()
    };
    let state = NetState {
        mtu: Some(67),
        ..good.clone()
    };
    assert!(matches!(
        refused(state, Offloads::ALL),
        NetRestoreError::Mtu(67)
    ));
    let state = NetState {
        features: good.features | 1 << 2,
        ..good.clone()
    };
    assert!(matches!(
        refused(state, Offloads::ALL),
        NetRestoreError::Features { .. }
    ));
    let state = NetState {
        features: good.features & !(1 << VIRTIO_NET_F_CTRL_VQ),
        ..good.clone()
    };
    assert!(matches!(
        refused(state, Offloads::ALL),
        NetRestoreError::Features { .. }
    ));
    // The guest relies on what this network cannot do.
    assert!(matches!(
        refused(good, Offloads::default()),
        NetRestoreError::Features { .. }
    ));
}

proptest! {
    #[test]
    fn the_configuration_can_be_read_anywhere(offset in any::<u64>(), len in 0..20_usize) {
        let device = Net::new(settings(Some(9000)), TestNetwork::default());
        let whole = config(&device);
        for offset in [offset, offset % 16] {
            let mut data = vec![0; len];
            device.read_config(offset, &mut data);
            for (n, byte) in data.iter().enumerate() {
                let at = offset.saturating_add(n as u64);
                let expected = usize::try_from(at).ok().and_then(|at| whole.get(at));
                prop_assert_eq!(*byte, *expected.unwrap_or(&0));
            }
        }
    }
}

#[test]
fn a_command_in_a_chain_longer_than_the_queue_is_not_looked_at() {
    let mut bench = Bench::new(8, 0);
    bench.write(DATA, &[3, 0, 0xee]);
    let table = DATA + 0x100;
    for index in 0..2000 {
        let flags = super::testing::NEXT;
        bench.descriptor(table, index, (DATA, 1, flags, index + 1));
    }
    bench.descriptor(table, 2000, (DATA + 2, 1, super::testing::WRITE, 0));
    let indirect = (table, 2001 * 16, super::testing::INDIRECT, 0);
    bench.descriptor(bench.table(CONTROL), 0, indirect);
    bench.offer(CONTROL, 0);
    let _ = bench.doorbell(CONTROL);
    assert_eq!(bench.used(CONTROL, 0), [(0, 0)]);
    assert_eq!(bench.bytes(DATA + 2, 1), [0xee]);
}
