// SPDX-License-Identifier: GPL-2.0

//! The hypervisor's generations become the counter's, wherever restores come in between.

use shuttle::thread;

use crate::sysgenid_settle::Machine;
use crate::test_device::{Device, Failure, check};
use crate::test_hypervisor::Hypervisor;

fn settles(hypervisor: Hypervisor) {
    let device = Device::started(hypervisor);
    let watcher = device.open(true);
    let run = |what: fn(&Device)| {
        let device = device.clone();
        thread::spawn(move || what(&device))
    };
    let settler = |device: &Device| {
        device.settle();
        device.settle();
    };
    let threads = [
        run(settler),
        run(settler),
        run(|device| {
            device.hypervisor.restore();
            device.hypervisor.restore();
        }),
        run(|device| assert!(matches!(device.force(0), Ok(()) | Err(Failure::AtEnd)))),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    // The notification of the last restore.
    device.settle();
    device.check_settled();
    assert!(device.look(&watcher).0, "not told");
}

#[test]
fn the_watchers_are_told_of_the_last_restore_after_the_reseeding_in_it() {
    check(|| settles(Hypervisor::with_counter(0)));
    check(|| settles(Hypervisor::with_id_only(0)));
}

#[test]
fn a_counter_that_wraps_is_settled_as_any() {
    check(|| settles(Hypervisor::with_counter(u32::MAX - 1)));
    check(|| settles(Hypervisor::with_id_only(u32::MAX - 1)));
}

#[test]
fn programs_are_shown_the_counter_of_the_generation_that_was_reseeded_in() {
    check(|| {
        let device = Device::new(Hypervisor::with_counter(0));
        let restorer = {
            let device = device.clone();
            thread::spawn(move || device.hypervisor.restore())
        };
        // Only restores move the counter here: it is their number.
        let (counter, reseeded_in) = device.start();
        assert_eq!(counter, reseeded_in, "shown, reseeded in");
        restorer.join().unwrap();
        device.settle();
        assert_eq!(device.rng_restores(), device.hypervisor.restores());
    });
}

#[test]
fn a_restore_whose_notification_comes_before_the_start_is_told_by_it() {
    check(|| {
        let device = Device::new(Hypervisor::with_counter(0));
        let restored = {
            let device = device.clone();
            thread::spawn(move || {
                device.hypervisor.restore();
                device.settle();
            })
        };
        device.start();
        restored.join().unwrap();
        // Whoever sleeps until he is told does not look at the hypervisor. The driver's step is added
        // unless the counter was shown first when the restore had moved it.
        let told = device.told();
        assert!((1..=2).contains(&told) && told == device.counter());
        assert_eq!(device.rng_restores(), 1);
    });
}
