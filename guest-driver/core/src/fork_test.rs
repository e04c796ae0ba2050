// SPDX-License-Identifier: GPL-2.0

//! The fork point, with restores, aborts and other programs wherever they can come in between.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::vec::Vec;

use shuttle::{sync::Arc, thread};

use crate::{
    sysgenid_settle::{Answer, Machine, Settled, Still, Stood},
    test_device::{Device, Shared, check},
    test_fork::{Cpus, Outcome, Stand, Standing},
    test_hypervisor::Hypervisor,
};

/// What the hypervisor does, before its register is looked at for the so many-th time.
type Deed = fn(&Hypervisor);
type Plan = Vec<(u32, Deed)>;

const ASKS: u32 = 3;

fn restores(hypervisor: &Hypervisor) {
    hypervisor.restore();
}

fn says_original(hypervisor: &Hypervisor) {
    hypervisor.say(Answer::Original);
}

fn gives_up(hypervisor: &Hypervisor) {
    hypervisor.say(Answer::Aborted);
}

/// Another hypervisor has restored it as the same, or as another one.
fn knows_nothing(hypervisor: &Hypervisor) {
    hypervisor.say(Answer::Unknown);
}

/// As the driver does.
fn stands(settled: &mut Settled, machine: &Standing<'_>) -> Stood {
    settled.stand(machine)
}

/// A fork point that the hypervisor does that to. The device is as it was left.
fn fork(device: &Device, plan: &[(u32, Deed)], stand: Stand) -> Outcome {
    let before = |look| {
        for (when, what) in plan {
            if *when == look {
                what(&device.hypervisor);
            }
        }
    };
    device.fork_point(&Cpus::new(()), ASKS, &before, stand)
}

/// Runs each plan in a machine of its own.
fn each(plans: Vec<Plan>, then: fn(&Device, Outcome)) {
    for plan in plans {
        shuttle::check_random(
            move || {
                let device = Device::started(Hypervisor::with_counter(0));
                let outcome = fork(&device, &plan, stands);
                then(&device, outcome);
            },
            1,
        );
    }
}

/// So many looks, if nothing is answered: the fork point, the asking, the giving up, and the end.
const LOOKS: u32 = 30;

fn is_a_clone_or_late(device: &Device, outcome: Outcome) {
    assert!(outcome.looks < LOOKS, "not every step was tried");
    // What comes after the last look is dealt with as ever.
    match device.hypervisor.restores() {
        0 => assert_ne!(outcome.stood, Stood::Clone),
        _ => assert_eq!(outcome.stood, Stood::Clone),
    }
    device.check_instruction();
    assert_eq!(device.told(), device.counter());
    device.check_settled();
}

#[test]
fn a_restore_at_any_step_is_dealt_with_before_the_machine_goes_on() {
    let once = (1..LOOKS).map(|at| Vec::from([(at, restores as Deed)]));
    each(once.collect(), is_a_clone_or_late);
}

#[test]
fn so_are_two_restores() {
    let twice = (1..LOOKS).flat_map(|one| {
        (one..LOOKS).map(move |other| Vec::from([(one, restores as Deed), (other, restores)]))
    });
    each(twice.collect(), is_a_clone_or_late);
}

#[test]
fn so_is_one_that_comes_with_any_answer_or_none() {
    let answers = [says_original, gives_up, knows_nothing];
    let plans = answers.into_iter().flat_map(|answers: Deed| {
        (2..6).flat_map(move |answer| {
            (1..LOOKS)
                .map(move |restore| Vec::from([(answer, answers), (restore, restores as Deed)]))
        })
    });
    each(plans.collect(), is_a_clone_or_late);
}

#[test]
fn without_a_restore_nothing_moves_and_the_generator_is_reseeded() {
    let unmoved = |device: &Device, outcome: Outcome| {
        assert!(
            device.reseeded() > 1,
            "the original draws what its snapshot has"
        );
        assert_eq!((device.told(), device.counter()), (0, 0));
        assert_ne!(outcome.stood, Stood::Clone);
        device.check_settled();
    };
    let answers: [Deed; 3] = [says_original, gives_up, knows_nothing];
    let plans = answers
        .into_iter()
        .flat_map(|what| (2..6).map(move |at| Vec::from([(at, what)])));
    each(plans.collect(), unmoved);
    each(Vec::from([Vec::new()]), |_, outcome| {
        assert_eq!(outcome.stood, Stood::Aborted);
    });
    each(
        Vec::from([Vec::from([(3, says_original as Deed)])]),
        |_, outcome| {
            assert_eq!(outcome.stood, Stood::Original);
        },
    );
}

/// What would be wrong: to look at the ID where the answer is that this is a clone.
fn trusts_the_answer(settled: &mut Settled, machine: &Standing<'_>) -> Stood {
    machine.stand();
    loop {
        match machine.answer() {
            Answer::Pending if machine.is_late() => return Stood::Aborted,
            Answer::Pending => {}
            Answer::Clone => {
                settled.settle(machine);
                return Stood::Clone;
            }
            _ => return Stood::Original,
        }
    }
}

#[test]
#[should_panic(expected = "reseeded in")]
fn whoever_trusts_the_answer_alone_goes_on_as_the_original_in_a_clone() {
    shuttle::check_random(
        || {
            let device = Device::started(Hypervisor::with_counter(0));
            let plan: [(u32, Deed); 2] = [(3, says_original), (3, restores)];
            fork(&device, &plan, trusts_the_answer);
            device.check_instruction();
        },
        1,
    );
}

/// Programs run on other CPUs, and call; the hypervisor takes its snapshot while all stand.
fn runs_among_programs(stand: Stand, instruction: fn(&Device)) -> (Arc<Device>, Shared) {
    let device = Device::started(Hypervisor::with_counter(0));
    let cpus = Arc::new(Cpus::new(()));
    let watcher = device.open(true);
    let run = |what: fn(&Device, &Cpus)| {
        let (device, cpus) = (device.clone(), cpus.clone());
        thread::spawn(move || what(&device, &cpus))
    };
    let spinner = || {
        let (device, cpus) = (device.clone(), cpus.clone());
        thread::spawn(move || {
            for _ in 0..4 {
                let running = cpus.read().unwrap();
                instruction(&device);
                drop(running);
            }
        })
    };
    let threads = [
        spinner(),
        spinner(),
        run(|device, cpus| device.preempted_with_the_state(cpus)),
        run(|device, _| {
            device.settle();
        }),
        run(|device, _| {
            while !device.hypervisor.clones() {
                thread::yield_now();
            }
        }),
    ];
    let outcome = device.fork_point(&cpus, u32::MAX, &|_| {}, stand);
    assert_eq!(outcome.stood, Stood::Clone);
    for thread in threads {
        thread.join().unwrap();
    }
    (device, watcher)
}

#[test]
fn no_instruction_runs_between_the_restore_and_the_reseeding() {
    check(|| {
        let (device, watcher) = runs_among_programs(stands, Device::check_instruction);
        assert!(device.look(&watcher).0, "not told");
        // The notification comes as well, and moves nothing.
        assert!(!device.settle());
        device.check_settled();
        assert_eq!((device.told(), device.began()), (2, 1), "once, not thrice");
    });
}

/// What would be wrong: to do the rest when the others run again. How many instructions see it
/// depends on the order, so they are counted over all orders.
#[test]
fn some_do_where_the_rest_is_done_after_the_stop() {
    static STALE: AtomicU32 = AtomicU32::new(0);
    fn goes_on(_: &mut Settled, machine: &Standing<'_>) -> Stood {
        machine.stand();
        while machine.answer() == Answer::Pending {
            machine.is_late();
        }
        Stood::Clone
    }
    check(|| {
        runs_among_programs(goes_on, |device| {
            let stale = device.rng_restores() != device.hypervisor.restores();
            STALE.fetch_add(stale.into(), Relaxed);
        });
    });
    assert_ne!(STALE.load(Relaxed), 0);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_state_that_is_not_held_over_the_stop_may_be_that_of_a_task_that_stands() {
    check(|| {
        let device = Device::started(Hypervisor::with_counter(0));
        let cpus = Arc::new(Cpus::new(()));
        let (other, theirs) = (device.clone(), cpus.clone());
        let program = thread::spawn(move || other.preempted_with_the_state(&theirs));
        device.fork_point_without_the_state(&cpus);
        program.join().unwrap();
    });
}
