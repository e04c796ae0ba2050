//! Tests of the MMIO transport, register by register, with a device that records what is done to it.

use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};

use super::super::testing::{Harness, MEMORY_LEN, TestWires, memory};
use super::super::{ActivateError, F_INDIRECT_DESC};
use super::*;

const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
/// A feature that this device will not have together with `F_INDIRECT_DESC` missing.
const NEEDS_INDIRECT: u64 = 1 << 3;

/// Records what is done to it.
#[derive(Debug, Default)]
struct Recorder {
    config: [u8; 8],
    activations: u32,
    resets: u32,
    doorbells: Vec<u16>,
    backend_calls: u32,
    drains: u32,
    restores: u32,
    refuse_activation: bool,
}

impl VirtioDevice for Recorder {
    fn device_id(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC | NEEDS_INDIRECT
    }

    fn accepts(&self, features: u64) -> bool {
        features & NEEDS_INDIRECT == 0 || features & F_INDIRECT_DESC != 0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let own = usize::try_from(at).ok().and_then(|at| self.config.get(at));
            *byte = own.copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let own = usize::try_from(at)
                .ok()
                .and_then(|at| self.config.get_mut(at));
            if let Some(own) = own {
                *own = *byte;
            }
        }
    }

    fn activate(&mut self, _active: &mut Active<'_>) -> Result<(), ActivateError> {
        self.activations += 1;
        if self.refuse_activation {
            return Err(ActivateError("the test wants it so".to_owned()));
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.resets += 1;
    }

    fn queue_ready(&mut self, queue: u16, active: &mut Active<'_>) -> Turn {
        assert!(active.queues[usize::from(queue)].ready());
        self.doorbells.push(queue);
        Turn::Done
    }

    fn backend_ready(&mut self, _active: &mut Active<'_>) -> Turn {
        self.backend_calls += 1;
        Turn::Done
    }

    fn drain(&mut self, _active: &mut Active<'_>) {
        self.drains += 1;
    }

    fn restored(&mut self, _active: &mut Active<'_>) {
        self.restores += 1;
    }
}

fn recorder() -> Harness<Recorder> {
    Harness::new(Recorder::default())
}

fn recorded<T>(harness: &Harness<Recorder>, look: impl FnOnce(&Recorder) -> T) -> T {
    harness.transport.with_device(|device, _| look(device))
}

#[test]
fn a_driver_finds_a_virtio_device_of_version_2() {
    let device = recorder();
    assert_eq!(device.read(0x000).to_le_bytes(), *b"virt");
    assert_eq!(device.read(0x004), 2);
    assert_eq!(device.read(0x008), 4);
    assert_eq!(device.read(0x00c).to_le_bytes(), *b"vmge");
}

#[test]
fn the_features_are_read_in_two_halves_and_version_1_is_among_them() {
    let device = recorder();
    device.write(0x014, 1);
    assert_eq!(device.read(0x010), 1);
    device.write(0x014, 0);
    let low = (F_EVENT_IDX | F_INDIRECT_DESC | NEEDS_INDIRECT) as u32;
    assert_eq!(device.read(0x010), low);
    device.write(0x014, 2);
    assert_eq!(device.read(0x010), 0);
}

#[test]
fn a_driver_gets_through_to_an_active_device_with_event_indices() {
    let mut device = recorder();
    device.start(0);
    assert_eq!(device.status(), LIVE);
    assert_eq!(recorded(&device, |d| d.activations), 1);
    // The event loop was asked for a first look at everything.
    assert_eq!(recorded(&device, |d| d.doorbells.clone()), [0, 1]);
    assert_eq!(recorded(&device, |d| d.backend_calls), 1);
    device.transport.with_device(|_, active| {
        let active = active.unwrap();
        assert_eq!(active.features, recorder_features());
        assert!(active.queues.iter().all(QueueT::event_idx_enabled));
    });
    assert_eq!(device.wires.interrupts(), 0);
}

fn recorder_features() -> u64 {
    Recorder::default().features() | F_VERSION_1
}

#[test]
fn a_driver_without_event_indices_gets_queues_without_them() {
    let device = Harness::active(Recorder::default(), F_EVENT_IDX);
    device.transport.with_device(|_, active| {
        let active = active.unwrap();
        assert!(!active.queues.iter().any(QueueT::event_idx_enabled));
    });
}

#[test]
fn features_that_do_not_fit_are_not_ok() {
    for (what, without) in [
        ("no version 1", F_VERSION_1),
        ("the device refuses the combination", F_INDIRECT_DESC),
    ] {
        let device = recorder();
        device.negotiate(without);
        assert_eq!(device.status(), ACKNOWLEDGE | DRIVER, "{what}");
        device.write(0x070, LIVE);
        assert_eq!(device.status() & DRIVER_OK, 0, "{what}");
        assert_eq!(recorded(&device, |d| d.activations), 0, "{what}");
    }
    let device = recorder();
    device.write(0x070, ACKNOWLEDGE | DRIVER);
    device.write(0x024, 1);
    device.write(0x020, 1 | 2);
    device.write(0x070, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(
        device.status(),
        ACKNOWLEDGE | DRIVER,
        "a feature that is not on offer"
    );
}

#[test]
fn features_are_settled_by_features_ok() {
    let device = recorder();
    device.write(0x020, u32::MAX);
    device.negotiate(0);
    device.write(0x024, 0);
    device.write(0x020, 0);
    for queue in 0..2 {
        device.set_up_queue(queue);
    }
    device.write(0x070, LIVE);
    device.transport.with_device(|_, active| {
        assert_eq!(active.unwrap().features, recorder_features());
    });
}

#[test]
fn a_status_bit_is_taken_back_by_a_reset_only() {
    let device = recorder();
    device.write(0x070, ACKNOWLEDGE | DRIVER);
    device.write(0x070, ACKNOWLEDGE);
    assert_eq!(device.status(), ACKNOWLEDGE | DRIVER);
    device.write(0x070, 0);
    assert_eq!(device.status(), 0);
    // A driver cannot say of a device that it needs a reset, nor set what nobody has defined.
    device.write(0x070, ACKNOWLEDGE | NEEDS_RESET | 0x30 | 0x100);
    assert_eq!(device.status(), ACKNOWLEDGE);
}

#[test]
fn a_reset_forgets_everything() {
    let mut device = recorder();
    device.start(0);
    device
        .transport
        .with_device(|_, active| active.unwrap().interrupt.used());
    assert_eq!(device.read(0x060), 1);
    // The driver has begun with a reset as well.
    assert_eq!(recorded(&device, |d| d.resets), 1);
    device.write(0x070, 0);
    assert_eq!(device.status(), 0);
    assert_eq!(device.read(0x060), 0);
    assert_eq!(recorded(&device, |d| d.resets), 2);
    for queue in 0..2 {
        device.write(0x030, queue);
        assert_eq!(device.read(0x044), 0);
    }
    // Its doorbells and its backend are nobody's business until the next driver.
    let before = recorded(&device, |d| (d.doorbells.len(), d.backend_calls));
    device.doorbell(0);
    device.backend_ready();
    let after = recorded(&device, |d| (d.doorbells.len(), d.backend_calls));
    assert_eq!(before, after);
    device.start(0);
    assert_eq!(device.status(), LIVE);
    assert_eq!(recorded(&device, |d| d.activations), 2);
}

#[test]
fn each_queue_tells_its_largest_size() {
    let device = recorder();
    for (queue, max) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        device.write(0x030, queue);
        assert_eq!(device.read(0x034), max);
        assert_eq!(device.read(0x044), 0);
    }
}

#[test]
fn a_queue_is_set_up_between_features_ok_and_driver_ok() {
    let device = recorder();
    device.set_up_queue(0);
    assert_eq!(device.read(0x044), 0);
    device.negotiate(0);
    device.set_up_queue(0);
    assert_eq!(device.read(0x044), 1);
    device.write(0x070, LIVE);
    device.set_up_queue(1);
    assert_eq!(device.read(0x044), 0);
    device.write(0x030, 0);
    device.write(0x044, 0);
    assert_eq!(device.read(0x044), 1);
    // The queue that was never set up has no doorbell.
    device.doorbell(0);
    device.doorbell(1);
    assert_eq!(recorded(&device, |d| d.doorbells.clone()), [0]);
}

#[test]
fn a_queue_that_is_ready_stays_where_it_is() {
    let device = recorder();
    device.negotiate(0);
    device.set_up_queue(0);
    let before = device.transport.save();
    device.write(0x038, 2);
    device.write(0x080, 0x5000);
    assert_eq!(device.transport.save(), before);
}

#[test]
fn a_driver_that_sets_up_a_queue_wrongly_has_to_reset_the_device() {
    for (offset, value) in [
        (0x038, 0),
        (0x038, 3),
        (0x038, 32),
        (0x038, 0x1_0008),
        (0x080, 8),
        (0x090, 1),
        (0x0a0, 2),
    ] {
        let device = recorder();
        device.negotiate(0);
        device.write(0x030, 0);
        device.write(offset, value);
        assert_ne!(device.status() & NEEDS_RESET, 0, "{offset:#x} {value:#x}");
        device.set_up_queue(0);
        device.write(0x070, LIVE);
        device.doorbell(0);
        assert_eq!(recorded(&device, |d| d.doorbells.len()), 0);
        device.write(0x070, 0);
        assert_eq!(device.status(), 0);
    }
}

#[test]
fn a_queue_outside_of_memory_is_not_activated() {
    for (low, high) in [
        (MEMORY_LEN as u32 - 0x10, 0),
        (0x30_0000, 0),
        (0xffff_fff0, u32::MAX),
        (0, 0x8000_0000),
    ] {
        for register in [0x080, 0x090, 0x0a0] {
            let device = recorder();
            device.negotiate(0);
            device.write(0x030, 0);
            device.write(register, low);
            device.write(register + 4, high);
            device.write(0x044, 1);
            device.write(0x070, LIVE);
            assert_eq!(device.status(), LIVE | NEEDS_RESET, "{low:#x} {high:#x}");
            assert_eq!(device.take_interrupt(), 2);
            assert_eq!(recorded(&device, |d| d.activations), 0);
        }
    }
}

#[test]
fn a_device_that_cannot_be_activated_needs_a_reset() {
    let mut device = Harness::new(Recorder {
        refuse_activation: true,
        ..Default::default()
    });
    device.start(0);
    assert_eq!(device.status(), LIVE | NEEDS_RESET);
    assert_eq!(device.take_interrupt(), 2);
    assert_eq!(recorded(&device, |d| d.doorbells.len()), 0);
}

#[test]
fn a_driver_that_tries_again_and_again_does_not_fill_the_log() {
    let mut device = Harness::new(Recorder {
        refuse_activation: true,
        ..Default::default()
    });
    let begun = Instant::now();
    for _ in 0..100 {
        device.write(0x070, 0);
        device.start(0);
    }
    assert_eq!(recorded(&device, |d| d.activations), 100);
    let silent = device
        .transport
        .inner
        .lock()
        .complaints
        .allows(begun + Duration::from_secs(3600));
    // One a second.
    let told = 100 - silent.unwrap();
    assert!(
        (1..=1 + begun.elapsed().as_secs()).contains(&told),
        "{told}"
    );
}

#[test]
fn a_driver_that_has_given_up_is_left_alone() {
    let mut device = recorder();
    device.start(0);
    let rings = recorded(&device, |d| d.doorbells.len());
    device.write(0x070, LIVE | FAILED);
    device.doorbell(0);
    assert_eq!(recorded(&device, |d| d.doorbells.len()), rings);
}

#[test]
fn interrupts_are_told_apart_and_acknowledged() {
    let mut device = recorder();
    device.start(0);
    let generation = device.read(0x0fc);
    device.transport.with_device(|_, active| {
        let interrupt = active.unwrap().interrupt;
        interrupt.used();
        interrupt.config_changed();
    });
    assert_eq!(device.wires.interrupts(), 2);
    assert_eq!(device.read(0x060), 3);
    assert_ne!(device.read(0x0fc), generation);
    device.write(0x064, 1);
    assert_eq!(device.read(0x060), 2);
    device.write(0x064, u32::MAX);
    assert_eq!(device.read(0x060), 0);
}

#[test]
fn a_doorbell_that_arrives_as_a_write_is_heard() {
    let mut device = recorder();
    device.start(0);
    let rings = recorded(&device, |d| d.doorbells.len());
    device.write(0x050, 1);
    device.write(0x050, 2);
    device.write(0x050, 0x1_0001);
    assert_eq!(recorded(&device, |d| d.doorbells[rings..].to_vec()), [1]);
}

#[test]
fn there_is_no_shared_memory() {
    let device = recorder();
    device.write(0x0ac, 0);
    for offset in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
        assert_eq!(device.read(offset), u32::MAX);
    }
}

#[test]
fn the_configuration_space_is_read_and_written_in_any_size() {
    let device = recorder();
    device.transport.mmio_write(MmioAddress(0), 0x100, &[9]);
    assert_eq!(device.config(0, 1), [0], "nobody drives the device yet");
    device.write(0x070, ACKNOWLEDGE | DRIVER);
    device.transport.mmio_write(MmioAddress(0), 0x101, &[1, 2]);
    device
        .transport
        .mmio_write(MmioAddress(0), 0x107, &[3, 4, 5, 6]);
    assert_eq!(device.config(0, 8), [0, 1, 2, 0, 0, 0, 0, 3]);
    assert_eq!(device.config(6, 4), [0, 3, 0, 0]);
}

#[test]
fn a_saved_device_goes_on_and_tells_of_the_interrupt_again() {
    let mut device = recorder();
    device.start(0);
    device
        .transport
        .with_device(|_, active| active.unwrap().interrupt.used());
    let state = device.saved();
    assert_eq!(recorded(&device, |d| d.drains), 1);
    assert_eq!(device.transport.save(), state, "a save changes nothing");
    let interrupts = device.wires.interrupts();
    let device = device.restore(Recorder::default());
    assert_eq!(device.transport.save(), state);
    assert_eq!(device.wires.interrupts(), interrupts + 1);
    assert_eq!(recorded(&device, |d| d.restores), 1);
    assert_eq!(recorded(&device, |d| d.activations), 0);
    assert_eq!(recorded(&device, |d| d.doorbells.clone()), [0, 1]);
    assert_eq!(device.take_interrupt(), 1);
}

#[test]
fn a_device_without_a_driver_is_saved_as_well() {
    let device = recorder();
    let interrupts = device.wires.interrupts();
    let device = device.restore(Recorder::default());
    assert_eq!(recorded(&device, |d| (d.restores, d.drains)), (0, 0));
    assert_eq!(device.wires.interrupts(), interrupts);
}

/// What restoring `state` brings.
fn restored(state: &TransportState) -> Result<VirtioMmio<Recorder>, TransportRestoreError> {
    let wires = Box::new(TestWires::default());
    VirtioMmio::from_state(Recorder::default(), state, memory(), wires)
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let mut device = recorder();
    device.start(0);
    let good = device.saved();
    assert!(restored(&good).is_ok());
    type Change = fn(&mut TransportState);
    let changes: [(&str, Change); 12] = [
        ("a queue less", |s| s.queues.truncate(1)),
        ("another size", |s| s.queues[0].max_size = 32),
        ("DRIVER_OK without features", |s| s.status = DRIVER_OK),
        ("FEATURES_OK without a driver", |s| s.status = FEATURES_OK),
        ("an unknown status", |s| s.status |= 0x100),
        ("NEEDS_RESET as status", |s| s.status |= NEEDS_RESET),
        ("an unknown interrupt", |s| s.interrupt_status = 4),
        ("a feature too many", |s| s.driver_features |= 1 << 40),
        ("no version 1", |s| s.driver_features &= !F_VERSION_1),
        ("no size", |s| s.queues[1].size = 7),
        ("no alignment", |s| s.queues[0].used_ring += 1),
        ("outside", |s| s.queues[0].desc_table = 1 << 40),
    ];
    for (what, change) in changes {
        let mut state = good.clone();
        change(&mut state);
        assert!(restored(&state).is_err(), "{what}");
    }
}

#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Event(u16),
    Save,
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    // Mostly registers that mean something, so that the sequences get somewhere.
    let offset = prop_oneof![
        8 => prop::sample::select((0..0x110u64).step_by(4).collect::<Vec<_>>()),
        1 => 0..0x1000u64,
        1 => any::<u64>(),
    ];
    let value = prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 3, 8, 11, 15, 0x1000, 0x10_0000]),
        1 => any::<u32>(),
    ];
    let write = prop_oneof![
        8 => value.prop_map(|value: u32| value.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..9),
    ];
    let access = prop_oneof![
        4 => (offset.clone(), write).prop_map(|(offset, data)| Access::Write(offset, data)),
        4 => (offset, 0..9usize).prop_map(|(offset, len)| Access::Read(offset, len)),
        1 => any::<u16>().prop_map(Access::Event),
        1 => Just(Access::Save),
    ];
    prop::collection::vec(access, 0..200)
}

proptest! {
    #[test]
    fn any_access_in_any_order_is_answered_and_what_is_saved_can_be_restored(
        negotiated in any::<bool>(),
        accesses in accesses(),
    ) {
        let device = recorder();
        if negotiated {
            device.negotiate(0);
            device.set_up_queue(0);
        }
        for access in accesses {
            match access {
                Access::Read(offset, len) => {
                    let mut data = vec![0xaa; len];
                    device.transport.mmio_read(MmioAddress(0), offset, &mut data);
                }
                Access::Write(offset, data) => {
                    device.transport.mmio_write(MmioAddress(0), offset, &data);
                }
                Access::Event(queue) => {
                    device.doorbell(queue);
                    device.backend_ready();
                }
                Access::Save => {
                    let state = device.saved();
                    prop_assert_eq!(restored(&state).unwrap().save(), state);
                }
            }
            let status = device.status();
            prop_assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0);
            device.transport.with_device(|_, active| {
                if let Some(active) = active {
                    let ready = active.queues.iter().filter(|queue| queue.ready());
                    for queue in ready {
                        assert!(queue.is_valid(active.memory));
                    }
                }
            });
        }
    }
}
