//! Tests of ASK, as driver and host see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use vm_device::MutDevicePio;
use vm_device::bus::PioAddress;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::super::*;
use super::*;

const TAG: u32 = 7;
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

fn hello(device: &mut SysGen) {
    write(device, VERSION, 0);
    write(device, FEATURES, FEATURE_FORK | FEATURE_READY);
    write(device, VERSION, 1);
}

fn allowed(memory: &GuestMemoryMmap) -> SysGen {
    let mut device = SysGen::new(memory, 0x9_f000, 0).unwrap();
    hello(&mut device);
    device.allow_self_fork(true);
    device
}

#[test]
fn who_may_not_ask_is_refused_and_the_host_does_not_hear_of_it() {
    let memory = memory();
    let mut device = allowed(&memory);
    assert_ne!(read(&mut device, FEATURES) & FEATURE_SELF, 0);
    assert_eq!(read(&mut device, ASK), NOTHING);
    device.allow_self_fork(false);
    assert_eq!(read(&mut device, FEATURES) & FEATURE_SELF, 0);
    write(&mut device, ASK, TAG);
    assert_eq!(read(&mut device, ASK), u32::MAX, "there is no such port");
    assert_eq!(device.self_asked(), None);
    assert_eq!(
        device.grant_self_fork(TICKET, LIMIT_OF_HOST),
        Err(AskError::NotWanted)
    );
    // Nor later: it was refused.
    device.allow_self_fork(true);
    assert_eq!(read(&mut device, ASK), REFUSED);
    assert!(!device.refuse_self_fork());
}

#[test]
fn an_ask_is_answered_by_a_request_or_refused() {
    let memory = memory();
    let mut device = allowed(&memory);
    let told = Arc::new(AtomicUsize::new(0));
    let heard = Arc::clone(&told);
    device.on_fork(Box::new(move || {
        heard.fetch_add(1, Ordering::Relaxed);
    }));
    write(&mut device, ASK, TAG);
    write(&mut device, ASK, TAG + 1);
    assert_eq!(told.load(Ordering::Relaxed), 1, "once until it is decided");
    assert_eq!(device.self_asked(), Some(TAG + 1));
    assert_eq!(
        (read(&mut device, ASK), read(&mut device, REQUEST)),
        (ASKED, 0)
    );
    device.grant_self_fork(TICKET, LIMIT_OF_HOST).unwrap();
    assert_eq!(device.self_asked(), None);
    assert_eq!(
        (read(&mut device, ASK), read(&mut device, REQUEST)),
        (ASKED, TICKET)
    );
    // It is a request by now, and called off as one.
    write(&mut device, ASK, 0);
    assert_eq!(read(&mut device, ASK), ASKED);
    write(&mut device, FORK, TICKET);
    assert!(device.is_original());
    assert_eq!(
        (read(&mut device, ASK), read(&mut device, REQUEST)),
        (NOTHING, 0)
    );

    write(&mut device, ASK, TAG);
    assert!(device.refuse_self_fork() && !device.refuse_self_fork());
    assert_eq!(
        (read(&mut device, ASK), read(&mut device, REQUEST)),
        (REFUSED, 0)
    );
}

#[test]
fn a_request_of_somebody_elses_is_no_answer() {
    let memory = memory();
    let mut device = allowed(&memory);
    write(&mut device, ASK, TAG);
    device.ask_for_fork(TICKET, LIMIT_OF_HOST).unwrap();
    assert_eq!(read(&mut device, ASK), REFUSED);
    write(&mut device, ASK, TAG);
    assert_eq!(read(&mut device, ASK), REFUSED, "one is under way");
    device.withdraw_fork();
    write(&mut device, ASK, TAG);
    device.grant_self_fork(TICKET + 1, LIMIT_OF_HOST).unwrap();
    device.withdraw_fork();
    device.ask_for_fork(TICKET + 2, LIMIT_OF_HOST).unwrap();
    assert_eq!(read(&mut device, ASK), NOTHING, "that one is over");
}

#[test]
fn nothing_is_asked_by_who_has_taken_it_back_or_has_gone_or_is_a_clone() {
    let memory = memory();
    let mut device = allowed(&memory);
    write(&mut device, ASK, TAG);
    write(&mut device, ASK, 0);
    assert_eq!(
        (device.self_asked(), read(&mut device, ASK)),
        (None, NOTHING)
    );
    write(&mut device, ASK, TAG);
    let mut clone = SysGen::from_state(&device.save()).unwrap();
    assert_eq!(clone.self_asked(), None);
    assert_eq!(read(&mut clone, ASK), u32::MAX);
    clone.allow_self_fork(true);
    assert_eq!(read(&mut clone, ASK), NOTHING);
    write(&mut device, VERSION, 0);
    assert_eq!(device.self_asked(), None);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Request,
    Withdraw,
    Original,
    Begin,
    Restore,
    Allow(bool),
    Grant,
    Refuse,
    Hello,
    Stand,
    Tag(u32),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Request),
        1 => Just(Step::Withdraw),
        1 => Just(Step::Original),
        1 => Just(Step::Begin),
        1 => Just(Step::Restore),
        1 => any::<bool>().prop_map(Step::Allow),
        2 => Just(Step::Grant),
        1 => Just(Step::Refuse),
        1 => Just(Step::Hello),
        1 => Just(Step::Stand),
        2 => (0..3_u32).prop_map(Step::Tag),
    ]
}

proptest! {
    /// Whatever guest and host do: a request that is there while ASK reads 1 is the answer to that, and the
    /// host agrees to nothing that nobody may ask for, or that nobody has asked this machine for.
    #[test]
    fn a_ticket_beside_an_ask_is_its_answer(steps in prop::collection::vec(steps(), 1..60)) {
        let memory = memory();
        let mut device = allowed(&memory);
        let (mut ticket, mut own, mut may, mut asks) = (TICKET, None, true, false);
        for step in steps {
            match step {
                Step::Request | Step::Grant => {
                    ticket = ticket.wrapping_add(1) | 1;
                    let granted = matches!(step, Step::Grant);
                    let made = match granted {
                        true => device.grant_self_fork(ticket, LIMIT_OF_HOST),
                        false => device.ask_for_fork(ticket, LIMIT_OF_HOST),
                    };
                    if made.is_ok() {
                        prop_assert!(!granted || asks, "nobody asks");
                        own = granted.then_some(ticket);
                        asks = false;
                    }
                }
                Step::Withdraw => { device.withdraw_fork(); }
                Step::Original => { device.is_original(); }
                Step::Begin => { device.begin(&memory).unwrap(); }
                Step::Restore => {
                    device = SysGen::from_state(&device.save()).unwrap();
                    (may, asks) = (false, false);
                }
                Step::Allow(allow) => {
                    device.allow_self_fork(allow);
                    may = allow;
                    asks &= allow;
                }
                Step::Refuse => asks &= !device.refuse_self_fork(),
                Step::Hello => {
                    hello(&mut device);
                    asks = false;
                }
                Step::Stand => {
                    let present = read(&mut device, REQUEST);
                    write(&mut device, FORK, present);
                }
                Step::Tag(tag) => {
                    asks = tag != 0 && may && !device.fork_progress().stage.is_open();
                    write(&mut device, ASK, tag);
                }
            }
            prop_assert_eq!(read(&mut device, FEATURES) & FEATURE_SELF != 0, may);
            let (present, ask) = (read(&mut device, REQUEST), read(&mut device, ASK));
            if ask == ASKED {
                prop_assert!(present == 0 && asks || own == Some(present), "{} {}", present, asks);
            }
            prop_assert_eq!(ask <= REFUSED, may);
        }
    }
}
