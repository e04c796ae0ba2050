use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::super::test_support::{Label, Mapping, PAGE, Place, create, load, names};
use super::super::{LoadError, MemoryFileError, StateWriter, open_snapshot};
use super::*;
use crate::end_request::told_to_end;

#[test]
fn a_snapshot_is_loaded_as_it_was_created() {
    for apart in [false, true] {
        let place = Place::new(apart);
        let id = create(&place.state, &place.memory, 1).unwrap();
        assert_eq!(load(&place.state, &place.memory).unwrap(), 1);
        assert_eq!(open_snapshot(&place.state, &place.memory).unwrap().id, id);
        place.assert_only_snapshot();
    }
}

#[test]
fn both_files_are_their_owners_alone() {
    let place = Place::new(false);
    create(&place.state, &place.memory, 1).unwrap();
    for path in [&place.state, &place.memory] {
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn nothing_is_seen_before_the_snapshot_is_published() {
    let place = Place::new(false);
    let memory = Mapping::anonymous(PAGE);
    let mut staging = Staging::new(&place.state, &place.memory).unwrap();
    staging.write_memory(&[memory.source(0)]).unwrap();
    assert!(place.files().is_empty(), "{:?}", place.files());
    drop(staging);
    assert!(place.files().is_empty());
}

#[test]
fn who_is_told_to_end_publishes_nothing_and_leaves_nothing() {
    let place = Place::new(false);
    let old = create(&place.state, &place.memory, 1).unwrap();
    told_to_end(|| create(&place.state, &place.memory, 2)).unwrap_err();
    // Also when all is written, and in the last instant.
    let memory = Mapping::anonymous(PAGE);
    let mut staging = Staging::new(&place.state, &place.memory).unwrap();
    staging.write_memory(&[memory.source(0)]).unwrap();
    let state = StateWriter::new(staging.id(), PAGE as u64)
        .finish()
        .unwrap();
    staging.write_state(&state).unwrap();
    assert!(told_to_end(|| staging.sync()).is_err());
    staging.sync().unwrap();
    assert!(matches!(
        told_to_end(|| staging.publish()),
        Err(CreateError::Publish { .. })
    ));
    assert_eq!(open_snapshot(&place.state, &place.memory).unwrap().id, old);
    place.assert_only_snapshot();
}

#[test]
fn a_clone_that_runs_from_a_replaced_snapshot_keeps_its_memory() {
    let place = Place::new(false);
    create(&place.state, &place.memory, 1).unwrap();
    let old = open_snapshot(&place.state, &place.memory).unwrap();
    let clone = Mapping::of(&old.memory, old.memory_length as usize);
    create(&place.state, &place.memory, 2).unwrap();
    assert!(clone.bytes().iter().all(|byte| *byte == 1));
    assert_eq!(load(&place.state, &place.memory).unwrap(), 2);
}

#[test]
fn a_snapshot_of_a_clone_may_replace_the_one_that_it_runs_from() {
    let place = Place::new(false);
    create(&place.state, &place.memory, 1).unwrap();
    let old = open_snapshot(&place.state, &place.memory).unwrap();
    let mut clone = Mapping::of(&old.memory, old.memory_length as usize);
    clone.page(2).fill(9);
    let sources = [clone.source(0).over(&old.memory, 0).unwrap()];
    let mut staging = Staging::new(&place.state, &place.memory).unwrap();
    staging.copy_base(&sources).unwrap();
    let written = staging.write_memory(&sources).unwrap();
    assert_eq!(written.written, PAGE as u64);
    let state = StateWriter::new(staging.id(), written.memory_length)
        .finish()
        .unwrap();
    staging.write_state(&state).unwrap();
    staging.sync().unwrap();
    staging.publish().unwrap();
    let new = open_snapshot(&place.state, &place.memory).unwrap();
    let restored = Mapping::of(&new.memory, new.memory_length as usize);
    assert_eq!(restored.bytes(), clone.bytes());
    place.assert_only_snapshot();
}

#[test]
fn a_step_out_of_its_order_is_refused() {
    let place = Place::new(false);
    let memory = Mapping::anonymous(PAGE);
    let begin = || Staging::new(&place.state, &place.memory).unwrap();
    let sources = [memory.source(0)];
    let refused = |result: Result<(), CreateError>| {
        assert!(
            matches!(result, Err(CreateError::OutOfOrder(_))),
            "{result:?}"
        );
    };
    refused(begin().write_state(&[]));
    refused(begin().sync());
    refused(begin().publish());
    let mut staging = begin();
    staging.write_memory(&sources).unwrap();
    refused(staging.copy_base(&sources));
    refused(staging.write_memory(&sources).map(drop));
}

#[test]
fn the_state_of_another_snapshot_or_memory_size_is_not_published() {
    let place = Place::new(false);
    let memory = Mapping::anonymous(PAGE);
    let mut staging = Staging::new(&place.state, &place.memory).unwrap();
    staging.write_memory(&[memory.source(0)]).unwrap();
    let other = SnapshotId::generate().unwrap();
    for (id, length) in [(other, PAGE as u64), (staging.id(), 2 * PAGE as u64)] {
        let bytes = StateWriter::new(id, length).finish().unwrap();
        let error = staging.write_state(&bytes).unwrap_err();
        assert!(matches!(error, CreateError::ForeignState(_)), "{error}");
    }
    let error = staging.write_state(b"no state").unwrap_err();
    assert!(matches!(error, CreateError::BadState { .. }), "{error}");
}

#[test]
fn a_symbolic_link_stays_and_the_file_behind_it_is_replaced() {
    let (place, links) = (Place::new(false), TempDir::new().unwrap());
    create(&place.state, &place.memory, 1).unwrap();
    let link = |name: &str, to: &Path| {
        let link = links.path().join(name);
        std::os::unix::fs::symlink(to, &link).unwrap();
        link
    };
    let (state, memory) = (link("state", &place.state), link("memory", &place.memory));
    create(&state, &memory, 2).unwrap();
    assert!(fs::symlink_metadata(&state).unwrap().is_symlink());
    assert_eq!(load(&place.state, &place.memory).unwrap(), 2);
    assert_eq!(load(&state, &memory).unwrap(), 2);
    assert_eq!(names(links.path()).len(), 2);
    place.assert_only_snapshot();
}

#[test]
fn a_target_that_became_a_directory_meanwhile_leaves_the_old_snapshot_whole() {
    let place = Place::new(true);
    create(&place.state, &place.memory, 1).unwrap();
    let mapping = Mapping::anonymous(PAGE);
    let mut staging = Staging::new(&place.state, &place.memory).unwrap();
    staging.write_memory(&[mapping.source(0)]).unwrap();
    let bytes = StateWriter::new(staging.id(), PAGE as u64)
        .finish()
        .unwrap();
    staging.write_state(&bytes).unwrap();
    staging.sync().unwrap();
    let kept = place.directories[1].path().join("kept");
    fs::rename(&place.memory, &kept).unwrap();
    fs::create_dir(&place.memory).unwrap();
    let error = staging.publish().unwrap_err();
    assert!(matches!(error, CreateError::Publish { .. }), "{error}");
    assert_eq!(load(&place.state, &kept).unwrap(), 1);
    assert_eq!(place.files(), ["kept", "vm.memory", "vm.state"]);
}

#[test]
fn the_memory_of_another_snapshot_is_never_paired() {
    let (one, two) = (Place::new(false), Place::new(false));
    create(&one.state, &one.memory, 1).unwrap();
    create(&two.state, &two.memory, 2).unwrap();
    let error = load(&one.state, &two.memory).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Memory {
                source: MemoryFileError::OtherSnapshot { .. },
                ..
            }
        ),
        "{error}"
    );
    fs::remove_file(&one.memory).unwrap();
    let error = load(&one.state, &one.memory).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Memory {
                source: MemoryFileError::Missing,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn two_states_beside_one_memory_file_do_not_sweep_each_other() {
    // A create for `vm.state` died between its renames; then one for another state file and the
    // same memory file begins, and fails.
    let place = Place::new(false);
    create(&place.state, &place.memory, 1).unwrap();
    let id = open_snapshot(&place.state, &place.memory).unwrap().id;
    let targets = Targets::resolve(&place.state, &place.memory).unwrap();
    let staged = targets
        .memory
        .sibling(&targets.staged_name(&targets.memory, id));
    fs::rename(&place.memory, &staged).unwrap();
    let other = place.directories[0].path().join("other.state");
    drop(Staging::new(&other, &place.memory).unwrap());
    assert_eq!(load(&place.state, &place.memory).unwrap(), 1);
    place.assert_only_snapshot();
}

#[test]
fn files_that_only_look_staged_are_left_alone() {
    let place = Place::new(false);
    let directory = place.directories[0].path();
    let names = [
        ".vm.state.staged",
        ".vm.memory.0123.4567.staged",
        ".vm.state.part",
    ];
    for name in names {
        fs::write(directory.join(name), "mine").unwrap();
    }
    create(&place.state, &place.memory, 1).unwrap();
    assert_eq!(place.files().len(), names.len() + 2);
}

#[test]
fn concurrent_creators_and_loaders_never_see_a_mix() {
    for apart in [false, true] {
        let place = Place::new(apart);
        create(&place.state, &place.memory, 0).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let creators: Vec<_> = (1..=4_u8)
                .map(|number| {
                    let place = &place;
                    scope.spawn(move || {
                        for round in 0..8 {
                            create(&place.state, &place.memory, number * 16 + round).unwrap();
                        }
                    })
                })
                .collect();
            let loader = scope.spawn(|| {
                let mut loads = 0;
                while !done.load(Ordering::Relaxed) {
                    load(&place.state, &place.memory).unwrap();
                    loads += 1;
                }
                loads
            });
            for creator in creators {
                creator.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(loader.join().unwrap() > 0);
        });
        load(&place.state, &place.memory).unwrap();
        place.assert_only_snapshot();
    }
}

#[test]
fn a_label_is_not_lost() {
    // The helper that the other tests rely on does see a mix.
    let place = Place::new(false);
    let mapping = Mapping::anonymous(PAGE);
    let mut staging = Staging::new(&place.state, &place.memory).unwrap();
    staging.write_memory(&[mapping.source(0)]).unwrap();
    let mut writer = StateWriter::new(staging.id(), PAGE as u64);
    writer.part(&Label(5)).unwrap();
    staging.write_state(&writer.finish().unwrap()).unwrap();
    staging.sync().unwrap();
    staging.publish().unwrap();
    std::panic::catch_unwind(|| load(&place.state, &place.memory)).expect_err("a mix");
}

/// `cargo test --release -- --ignored --nocapture measure`
#[test]
#[ignore = "measures; says nothing about being right"]
fn measure_opening_a_snapshot() {
    use super::super::test_support::create_sized;

    let place = Place::new(false);
    create_sized(&place.state, &place.memory, 1, 64, 40 << 10).unwrap();
    let mut times: Vec<_> = (0..2000)
        .map(|_| {
            let start = std::time::Instant::now();
            let snapshot = open_snapshot(&place.state, &place.memory).unwrap();
            let elapsed = start.elapsed();
            drop(snapshot);
            elapsed
        })
        .collect();
    times.sort();
    println!(
        "opening a 40 KiB state: p50 {:?}, p99 {:?}",
        times[1000], times[1980]
    );
    let start = std::time::Instant::now();
    super::super::sweep(&place.state, &place.memory);
    println!("sweeping where nothing is left: {:?}", start.elapsed());
}
