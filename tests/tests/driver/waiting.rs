//! The host asks whether a guest has adapted.

use std::time::Duration;

use vmgenie_api::wire::Missing;
use vmgenie_tests::{Guest, Vm};

use crate::{boot, no_complaints, start};

#[test]
fn the_host_learns_that_a_clone_has_adapted_or_which_watcher_has_not() {
    let mut vm = boot(Guest::Debian);
    assert!(vm.wait_adapted().adapted);
    // A watcher that adapts only when it is told to.
    start(
        &mut vm,
        "(exec 3<>/dev/sysgenid; echo ready; while [ ! -e /tmp/adapt ]; do sleep 0.1; done; dd bs=4 count=1 <&3 >&3; echo adapted; sleep 1000)",
    );
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::restore(&snapshot);
    clone.wait_missing(&[Missing::Watchers]);
    // And it stays so.
    let waited = clone.client.wait_for_generation(Duration::from_secs(3));
    let waited = waited.unwrap();
    assert_eq!(
        (waited.adapted, &waited.missing[..]),
        (false, &[Missing::Watchers][..])
    );
    let driver = clone.client.generation().unwrap().driver;
    assert_eq!(
        (driver.reseeded, driver.reached, driver.outdated_watchers),
        (true, true, 1)
    );
    clone.shell("touch /tmp/adapt");
    assert!(clone.wait_adapted().adapted);
    no_complaints(&mut clone);
}
