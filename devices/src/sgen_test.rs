//! Tests of the SGEN device.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;

const GPA: u64 = 0x9_f000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
}

fn write(device: &mut SysGen, offset: u16, value: u32) {
    device.pio_write(PioAddress(PORT_BASE), offset, &value.to_le_bytes());
}

fn read(device: &mut SysGen, offset: u16) -> u32 {
    let mut data = [0; 4];
    device.pio_read(PioAddress(PORT_BASE), offset, &mut data);
    u32::from_le_bytes(data)
}

/// A device whose driver is there.
fn driven(memory: &GuestMemoryMmap) -> SysGen {
    let mut device = SysGen::new(memory, GPA, 0).unwrap();
    write(&mut device, VERSION, 1);
    device
}

/// The same, with a driver that knows the later registers.
fn driven_by_a_new_one(memory: &GuestMemoryMmap) -> SysGen {
    let mut device = SysGen::new(memory, GPA, 0).unwrap();
    write(&mut device, VERSION, 0);
    write(&mut device, FEATURES, FEATURE_READY);
    write(&mut device, VERSION, 1);
    device
}

fn lacks(device: &SysGen, agents: u32) -> Vec<Lack> {
    let report = device.report();
    report.lacks(agents, report.required).collect()
}

fn adapt(device: &mut SysGen, value: u32, outdated: u32) {
    write(device, RESEEDED, value);
    write(device, OUTDATED, outdated);
    write(device, REACHED, value);
}

#[test]
fn the_counter_starts_at_0_and_each_generation_adds_one_to_what_the_guest_left() {
    let memory = memory();
    let mut device = SysGen::new(&memory, GPA, 0).unwrap();
    assert_eq!(device.counter(&memory).unwrap(), 0);
    assert_eq!(device.begin(&memory).unwrap(), 1);
    memory.write_obj(41_u32, GuestAddress(GPA)).unwrap();
    assert_eq!(device.begin(&memory).unwrap(), 42);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(GPA)).unwrap(), 42);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(GPA - 8)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(GPA + 4)).unwrap(), 0);
}

#[test]
fn the_counter_wraps_and_the_driver_reaches_the_generation_beyond() {
    let memory = memory();
    let mut device = driven(&memory);
    for before in [u32::MAX - 1, u32::MAX] {
        memory.write_obj(before, GuestAddress(GPA)).unwrap();
        let host = device.begin(&memory).unwrap();
        assert_eq!(host, before.wrapping_add(1));
        adapt(&mut device, host, 0);
        assert!(!device.report().reached && !device.report().reseeded);
        adapt(&mut device, host.wrapping_add(1), 0);
        assert!(device.report().adapted());
    }
}

#[test]
fn a_guest_that_boots_has_adapted_when_its_driver_is_there() {
    let memory = memory();
    let mut device = SysGen::new(&memory, GPA, 0).unwrap();
    assert_eq!(device.report(), DriverReport::default());
    write(&mut device, VERSION, 1);
    assert!(device.report().adapted());
    write(&mut device, OUTDATED, 3);
    assert!(!device.report().adapted());
    write(&mut device, VERSION, 0);
    assert_eq!(device.report(), DriverReport::default());
}

#[test]
fn a_guest_has_adapted_when_all_of_it_was_told_and_no_watcher_is_outdated() {
    let memory = memory();
    let mut device = driven(&memory);
    let host = device.begin(&memory).unwrap();
    let report = device.report();
    assert!(report.present() && !report.reached && !report.reseeded && !report.adapted());
    adapt(&mut device, host + 1, 2);
    let report = device.report();
    assert!(report.reached && report.reseeded && report.outdated == 2 && !report.adapted());
    assert!(report.reached_after.is_some() && report.reseeded_after <= report.reached_after);
    assert_eq!(report.adapted_after, None);
    write(&mut device, OUTDATED, 0);
    let report = device.report();
    assert!(report.adapted() && report.adapted_after >= report.reached_after);
    // An outdated watcher of the guest's own making does not change when that was.
    write(&mut device, OUTDATED, 1);
    write(&mut device, OUTDATED, 0);
    assert_eq!(device.report(), report);
}

#[test]
fn what_was_told_of_an_older_generation_does_not_count() {
    let memory = memory();
    let mut device = driven(&memory);
    for _ in 0..3 {
        let host = device.begin(&memory).unwrap();
        adapt(&mut device, host, 0);
        assert!(!device.report().adapted());
        memory.write_obj(host + 1, GuestAddress(GPA)).unwrap();
        adapt(&mut device, host + 1, 0);
        assert!(device.report().adapted());
        device.begin(&memory).unwrap();
        assert!(!device.report().adapted());
        assert_eq!(device.report().reached_after, None);
    }
}

#[test]
fn a_driver_that_comes_after_the_generation_began_need_not_step_beyond_it() {
    let memory = memory();
    let mut device = SysGen::new(&memory, GPA, 0).unwrap();
    let host = device.begin(&memory).unwrap();
    write(&mut device, VERSION, 1);
    assert!(!device.report().adapted());
    adapt(&mut device, host, 0);
    assert!(device.report().adapted());
}

#[test]
fn each_change_of_the_report_is_told_once() {
    let memory = memory();
    let mut device = driven(&memory);
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    device.on_report(Box::new(move |report| log.lock().unwrap().push(report)));
    let host = device.begin(&memory).unwrap();
    for _ in 0..3 {
        adapt(&mut device, host + 1, 0);
    }
    let told = told.lock().unwrap();
    let adapted: Vec<bool> = told.iter().map(DriverReport::adapted).collect();
    assert_eq!(adapted, [true, false, false, true]);
}

#[test]
fn registers_read_as_they_were_written_and_the_version_is_the_devices() {
    let mut device = driven(&memory());
    write(&mut device, VERSION, 77);
    adapt(&mut device, 0x1234_5678, 9);
    let read = [REACHED, RESEEDED, OUTDATED, VERSION].map(|offset| read(&mut device, offset));
    assert_eq!(read, [0x1234_5678, 0x1234_5678, 9, INTERFACE_VERSION]);
    assert_eq!(device.report().version, 77);
}

#[test]
fn a_restored_device_is_the_saved_one_and_leaves_memory_alone() {
    let memory = memory();
    let mut saved = driven(&memory);
    let host = saved.begin(&memory).unwrap();
    adapt(&mut saved, host + 1, 0);
    memory.write_obj(99_u32, GuestAddress(GPA)).unwrap();
    let state = saved.save();
    let restored = SysGen::from_state(&state).unwrap();
    assert_eq!(restored.save(), state);
    assert!(restored.report().adapted());
    assert_eq!(restored.report().adapted_after, None);
    assert_eq!(restored.counter(&memory).unwrap(), 99);
}

#[test]
fn addresses_that_are_none_or_without_memory_are_refused() {
    let memory = memory();
    let refused = SysGen::new(&memory, GPA + 8, 0).unwrap_err();
    assert!(matches!(refused, SysGenError::Address { .. }), "{refused}");
    let refused = SysGen::new(&memory, 0x10_0000, 0).unwrap_err();
    assert!(refused.to_string().contains("0x100000"), "{refused}");
}

#[test]
fn a_generation_that_cannot_be_written_leaves_the_device_as_it_was() {
    let mut device = driven(&memory());
    let before = device.save();
    let elsewhere = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(device.begin(&elsewhere).is_err());
    assert_eq!(device.save(), before);
}

#[test]
fn the_guest_reads_page_and_ports_from_crs() {
    let mut aml = Vec::new();
    driven(&memory()).to_aml_bytes(&mut aml);
    let contains = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
    assert!(contains(b"VMGE0001"));
    assert!(contains(&GPA.to_le_bytes()) && contains(&(GPA + 0xfff).to_le_bytes()));
    assert!(contains(b"\x47\x01\x40\x06\x40\x06\x01\x40"));
}

#[test]
fn a_driver_that_knows_the_later_registers_has_adapted_when_the_kernel_has_heard_of_the_fork() {
    let memory = memory();
    let mut device = driven_by_a_new_one(&memory);
    assert!(device.report().adapted());
    let host = device.begin(&memory).unwrap();
    assert_eq!(device.report().chain, Some(false));
    adapt(&mut device, host + 1, 0);
    assert_eq!(lacks(&device, 0), [Lack::Chain]);
    write(&mut device, CHAIN, host);
    assert_eq!(lacks(&device, 0), [Lack::Chain]);
    write(&mut device, CHAIN, host + 1);
    assert!(device.report().adapted() && device.report().adapted_after.is_some());
}

#[test]
fn an_older_driver_tells_nothing_of_the_kernel_and_all_its_watchers_count() {
    let memory = memory();
    let mut device = driven(&memory);
    let host = device.begin(&memory).unwrap();
    write(&mut device, REQUIRED, 7);
    adapt(&mut device, host + 1, 3);
    let report = device.report();
    assert_eq!((report.chain, report.required), (None, 3));
    write(&mut device, OUTDATED, 0);
    assert!(device.report().adapted());
    assert_eq!(lacks(&device, 1), [Lack::Agent]);
}

#[test]
fn as_many_agents_are_expected_as_have_ever_been_ready_in_one_generation() {
    let memory = memory();
    let mut device = driven_by_a_new_one(&memory);
    assert_eq!(lacks(&device, 1), [Lack::Agent]);
    for _ in 0..2 {
        write(&mut device, READY, 0);
    }
    assert!(lacks(&device, 2).is_empty());
    let mut device = SysGen::from_state(&device.save()).unwrap();
    let host = device.begin(&memory).unwrap();
    adapt(&mut device, host + 1, 0);
    write(&mut device, CHAIN, host + 1);
    // An agent's word of the generation before is none of this one.
    for (counter, ready) in [(host, 0), (host + 1, 1), (host + 1, 2)] {
        assert!(!device.report().adapted());
        write(&mut device, READY, counter);
        assert_eq!((device.report().ready, device.report().agents), (ready, 2));
    }
    assert!(device.report().adapted() && lacks(&device, 3) == [Lack::Agent]);
    // The agents' machine is still that when its driver has gone.
    write(&mut device, VERSION, 0);
    assert_eq!(
        (device.report().agents, lacks(&device, 0)),
        (2, vec![Lack::Driver])
    );
}

#[test]
fn an_agent_is_one_in_each_generation_that_the_guest_begins_by_itself() {
    let memory = memory();
    let mut device = driven_by_a_new_one(&memory);
    for counter in [0, 1, 1, 2] {
        write(&mut device, READY, counter);
    }
    assert_eq!((device.report().ready, device.report().agents), (1, 2));
    let host = device.begin(&memory).unwrap();
    adapt(&mut device, host + 1, 0);
    write(&mut device, CHAIN, host + 1);
    write(&mut device, READY, host + 1);
    assert_eq!(lacks(&device, 1), []);
}

#[test]
fn only_privileged_watchers_hold_a_machine_up_and_both_numbers_are_told() {
    let memory = memory();
    let mut device = driven_by_a_new_one(&memory);
    let host = device.begin(&memory).unwrap();
    write(&mut device, REQUIRED, 1);
    adapt(&mut device, host + 1, 5);
    write(&mut device, CHAIN, host + 1);
    assert_eq!(lacks(&device, 0), [Lack::Watchers]);
    write(&mut device, REQUIRED, 0);
    let report = device.report();
    assert!(report.adapted() && report.outdated == 5);
    let all: Vec<Lack> = report.lacks(0, report.outdated).collect();
    assert_eq!(all, [Lack::Watchers]);
}

#[test]
fn a_driver_that_comes_again_has_to_tell_all_of_it_again() {
    let memory = memory();
    let mut device = driven_by_a_new_one(&memory);
    write(&mut device, READY, 0);
    write(&mut device, VERSION, 0);
    write(&mut device, VERSION, 1);
    // An older one this time: it says nothing of features.
    assert_eq!((device.report().chain, device.report().ready), (None, 0));
}

#[test]
fn the_time_is_offered_or_not_and_its_high_half_is_of_the_instant_of_the_low_one() {
    const CLOCK: RealtimeClock = || {
        use std::sync::atomic::AtomicU64;
        static NOW: AtomicU64 = AtomicU64::new(0x1_ffff_ffff);
        NOW.fetch_add(1, Ordering::Relaxed)
    };
    let memory = memory();
    let mut device = driven_by_a_new_one(&memory);
    assert_eq!(read(&mut device, FEATURES) & FEATURE_REALTIME, 0);
    assert_eq!(read(&mut device, REALTIME_LOW), u32::MAX);
    assert_eq!(read(&mut device, REALTIME_HIGH), u32::MAX);
    device.offer_realtime(Some(CLOCK));
    assert_eq!(
        read(&mut device, FEATURES),
        FEATURE_FORK | FEATURE_SEED | FEATURE_READY | FEATURE_REALTIME
    );
    assert_eq!(read(&mut device, REALTIME_LOW), u32::MAX);
    assert_eq!(read(&mut device, REALTIME_HIGH), 1);
    // The host decides anew when it restores the machine.
    let state = device.save();
    assert_eq!(state.later.realtime_high, 1);
    let mut restored = SysGen::from_state(&state).unwrap();
    assert_eq!(read(&mut restored, FEATURES) & FEATURE_REALTIME, 0);
    restored.offer_realtime(Some(CLOCK));
    assert_eq!(read(&mut restored, REALTIME_LOW), 0);
    assert_eq!(read(&mut restored, REALTIME_HIGH), 2);
}

#[test]
fn ports_that_are_no_register_read_as_ones_and_take_nothing() {
    let mut device = driven_by_a_new_one(&memory());
    let before = device.save();
    for offset in [0x1d, 0x38, 0x40, 0x31] {
        write(&mut device, offset, 1);
        assert_eq!(read(&mut device, offset), u32::MAX);
    }
    for offset in [REALTIME_LOW, REALTIME_HIGH, LIMIT, SEED] {
        write(&mut device, offset, 1);
    }
    assert_eq!(device.save(), before);
}

#[test]
fn a_state_of_the_first_version_is_of_a_driver_that_knows_no_later_register() {
    let memory = memory();
    let mut device = driven(&memory);
    adapt(&mut device, 0, 0);
    let new = device.save();
    let old = SysGenStateV1 {
        gpa: new.gpa,
        base: new.base,
        step: new.step,
        registers: new.registers,
        reached: new.reached,
        reseeded: new.reseeded,
    };
    let mut device = SysGen::from_state(&old.into()).unwrap();
    assert!(device.report().adapted());
    let host = device.begin(&memory).unwrap();
    adapt(&mut device, host + 1, 0);
    assert!(device.report().adapted());
}

proptest! {
    #[test]
    fn whatever_a_guest_does_the_device_answers_and_adaptation_is_as_the_registers_say(
        accesses in prop::collection::vec(
            (0_u16..0x44, prop::collection::vec(any::<u8>(), 0..9), any::<bool>(), any::<bool>()), 0..60),
        counter in any::<u32>(),
    ) {
        let memory = memory();
        let mut device = driven(&memory);
        memory.write_obj(counter, GuestAddress(GPA)).unwrap();
        let mut base = 0;
        for (offset, mut data, is_write, begin) in accesses {
            let known = matches!(offset, 0 | 4 | 8 | 12 | 0x10 | 0x14 | 0x18 | 0x1c | 0x20 | 0x24 | 0x30 | 0x34 | 0x3c);
            let fits = data.len() == 4 && known;
            if begin {
                base = device.begin(&memory).unwrap();
                prop_assert!(!device.report().adapted());
            } else if is_write {
                let before = device.save();
                device.pio_write(PioAddress(PORT_BASE), offset, &data);
                if !fits {
                    prop_assert_eq!(device.save(), before);
                }
            } else {
                device.pio_read(PioAddress(PORT_BASE), offset, &mut data);
                prop_assert!(fits || data.iter().all(|byte| *byte == 0xff));
            }
            let state = device.save();
            prop_assert_eq!(state.base, base);
            let report = device.report();
            let tells = state.later.features & FEATURE_READY != 0;
            prop_assert_eq!(
                report.adapted(),
                state.registers[3] != 0
                    && state.reached
                    && state.reseeded
                    && (!tells || state.later.chain)
                    && state.later.ready >= state.later.agents
                    && if tells { state.later.required } else { state.registers[2] } == 0
            );
            prop_assert!(state.later.ready <= state.later.agents);
            prop_assert_eq!(SysGen::from_state(&state).unwrap().save(), state);
        }
    }
}
