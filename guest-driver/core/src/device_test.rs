// SPDX-License-Identifier: GPL-2.0

//! The lock around the watchers, and who is woken, in any order of the threads. A lost wake-up shows as
//! a deadlock, which the checker reports.

use shuttle::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use crate::test_device::{Device, Failure, Shared, check};
use crate::test_hypervisor::Hypervisor;

/// Starts a thread that does something with the device.
fn spawn<T: Send + 'static>(
    device: &Arc<Device>,
    what: impl FnOnce(&Device) -> T + Send + 'static,
) -> JoinHandle<T> {
    let device = device.clone();
    thread::spawn(move || what(&device))
}

/// As [`spawn`], with a watcher.
fn spawn_with<T: Send + 'static>(
    device: &Arc<Device>,
    watcher: &Shared,
    what: impl FnOnce(&Device, &Shared) -> T + Send + 'static,
) -> JoinHandle<T> {
    let watcher = watcher.clone();
    spawn(device, move |device| what(device, &watcher))
}

/// A restore, and the notification some time after.
fn restore_and_notify(device: &Device) {
    device.hypervisor.restore();
    device.settle();
}

/// Reads and acknowledges until an acknowledgement is taken; returns the counter.
fn adapt(device: &Device, watcher: &Shared) -> u32 {
    loop {
        let counter = device.read(watcher);
        if device.acknowledge(watcher, counter).is_ok() {
            return counter;
        }
    }
}

fn readers_wake(hypervisor: Hypervisor, begin: fn(&Device)) {
    let device = Device::started(hypervisor);
    let watchers = [device.open(true), device.open(false)];
    let readers = watchers.map(|watcher| spawn_with(&device, &watcher, Device::read));
    let beginner = spawn(&device, begin);
    for reader in readers {
        assert_ne!(reader.join().unwrap(), 0);
    }
    beginner.join().unwrap();
}

#[test]
fn readers_wake_when_the_hypervisor_has_restored_the_machine() {
    check(|| readers_wake(Hypervisor::with_counter(0), restore_and_notify));
    check(|| readers_wake(Hypervisor::with_id_only(0), restore_and_notify));
}

#[test]
fn readers_wake_when_a_generation_is_requested() {
    check(|| {
        readers_wake(Hypervisor::with_counter(0), |device| {
            device.force(0).unwrap();
        });
    });
}

#[test]
fn waiting_ends_well_when_all_have_acknowledged_or_gone() {
    check(|| {
        let device = Device::started(Hypervisor::with_counter(0));
        let waiter = device.open(true);
        let watchers = [(); 4].map(|()| device.open(true));
        device.force(0).unwrap();
        let [first, second, closing, leaving] = &watchers;
        let threads = [
            spawn_with(&device, first, |device, me| {
                adapt(device, me);
            }),
            spawn_with(&device, second, |device, me| {
                adapt(device, me);
            }),
            spawn_with(&device, closing, Device::close),
            spawn_with(&device, leaving, |device, me| device.track(me, false)),
        ];
        adapt(&device, &waiter);
        assert_eq!(device.wait(&waiter), Ok(()));
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(device.wait(&waiter), Ok(()));
    });
}

/// Adapts until the counter is `last`.
fn adapt_until(device: &Device, watcher: &Shared, last: u32) {
    while adapt(device, watcher) != last {}
}

/// As an orchestrator does: adapts, waits for the others, and begins anew when interrupted.
fn orchestrate(device: &Device, watcher: &Shared) {
    loop {
        adapt(device, watcher);
        if device.wait(watcher).is_ok() {
            return;
        }
    }
}

fn all_adapt_twice(hypervisor: Hypervisor, last: u32) {
    let device = Device::started(hypervisor);
    let waiters = [device.open(true), device.open(false)];
    let watchers = [(); 3].map(|()| device.open(true));
    device.force(0).unwrap();
    let [first, second, closing] = &watchers;
    let threads = [
        spawn_with(&device, first, move |device, me| {
            adapt_until(device, me, last)
        }),
        spawn_with(&device, second, move |device, me| {
            adapt_until(device, me, last)
        }),
        spawn_with(&device, closing, Device::close),
        spawn_with(&device, &waiters[1], orchestrate),
        // The one orchestrator that waits is not to wait for the other, who may have finished.
        spawn_with(&device, &waiters[0], |device, me| {
            device.track(me, false);
            orchestrate(device, me);
        }),
    ];
    restore_and_notify(&device);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn nobody_sleeps_for_ever_when_a_restore_comes_while_all_adapt() {
    // A request, the restore, and the driver's own step after it.
    check(|| all_adapt_twice(Hypervisor::with_counter(0), 3));
    check(|| all_adapt_twice(Hypervisor::with_id_only(0), 2));
}

#[test]
fn waiting_is_interrupted_when_a_generation_begins() {
    check(|| {
        let device = Device::started(Hypervisor::with_counter(0));
        let (waiter, _idle) = (device.open(true), device.open(true));
        device.force(0).unwrap();
        adapt(&device, &waiter);
        let waiting = spawn_with(&device, &waiter, Device::wait);
        restore_and_notify(&device);
        assert_eq!(waiting.join().unwrap(), Err(Failure::Outdated));
    });
}

/// Once the machine has been restored no call that begins acts on the generation before.
fn no_stale_answer(hypervisor: Hypervisor) {
    let device = Device::started(hypervisor);
    let watcher = device.open(true);
    let restorer = spawn(&device, |device| {
        device.hypervisor.restore();
        device.hypervisor.restore();
    });
    // The latest restore that the watcher can have adapted to.
    let mut adapted_to = 0;
    for _ in 0..3 {
        let before = device.hypervisor.restores();
        let (outdated, counter) = device.look(&watcher);
        assert!(outdated || before <= adapted_to, "looks up to date");
        let looked = device.hypervisor.restores();
        let restored = device.hypervisor.restores();
        if device.acknowledge(&watcher, counter).is_ok() {
            assert_eq!(looked, restored, "an older generation was acknowledged");
            adapted_to = device.hypervisor.restores();
        }
    }
    restorer.join().unwrap();
}

#[test]
fn no_call_acts_on_the_generation_before_a_restore() {
    check(|| no_stale_answer(Hypervisor::with_counter(0)));
    check(|| no_stale_answer(Hypervisor::with_id_only(0)));
}

/// A reader that was there before the backend: it is told of a counter that is new to it when the
/// generator has been reseeded in that counter's generation, however late the restore comes.
#[test]
fn whoever_was_there_before_the_backend_is_told_after_the_reseeding() {
    check(|| {
        let device = Device::new(Hypervisor::with_counter(0));
        let watcher = device.open(true);
        let reader = spawn_with(&device, &watcher, |device, me| {
            device.read(me);
            device.rng_restores()
        });
        let starter = spawn(&device, |device| device.start());
        restore_and_notify(&device);
        starter.join().unwrap();
        device.settle();
        assert_eq!(reader.join().unwrap(), 1);
    });
}

/// An agent adapts and says so; its word is taken when the second reseeding is done.
fn an_agent(device: &Device, watcher: &Shared) -> u32 {
    loop {
        let counter = adapt(device, watcher);
        match device.ready(watcher, counter) {
            Ok(()) => return counter,
            Err(failure) => assert_eq!(failure, Failure::Stale),
        }
    }
}

fn an_agent_is_ready(hypervisor: Hypervisor) {
    let device = Device::started(hypervisor);
    let agent = device.open(true);
    device.hypervisor.restore();
    let kernel = spawn(&device, |device| {
        for _ in 0..4 {
            device.settle();
            device.follow();
        }
    });
    let agent = spawn_with(&device, &agent, an_agent);
    let restorer = spawn(&device, restore_and_notify);
    restorer.join().unwrap();
    kernel.join().unwrap();
    device.follow();
    agent.join().unwrap();
    // Of two restores the agent has answered the first or the last one.
    let numbers = device.numbers();
    assert!(numbers.ready <= 1 && numbers.required <= 1);
    assert_eq!(numbers.ready + numbers.required, 1);
}

#[test]
fn an_agents_word_is_taken_after_the_second_reseeding_of_its_generation() {
    check(|| an_agent_is_ready(Hypervisor::with_counter(0)));
    check(|| an_agent_is_ready(Hypervisor::with_id_only(0)));
}

#[test]
fn an_agent_that_dies_has_not_adapted_until_another_one_has() {
    check(|| {
        let device = Device::started(Hypervisor::with_counter(0));
        let killed = device.open(true);
        device.follow();
        device.force(0).unwrap();
        let dying = spawn_with(&device, &killed, Device::close);
        let looking = spawn(&device, |device| assert_eq!(device.numbers().required, 1));
        dying.join().unwrap();
        looking.join().unwrap();
        let next = device.open(true);
        assert_eq!(device.numbers().required, 1);
        device
            .ready(&next, device.look(&next).1)
            .unwrap_or_else(|_| panic!("refused"));
        let numbers = device.numbers();
        assert_eq!((numbers.required, numbers.ready), (0, 1));
        // Its successor is the same agent once more.
        device.close(&next);
        let again = device.open(true);
        device
            .ready(&again, device.look(&again).1)
            .unwrap_or_else(|_| panic!("refused"));
        assert_eq!(device.numbers().ready, 1);
    });
}

#[test]
fn a_member_of_the_chain_may_begin_a_generation() {
    check(|| {
        let device = Device::with_chain(Hypervisor::with_counter(0), true);
        device.start();
        let watcher = device.open(true);
        let kernel = spawn(&device, Device::follow);
        restore_and_notify(&device);
        kernel.join().unwrap();
        device.follow();
        assert!(device.look(&watcher).0);
        assert_eq!(device.told_chained(), 1);
    });
}
