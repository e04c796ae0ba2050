//! Clones of clones, and snapshots that are written over while clones run from them.

use vmgenie_api::wire::GenerationChoice;
use vmgenie_tests::process::open_files;
use vmgenie_tests::tiny::{self, Memory, echo};
use vmgenie_tests::{Snapshot, Vm};

#[test]
fn a_clone_of_a_clone_of_a_clone_has_what_each_of_them_wrote() {
    let mut original = tiny::boot("echo touch=2");
    echo(&mut original, "one-");
    let mut snapshot = original.snapshot();
    for (generation, text) in ["two-", "three-", "four-"].into_iter().enumerate() {
        let mut clone = Vm::restore(&snapshot);
        echo(&mut clone, text);
        // The clone's parent may go.
        snapshot = clone.snapshot();
        assert_eq!(Memory::of(&snapshot).touched_mib(), 2, "clone {generation}");
    }
    assert_eq!(Memory::of(&snapshot).kept(), "one-two-three-four-");
    original.client.resume().unwrap();
    echo(&mut original, "alone");
    assert_eq!(Memory::of(&original.snapshot()).kept(), "one-alone");
}

#[test]
fn a_generation_knows_those_that_came_before_it() {
    let mut original = tiny::boot("echo");
    let of = |vm: &mut Vm| {
        let generation = tiny::generation(vm);
        (generation.id, generation.ancestors)
    };
    let (first, before) = of(&mut original);
    assert_eq!(before, [""; 0]);
    let snapshot = original.snapshot();
    original.kill();
    // Its original is gone, and the snapshot was copied and may lie anywhere.
    let copied = Snapshot::new();
    for (from, to) in [
        (snapshot.state(), copied.state()),
        (snapshot.memory(), copied.memory()),
    ] {
        std::fs::copy(from, to).unwrap();
    }
    let mut clone = Vm::restore(&copied);
    let (second, before) = of(&mut clone);
    assert_eq!(before, std::slice::from_ref(&first));
    // The same machine in another generation, and one that keeps it.
    clone.client.new_generation().unwrap();
    let (third, before) = of(&mut clone);
    assert_eq!(before, [first.clone(), second.clone()]);
    let snapshot = clone.snapshot();
    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(of(&mut kept), (third.clone(), before));
    let mut grandchild = Vm::restore(&snapshot);
    assert_eq!(of(&mut grandchild).1, [first, second, third]);
}

#[test]
fn clones_of_one_snapshot_write_apart() {
    let mut original = tiny::boot("echo");
    echo(&mut original, "common-");
    let snapshot = original.snapshot();
    let before = std::fs::read(snapshot.memory()).unwrap();
    let mut clones = [
        Vm::restore(&snapshot),
        Vm::restore(&snapshot),
        Vm::restore(&snapshot),
    ];
    for (clone, text) in clones.iter_mut().zip(["a", "bb", "ccc"]) {
        echo(clone, text);
    }
    for (clone, text) in clones.iter_mut().zip(["a", "bb", "ccc"]) {
        assert_eq!(
            Memory::of(&clone.snapshot()).kept(),
            format!("common-{text}")
        );
    }
    assert!(
        before == std::fs::read(snapshot.memory()).unwrap(),
        "the snapshot is as it was"
    );
}

#[test]
fn a_clone_keeps_its_memory_when_its_snapshot_is_written_over() {
    let place = Snapshot::new();
    let mut first = tiny::boot("echo touch=4");
    echo(&mut first, "first");
    first.client.pause().unwrap();
    place.create(&mut first.client);
    // Restored and not run far: almost nothing of its memory has been read from the file yet.
    let mut clone = Vm::restore(&place);

    let mut second = tiny::boot("echo touch=1");
    echo(&mut second, "second");
    second.client.pause().unwrap();
    place.create(&mut second.client);
    assert_eq!(Memory::of(&place).kept(), "second");

    echo(&mut clone, "-clone");
    let memory = Memory::of(&clone.snapshot());
    assert_eq!(
        (memory.kept().as_str(), memory.touched_mib()),
        ("first-clone", 4)
    );
    // A clone may even write over the snapshot that it runs from.
    place.create(&mut clone.client);
    let memory = Memory::of(&place);
    assert_eq!(
        (memory.kept().as_str(), memory.touched_mib()),
        ("first-clone", 4)
    );
    let mut again = Vm::restore(&place);
    echo(&mut again, "!"); // the guest has its registers, too: it crashes at this
    assert_eq!(again.wait_status(tiny::LIMIT).code(), Some(3));
}

#[test]
fn many_snapshots_and_restores_leave_no_open_file() {
    let mut vm = tiny::boot("touch=1");
    vm.client.pause().unwrap();
    let place = Snapshot::new();
    place.create(&mut vm.client);
    let before = open_files(vm.pid());
    for _ in 0..30 {
        place.create(&mut vm.client);
    }
    assert_eq!(open_files(vm.pid()), before);
}
