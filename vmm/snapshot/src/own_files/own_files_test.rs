use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::time::{Duration, Instant};

use super::*;
use crate::not_looked_at::not_looked_at;

const NOBODY: u32 = 65534;

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Gives a file away, or the link itself, if the tests run as the superuser.
fn give_away(path: &std::path::Path) -> bool {
    let given = lchown(path, Some(NOBODY), Some(NOBODY)).is_ok();
    if !given {
        not_looked_at("only root may give files away");
    }
    given
}

#[test]
fn a_directory_that_was_made_is_its_owners_alone() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a/b");
    let dir = OwnDir::make(&path).unwrap();
    assert_eq!((mode(&path), mode(&place.path().join("a"))), (0o700, 0o700));
    dir.remove_if_made();
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    OwnDir::make(&path).unwrap().remove_if_made();
    assert!(path.exists());
}

#[test]
fn a_directory_of_somebody_elses_or_for_all_is_not_trusted() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("dir");
    fs::create_dir(&path).unwrap();
    for (mode, good) in [
        (0o755, true),
        (0o775, false),
        (0o757, false),
        (0o1777, true),
    ] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let made = OwnDir::make(&path);
        let fits = match &made {
            Ok(_) => good,
            Err(error) => !good && matches!(error, TrustError::Writable { .. }),
        };
        assert!(fits, "{mode:o}: {made:?}");
    }
    if give_away(&path) {
        let error = OwnDir::make(&path).unwrap_err();
        assert!(
            matches!(error, TrustError::Owner { uid: NOBODY, .. }),
            "{error}"
        );
    }
}

#[test]
fn nothing_is_made_below_a_directory_that_somebody_else_can_exchange() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("m/snap")).unwrap();
    fs::write(at("m/snap/file"), "").unwrap();
    symlink("file", at("m/snap/link")).unwrap();
    let refused = |is_it: fn(&TrustError) -> bool| {
        let results = [
            OwnDir::make(&at("m/snap")).map(drop),
            OwnDir::make(&at("m/new/dir")).map(drop),
            OwnDir::make_new(&at("m/snap/new")).map(drop),
            OwnDir::open(&at("m/snap")).map(drop),
            follow(&at("m/snap/link")).map(drop),
        ];
        for result in results {
            let error = result.unwrap_err();
            assert!(is_it(&error), "{error}");
        }
        assert!(!at("m/new").exists() && !at("m/snap/new").exists());
    };
    fs::set_permissions(at("m"), Permissions::from_mode(0o777)).unwrap();
    refused(|error| matches!(error, TrustError::Writable { .. }));
    fs::set_permissions(at("m"), Permissions::from_mode(0o755)).unwrap();
    OwnDir::make(&at("m/snap")).unwrap();
    follow(&at("m/snap/link")).unwrap();
    if give_away(&at("m")) {
        refused(|error| matches!(error, TrustError::Above { uid: NOBODY, .. }));
    }
}

#[test]
fn a_link_or_a_file_is_no_directory() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("real")).unwrap();
    symlink(at("real"), at("link")).unwrap();
    symlink(at("nothing"), at("dangling")).unwrap();
    fs::write(at("file"), "").unwrap();
    for name in ["link", "link/", "dangling"] {
        let error = OwnDir::make(&at(name)).unwrap_err();
        assert!(matches!(error, TrustError::Link(_)), "{name}: {error}");
    }
    let error = OwnDir::make(&at("file")).unwrap_err();
    assert!(matches!(error, TrustError::NotADirectory(_)), "{error}");
}

#[test]
fn a_file_of_ours_is_appended_to_and_no_other() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let dir = OwnDir::open(place.path()).unwrap();
    let append = |name: &str| dir.append(OsStr::new(name));
    assert!(append("log").unwrap().1);
    fs::write(at("log"), "old").unwrap();
    fs::set_permissions(at("log"), Permissions::from_mode(0o644)).unwrap();
    let (mut file, made) = append("log").unwrap();
    std::io::Write::write_all(&mut file, b" new").unwrap();
    assert_eq!((made, mode(&at("log"))), (false, 0o600));
    assert_eq!(fs::read(at("log")).unwrap(), b"old new");

    fs::write(at("canary"), "mine").unwrap();
    symlink(at("canary"), at("link")).unwrap();
    fs::hard_link(at("canary"), at("hard")).unwrap();
    rustix::fs::mknodat(
        dir.file(),
        "pipe",
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    fs::create_dir(at("dir")).unwrap();
    for name in ["link", "hard", "pipe", "dir"] {
        append(name).expect_err(name);
    }
    fs::write(at("planted"), "").unwrap();
    if give_away(&at("planted")) {
        append("planted").unwrap_err();
    }
}

#[test]
fn a_file_that_has_taken_the_name_is_not_removed() {
    let place = tempfile::tempdir().unwrap();
    let dir = OwnDir::open(place.path()).unwrap();
    let name = OsStr::new("log");
    let identity = |file: fs::File| {
        let metadata = file.metadata().unwrap();
        (metadata.dev(), metadata.ino())
    };
    let first = identity(dir.append(name).unwrap().0);
    fs::rename(place.path().join("log"), place.path().join("kept")).unwrap();
    let second = identity(dir.append(name).unwrap().0);
    dir.remove(name, first);
    assert!(place.path().join("log").exists());
    dir.remove(name, second);
    assert!(!place.path().join("log").exists());
}

#[test]
fn links_are_followed_where_nobody_else_could_put_them() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    symlink("dir/second", at("first")).unwrap();
    symlink("../file", at("dir/second")).unwrap();
    let end = fs::canonicalize(place.path()).unwrap().join("file");
    fs::write(at("file"), "").unwrap();
    assert_eq!(
        fs::canonicalize(follow(&at("first")).unwrap()).unwrap(),
        end
    );
    assert_eq!(follow(&at("nothing")).unwrap(), at("nothing"));
    fs::set_permissions(at("dir"), Permissions::from_mode(0o777)).unwrap();
    let error = follow(&at("first")).unwrap_err();
    assert!(matches!(error, TrustError::Writable { .. }), "{error}");
    // There only the link's owner can exchange it.
    fs::set_permissions(at("dir"), Permissions::from_mode(0o1777)).unwrap();
    follow(&at("first")).unwrap();
    if give_away(&at("dir/second")) {
        let error = follow(&at("first")).unwrap_err();
        assert!(matches!(error, TrustError::Owner { .. }), "{error}");
    }
    symlink("round", at("round")).unwrap();
    follow(&at("round")).unwrap_err();
}

#[test]
fn lines_go_to_no_file_that_somebody_else_has_put_into_a_directory_for_all() {
    open_append("/dev/stdout".as_ref()).unwrap();
    open_append("/dev/stderr".as_ref()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("log");
    open_append(&log).unwrap();
    assert_eq!(mode(&log), 0o600);
    let link = place.path().join("link");
    symlink("new", &link).unwrap();
    open_append(&link).unwrap();
    assert!(place.path().join("new").exists());
    fs::set_permissions(place.path(), Permissions::from_mode(0o1777)).unwrap();
    open_append(&log).unwrap();
    if give_away(&log) {
        let error = open_append(&log).unwrap_err().to_string();
        assert!(error.contains("another user"), "{error}");
        // In a directory of ours we, or whom we let, have put it there.
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        open_append(&log).unwrap();
    }
}

#[test]
fn a_lock_is_held_by_one_who_is_told_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let dir = OwnDir::open(place.path()).unwrap();
    let locked = lock(dir.file(), Purpose::Snapshots, Duration::ZERO).unwrap();
    assert!(is_locked_name(dir.file(), Purpose::Snapshots));
    let error = lock(dir.file(), Purpose::Snapshots, Duration::from_millis(5)).unwrap_err();
    let this = std::process::id().to_string();
    assert!(error.to_string().contains(&this), "{error}");
    // For something else it is free.
    drop(lock(dir.file(), Purpose::Clones, Duration::ZERO).unwrap());
    drop(locked);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    drop(lock(dir.file(), Purpose::Snapshots, Duration::ZERO).unwrap());
}

#[test]
fn a_lock_excludes_while_its_file_comes_and_goes() {
    let place = tempfile::tempdir().unwrap();
    let inside = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let dir = OwnDir::open(place.path()).unwrap();
                    let patience = Duration::from_secs(60);
                    let _lock = lock(dir.file(), Purpose::Snapshots, patience).unwrap();
                    let order = std::sync::atomic::Ordering::SeqCst;
                    assert_eq!(inside.fetch_add(1, order), 0);
                    inside.fetch_sub(1, order);
                }
            });
        }
    });
}

#[test]
fn a_lock_that_others_could_hold_is_no_lock() {
    let place = tempfile::tempdir().unwrap();
    let dir = OwnDir::open(place.path()).unwrap();
    let path = place.path().join(Purpose::Sockets.file_name());
    let refused = |what: &str| {
        let begun = Instant::now();
        let error = lock(dir.file(), Purpose::Sockets, Duration::from_secs(9)).unwrap_err();
        assert!(matches!(error, LockError::NotOurs(_)), "{what}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
    };
    symlink("/dev/null", &path).unwrap();
    refused("a link");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    refused("for all to read");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    if give_away(&path) {
        refused("somebody else's");
    }
    fs::remove_file(&path).unwrap();
    // Who may read the directory can lock that, and nothing comes of it.
    let held = fs::File::open(place.path()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(lock(dir.file(), Purpose::Sockets, Duration::ZERO).unwrap());
}
