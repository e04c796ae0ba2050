//! Tests of what a guest gets that asks for snapshots of itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::{TempDir, tempdir};

use super::*;

fn rules(directory: &TempDir, count: u32, interval: Duration) -> SelfSnapshots {
    let config = SelfSnapshotConfig {
        directory: directory.path().to_owned(),
        count,
        interval,
        quiesce: Duration::from_secs(1),
    };
    SelfSnapshots::new(config).unwrap()
}

#[test]
fn a_guest_gets_so_many_and_each_into_a_directory_of_its_own() {
    let directory = tempdir().unwrap();
    let mut rules = rules(&directory, 2, Duration::ZERO);
    let now = Instant::now();
    for number in [1, 2] {
        // One of which nothing comes leaves its number to the next.
        for there in [false, true] {
            assert_eq!(rules.grant(now).unwrap(), number);
            rules.make_place(number).unwrap();
            let place = directory.path().join(number.to_string());
            let mode = fs::metadata(&place).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            assert_eq!(rules.request(number).state, place.join("state"));
            rules.end(SelfSnapshot { number, tag: 7 }, there);
            assert_eq!(place.exists(), there);
        }
    }
    assert!(matches!(rules.grant(now), Err(NoSelfSnapshot::TooMany(2))));
    assert_eq!(rules.taken.len(), 2);
}

#[test]
fn a_directory_that_is_there_is_somebody_elses_and_stays() {
    let directory = tempdir().unwrap();
    let mut rules = rules(&directory, 1, Duration::ZERO);
    let place = directory.path().join("1");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("state"), "mine").unwrap();
    let error = rules.make_place(1).unwrap_err();
    assert!(matches!(error, NoSelfSnapshot::Place(..)), "{error}");
    rules.end(SelfSnapshot { number: 1, tag: 7 }, false);
    assert_eq!(fs::read(place.join("state")).unwrap(), b"mine");
}

#[test]
fn a_guest_that_asks_too_soon_gets_none_and_waits_no_longer_for_it() {
    let directory = tempdir().unwrap();
    let interval = Duration::from_secs(10);
    let mut rules = rules(&directory, 9, interval);
    let begun = Instant::now();
    rules.grant(begun).unwrap();
    for after in [0, 1, 9] {
        let now = begun + Duration::from_secs(after);
        let refused = rules.grant(now).unwrap_err();
        let left = Duration::from_secs(10 - after);
        assert!(
            matches!(refused, NoSelfSnapshot::TooSoon(it) if it == left),
            "{refused}"
        );
    }
    rules.grant(begun + interval).unwrap();
}

#[test]
fn the_directory_is_made_and_has_to_be_one_of_ours() {
    let directory = tempdir().unwrap();
    let config = |name: &str| SelfSnapshotConfig {
        directory: directory.path().join(name),
        count: 1,
        interval: Duration::ZERO,
        quiesce: Duration::ZERO,
    };
    SelfSnapshots::new(config("new")).unwrap();
    assert!(directory.path().join("new").is_dir());
    fs::write(directory.path().join("file"), "").unwrap();
    SelfSnapshots::new(config("file")).unwrap_err();
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let error = SelfSnapshots::new(config("open")).unwrap_err();
    assert!(matches!(error, ConfigRefused::Directory(..)), "{error}");
}
