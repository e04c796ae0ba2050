//! Tests of the fork point's registers, as driver and host see them.

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::super::*;
use super::*;

const TICKET: u32 = 0x1234_5678;
const LIMIT_OF_HOST: Duration = Duration::from_secs(10);

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

fn driven(memory: &GuestMemoryMmap, features: u32) -> SysGen {
    let mut device = SysGen::new(memory, 0x9_f000, 0).unwrap();
    write(&mut device, VERSION, 0);
    write(&mut device, FEATURES, features);
    write(&mut device, VERSION, 1);
    device
}

fn able(memory: &GuestMemoryMmap) -> SysGen {
    driven(memory, FEATURE_FORK | FEATURE_READY)
}

fn answer(device: &mut SysGen, state: u8, detail: u8, ticket: u32) {
    let value = u32::from(state) << 24 | u32::from(detail) << 16 | ticket & 0xffff;
    write(device, REQUEST, value);
}

#[test]
fn who_cannot_be_asked_is_named() {
    let memory = memory();
    let mut without = SysGen::new(&memory, 0x9_f000, 0).unwrap();
    let ask = |device: &mut SysGen| device.ask_for_fork(TICKET, LIMIT_OF_HOST);
    assert_eq!(ask(&mut without), Err(AskError::NoDriver));
    let mut old = driven(&memory, FEATURE_READY);
    assert_eq!(ask(&mut old), Err(AskError::NoForkPoint));
    let mut new = able(&memory);
    assert_eq!(read(&mut new, REQUEST), 0);
    assert_eq!(ask(&mut new), Ok(()));
    assert_eq!(ask(&mut new), Err(AskError::Busy));
    assert_eq!(read(&mut new, REQUEST), TICKET);
    assert!((1..=10_000).contains(&read(&mut new, LIMIT)));
}

#[test]
fn the_original_and_the_clone_learn_who_they_are() {
    let memory = memory();
    let mut original = able(&memory);
    original.ask_for_fork(TICKET, LIMIT_OF_HOST).unwrap();
    answer(&mut original, ANSWER_ACK, 1, TICKET);
    answer(&mut original, ANSWER_QUIESCED, 0b101, TICKET);
    assert_eq!(read(&mut original, FORK), ABORTED, "nobody stands yet");
    write(&mut original, FORK, TICKET);
    assert_eq!(read(&mut original, FORK), PENDING);
    let progress = original.fork_progress();
    assert_eq!(progress.stage, ForkStage::Stopped);
    assert!(progress.agent && progress.acked_after <= progress.stopped_after);
    let expected = Quiesced {
        hooks: true,
        frozen: false,
        parked: true,
    };
    assert_eq!(progress.quiesced, expected);

    let saved = original.save();
    let mut clone = SysGen::from_state(&saved).unwrap();
    let mut kept = SysGen::from_state(&saved).unwrap();
    assert_eq!(read(&mut clone, FORK), PENDING);
    clone.begin(&memory).unwrap();
    assert!(kept.is_original());
    assert!(original.is_original());
    for (device, who) in [
        (&mut original, ORIGINAL),
        (&mut kept, ORIGINAL),
        (&mut clone, CLONE),
    ] {
        assert_eq!(read(device, FORK), who);
        assert_eq!(read(device, REQUEST), 0);
        assert_eq!(read(device, LIMIT), 0);
        assert!(!device.is_original(), "once");
        // A later generation changes nothing of it.
        device.begin(&memory).unwrap();
        assert_eq!(read(device, FORK), who);
    }
}

#[test]
fn an_old_ticket_is_called_off() {
    let memory = memory();
    let mut device = able(&memory);
    device.ask_for_fork(TICKET, LIMIT_OF_HOST).unwrap();
    assert!(device.withdraw_fork() && !device.withdraw_fork());
    write(&mut device, FORK, TICKET);
    assert_eq!(read(&mut device, FORK), ABORTED);
    let next = TICKET + 1;
    device.ask_for_fork(next, LIMIT_OF_HOST).unwrap();
    answer(&mut device, ANSWER_REFUSED, 1, TICKET);
    write(&mut device, FORK, TICKET);
    assert_eq!(read(&mut device, FORK), ABORTED);
    assert_eq!(device.fork_progress().stage, ForkStage::Asked);
    write(&mut device, FORK, next);
    write(&mut device, ABORT, TICKET);
    assert_eq!(read(&mut device, FORK), PENDING);
    write(&mut device, ABORT, next);
    assert_eq!(read(&mut device, FORK), ABORTED);
    assert!(!device.is_original());
}

#[test]
fn a_refusal_says_why_and_a_driver_that_goes_answers_nobody() {
    let memory = memory();
    let mut device = able(&memory);
    device.ask_for_fork(TICKET, LIMIT_OF_HOST).unwrap();
    answer(&mut device, ANSWER_REFUSED, 2, TICKET);
    let progress = device.fork_progress();
    assert_eq!(progress.refused, Some(ForkRefusal::HookHung));
    assert_eq!(progress.stage, ForkStage::Aborted);
    device.ask_for_fork(TICKET + 1, LIMIT_OF_HOST).unwrap();
    assert_eq!(device.fork_progress().refused, None);
    write(&mut device, VERSION, 0);
    let progress = device.fork_progress();
    assert_eq!(progress.stage, ForkStage::Aborted);
    assert_eq!(progress.refused, Some(ForkRefusal::DriverGone));
    assert_eq!(read(&mut device, REQUEST), 0);
}

#[test]
fn a_request_that_was_under_way_is_over_in_a_snapshot() {
    let memory = memory();
    for acked in [false, true] {
        let mut device = able(&memory);
        device.ask_for_fork(TICKET, LIMIT_OF_HOST).unwrap();
        if acked {
            answer(&mut device, ANSWER_ACK, 1, TICKET);
        }
        let mut clone = SysGen::from_state(&device.save()).unwrap();
        assert_eq!(read(&mut clone, REQUEST), 0);
        write(&mut clone, FORK, TICKET);
        assert_eq!(read(&mut clone, FORK), ABORTED);
    }
}

#[test]
fn the_seed_is_another_one_each_time() {
    let memory = memory();
    let mut device = able(&memory);
    let seeds: Vec<u32> = (0..4).map(|_| read(&mut device, SEED)).collect();
    assert!(seeds.iter().any(|seed| *seed != seeds[0]), "{seeds:x?}");
}

#[test]
fn an_identity_is_that_of_the_generation_alone() {
    let memory = memory();
    let mut device = able(&memory);
    for _ in 0..3 {
        let host = device.begin(&memory).unwrap();
        assert!(!device.report().identity);
        answer(&mut device, ANSWER_IDENTITY, 0, host);
        assert!(!device.report().identity, "the driver has not moved it");
        answer(&mut device, ANSWER_IDENTITY, 0, host.wrapping_add(1));
        assert!(device.report().identity);
        memory
            .write_obj(host.wrapping_add(1), GuestAddress(0x9_f000))
            .unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask,
    Withdraw,
    Original,
    Begin,
    Restore,
    Write(u16, u32),
}

fn steps() -> impl Strategy<Value = Step> {
    let ticket = prop_oneof![Just(TICKET), Just(TICKET + 1), any::<u32>()];
    let offset = prop_oneof![Just(REQUEST), Just(FORK), Just(ABORT), Just(VERSION)];
    prop_oneof![
        Just(Step::Ask),
        Just(Step::Withdraw),
        Just(Step::Original),
        Just(Step::Begin),
        Just(Step::Restore),
        (offset, ticket).prop_map(|(offset, value)| Step::Write(offset, value)),
        any::<u32>().prop_map(|value| Step::Write(REQUEST, value & 0x07ff_0000 | 0x5678)),
    ]
}

proptest! {
    /// Whatever guest and host do: who was told what it is, is not told otherwise for the same ticket;
    /// and nobody is left waiting by a host that is not at it.
    #[test]
    fn an_answer_is_final(steps in prop::collection::vec(steps(), 1..60)) {
        let memory = memory();
        let mut device = able(&memory);
        let mut told = None;
        for step in steps {
            match step {
                Step::Ask => if device.ask_for_fork(TICKET, LIMIT_OF_HOST).is_ok() {
                    told = None;
                },
                Step::Withdraw => { device.withdraw_fork(); }
                Step::Original => { device.is_original(); }
                Step::Begin => { device.begin(&memory).unwrap(); }
                Step::Restore => device = SysGen::from_state(&device.save()).unwrap(),
                Step::Write(offset, value) => write(&mut device, offset, value),
            }
            let stage = device.fork_progress().stage;
            prop_assert_eq!(read(&mut device, REQUEST) != 0, stage.is_open());
            let state = device.save().fork;
            if state.written == TICKET {
                let who = read(&mut device, FORK);
                prop_assert_eq!(who == PENDING, stage == ForkStage::Stopped);
                if let Some(told) = told {
                    prop_assert_eq!(who, told);
                } else if who != PENDING && stage != ForkStage::Idle && !stage.is_open() {
                    told = Some(who);
                }
            }
        }
    }
}
