//! A reseeding that began before the snapshot, and is ended after that of the clone.
//!
//! A module holds a task for 10 s where it has extracted a key for the kernel's random number generator. Meanwhile
//! the machine is snapshotted. In a clone the kernel is told of the fork and reseeds; then the task goes on,
//! with a key that all clones have.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vmgenie::api::wire::GenerationChoice;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, no_complaints, told};

const STATE: &str = "/sys/module/crng_delay/parameters/state";
const FORKED: &str = "dmesg | grep -c 'crng reseeded due to virtual machine fork' || true";

/// What two clones draw right after the task has gone on, and whether the kernel had reseeded for the fork before.
struct Clones {
    draws: [BTreeSet<String>; 2],
    forked_first: bool,
}

/// Makes two clones of a machine in which a reseeding is held in the middle.
fn clones(guest: Guest, kernel: &str) -> Clones {
    let mut vm = Boot::new(guest).cpus(2).extras().ready();
    // Only a generator that has been seeded can be reseeded.
    vm.shell("dd if=/dev/random of=/dev/null bs=1 count=1 2> /dev/null");
    let symbol = vm.shell("grep -o 'extract_entropy[^ ]*$' /proc/kallsyms | head -n 1");
    vm.shell(&format!(
        "insmod /tests/{kernel}/crng_delay.ko task=sysgenid-test symbol={}",
        symbol.trim()
    ));
    // On our kernel the shell may have to wait for it, so it is the kernel that says so.
    vm.shell("(sleep 1; sysgenid-test late-reseed > /tmp/told 2>&1) &");
    vm.console.wait_for("crng_delay: held", LIMIT);
    let snapshot = vm.snapshot();
    drop(vm);
    let mut forked_first = true;
    let draws = [(); 2].map(|()| {
        let mut clone = Vm::restore_in(&[], &snapshot, GenerationChoice::New);
        forked_first &= forks_while_held(&mut clone);
        let text = told(&mut clone, "ok late-reseed");
        let drawn = text.lines().filter_map(|line| line.strip_prefix("drawn "));
        let drawn: BTreeSet<String> = drawn.map(str::to_owned).collect();
        assert_eq!(drawn.len(), 8, "{text}");
        assert_ne!(
            clone.shell(FORKED).trim(),
            "0",
            "the kernel was told of no fork"
        );
        no_complaints(&mut clone);
        drawn
    });
    Clones {
        draws,
        forked_first,
    }
}

/// Whether the kernel has reseeded for the fork and the task is still held after that.
fn forks_while_held(clone: &mut Vm) -> bool {
    let deadline = Instant::now() + LIMIT;
    loop {
        let forked = clone.shell(FORKED).trim() != "0";
        let held = clone.shell(&format!("cat {STATE}")).trim() == "1";
        if forked || !held {
            return forked && held;
        }
        assert!(Instant::now() < deadline, "the task is held for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The stock kernel has the fault: what shows that the next test would find it.
#[test]
fn on_the_stock_kernel_a_key_from_before_the_snapshot_undoes_the_reseeding_of_the_fork() {
    let clones = clones(Guest::Debian, "debian");
    assert!(
        clones.forked_first,
        "the task went on before the kernel reseeded"
    );
    let [one, other] = &clones.draws;
    assert_eq!(
        one, other,
        "the clones drew different bytes: if Debian's kernel has resources/kernel-patches now, so should this test"
    );
}

/// With the patch the task has the lock from before it extracts until its key is installed: the
/// reseeding of the fork waits for that, and comes after it.
#[test]
fn on_the_small_kernel_the_reseeding_of_the_fork_is_the_last() {
    let clones = clones(Guest::Small, "small");
    assert!(
        !clones.forked_first,
        "the kernel reseeded while the task held a key"
    );
    let [one, other] = &clones.draws;
    let equal: Vec<&String> = one.intersection(other).collect();
    assert!(equal.is_empty(), "drawn in both clones: {equal:?}");
}
