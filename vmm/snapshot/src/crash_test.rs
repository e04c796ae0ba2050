//! Creates that are killed, fail, or run out of space, each in a process of its own.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use super::super::test_support::{Place, create, create_sized, load, process};
use super::super::{fault, sweep};

const OLD: u8 = 1;
const NEW: u8 = 2;
const LATER: u8 = 3;

/// Creates the snapshot [`NEW`] in another process with these faults.
fn create_elsewhere(place: &Place, faults: &str) -> Output {
    process("publish::crash_tests::child_creates")
        .env("VMGENIE_FAULT", faults)
        .env("TEST_STATE", &place.state)
        .env("TEST_MEMORY", &place.memory)
        .output()
        .unwrap()
}

fn target(name: &str) -> std::path::PathBuf {
    std::env::var_os(name).expect("run by another test").into()
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_creates() {
    create(&target("TEST_STATE"), &target("TEST_MEMORY"), NEW).unwrap();
}

/// Which snapshot a create that stops at `point` leaves.
fn left_by(point: &str) -> u8 {
    let position = |name| {
        fault::POINTS
            .iter()
            .position(|point| *point == name)
            .unwrap()
    };
    if position(point) < position(fault::COMMITTED) {
        OLD
    } else {
        NEW
    }
}

/// Kills a create at `point` in a new place; returns the place.
fn killed_at(point: &str, apart: bool, named: bool) -> Place {
    let place = Place::quick(apart);
    create(&place.state, &place.memory, OLD).unwrap();
    kill_at(&place, point, named);
    place
}

fn kill_at(place: &Place, point: &str, named: bool) {
    let unnamed = if named { ",unnamed-files:error" } else { "" };
    let output = create_elsewhere(place, &format!("{point}:abort{unnamed}"));
    assert_eq!(
        output.status.signal(),
        Some(libc::SIGKILL),
        "{point}: {output:?}"
    );
}

fn for_each_point(test: impl Fn(&'static str, bool, bool)) {
    for point in fault::POINTS {
        for (apart, named) in [(false, false), (true, false), (false, true), (true, true)] {
            test(point, apart, named);
        }
    }
}

#[test]
fn a_kill_at_any_point_leaves_a_whole_snapshot_that_loads() {
    for_each_point(|point, apart, named| {
        let place = killed_at(point, apart, named);
        assert_eq!(
            load(&place.state, &place.memory).unwrap(),
            left_by(point),
            "{point}"
        );
        sweep(&place.state, &place.memory);
        place.assert_only_snapshot();
        assert_eq!(
            load(&place.state, &place.memory).unwrap(),
            left_by(point),
            "{point}"
        );
    });
}

#[test]
fn a_sweep_before_the_first_load_loses_nothing() {
    for_each_point(|point, apart, named| {
        let place = killed_at(point, apart, named);
        sweep(&place.state, &place.memory);
        place.assert_only_snapshot();
        assert_eq!(
            load(&place.state, &place.memory).unwrap(),
            left_by(point),
            "{point}"
        );
    });
}

#[test]
fn a_create_after_a_kill_at_any_point_leaves_only_its_own_files() {
    for_each_point(|point, apart, named| {
        let place = killed_at(point, apart, named);
        create(&place.state, &place.memory, LATER).unwrap();
        place.assert_only_snapshot();
        assert_eq!(load(&place.state, &place.memory).unwrap(), LATER, "{point}");
    });
}

#[test]
fn a_create_that_dies_after_another_died_loses_nothing_either() {
    // Points before the files have names leave nothing behind that a second crash could meet.
    let named = fault::POINTS
        .iter()
        .skip_while(|point| **point != "memory-staged");
    for first in named.clone() {
        for second in named.clone() {
            let place = killed_at(first, false, false);
            kill_at(&place, second, false);
            let left = left_by(first).max(left_by(second));
            assert_eq!(
                load(&place.state, &place.memory).unwrap(),
                left,
                "{first}, {second}"
            );
            sweep(&place.state, &place.memory);
            place.assert_only_snapshot();
        }
    }
}

#[test]
fn the_first_snapshot_of_all_is_there_whole_or_not_at_all() {
    for point in fault::POINTS {
        let place = Place::quick(false);
        kill_at(&place, point, false);
        if left_by(point) == OLD {
            load(&place.state, &place.memory).expect_err("there is none");
            sweep(&place.state, &place.memory);
            assert!(place.files().is_empty(), "{point}: {:?}", place.files());
        } else {
            assert_eq!(load(&place.state, &place.memory).unwrap(), NEW, "{point}");
            // The lock's file goes with what a restore does next.
            sweep(&place.state, &place.memory);
            place.assert_only_snapshot();
        }
    }
}

#[test]
fn an_error_at_any_point_leaves_a_whole_snapshot_and_before_the_commit_nothing_else() {
    for_each_point(|point, apart, named| {
        let place = Place::quick(apart);
        create(&place.state, &place.memory, OLD).unwrap();
        let unnamed = if named { ",unnamed-files:error" } else { "" };
        let output = create_elsewhere(&place, &format!("{point}:error{unnamed}"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains(&format!("injected fault at {point}")),
            "{text}"
        );
        if left_by(point) == OLD {
            place.assert_only_snapshot();
        } else {
            assert!(text.contains("Unfinished"), "{text}");
        }
        assert_eq!(
            load(&place.state, &place.memory).unwrap(),
            left_by(point),
            "{point}"
        );
        place.assert_only_snapshot();
    });
}

#[test]
fn creates_that_are_killed_at_random_times_leave_whole_snapshots() {
    let place = Place::new(false);
    create(&place.state, &place.memory, OLD).unwrap();
    for round in 0_u64..12 {
        let mut child = process("publish::crash_tests::child_creates_many")
            .env("TEST_STATE", &place.state)
            .env("TEST_MEMORY", &place.memory)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 7 % 30));
        child.kill().unwrap();
        child.wait().unwrap();
        load(&place.state, &place.memory).unwrap();
        sweep(&place.state, &place.memory);
        place.assert_only_snapshot();
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_creates_many() {
    let (state, memory) = (target("TEST_STATE"), target("TEST_MEMORY"));
    // More than there is time for, and yet an end: the one who kills it may be killed first.
    for label in 0..=u8::MAX {
        create(&state, &memory, label).unwrap();
    }
}

#[test]
fn a_file_size_limit_leaves_the_old_snapshot_and_nothing_else() {
    // In pages of memory and bytes of state: the limit stops the memory file, then the state file.
    for (pages, padding) in [(64, 0), (4, 256 << 10)] {
        let place = Place::quick(false);
        create(&place.state, &place.memory, OLD).unwrap();
        let output = process("publish::crash_tests::child_creates_within_a_file_size_limit")
            .env("TEST_STATE", &place.state)
            .env("TEST_MEMORY", &place.memory)
            .env("TEST_SIZES", format!("{pages} {padding}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        place.assert_only_snapshot();
        assert_eq!(load(&place.state, &place.memory).unwrap(), OLD);
    }
}

fn sizes() -> (usize, usize) {
    let sizes = std::env::var("TEST_SIZES").expect("run by another test");
    let (pages, padding) = sizes.split_once(' ').unwrap();
    (pages.parse().unwrap(), padding.parse().unwrap())
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_creates_within_a_file_size_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};

    // SAFETY: ignoring a signal installs no handler; nothing else in this process relies on it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = Some(128 << 10);
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )
    .unwrap();
    let (pages, padding) = sizes();
    let (state, memory) = (target("TEST_STATE"), target("TEST_MEMORY"));
    let error = create_sized(&state, &memory, NEW, pages, padding).unwrap_err();
    assert!(format!("{error:?}").contains("File too large"), "{error:?}");
}

#[test]
fn a_full_disk_leaves_the_old_snapshot_and_nothing_else() {
    let output = process("publish::crash_tests::child_creates_on_a_full_disk")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    if text.contains("not permitted to mount") {
        println!(
            "NOT RUN: mounting a tmpfs needs privileges; the file size limit's test stands in"
        );
    } else {
        assert!(text.contains("the disk was full"), "{text}");
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_creates_on_a_full_disk() {
    let place = Place::quick(false);
    let directory = place.directories[0].path();
    if let Err(error) = mount_tmpfs(directory, c"size=1m,mode=700") {
        println!("not permitted to mount: {error}");
        return;
    }
    let mut full = 0;
    // Full in the middle of the memory, in the state, and at each page around the end of the disk.
    let around = (228..=248).map(|pages| (pages, 0));
    for (pages, padding) in [(1024, 0), (100, 800 << 10)].into_iter().chain(around) {
        create(&place.state, &place.memory, OLD).unwrap();
        match create_sized(&place.state, &place.memory, NEW, pages, padding) {
            Ok(_) => assert_eq!(load(&place.state, &place.memory).unwrap(), NEW),
            Err(error) => {
                full += 1;
                assert!(
                    format!("{error:?}").contains("No space left on device"),
                    "{error:?}"
                );
                assert_eq!(load(&place.state, &place.memory).unwrap(), OLD);
            }
        }
        place.assert_only_snapshot();
        fs::remove_file(&place.state).unwrap();
        fs::remove_file(&place.memory).unwrap();
    }
    assert!((12..=22).contains(&full), "full {full} times out of 23");
    unmount(directory).unwrap();
    println!("the disk was full");
}

/// Mounts a tmpfs that only this thread sees.
fn mount_tmpfs(directory: &Path, options: &CStr) -> io::Result<()> {
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    let (none, tmpfs) = (std::ptr::null(), c"tmpfs".as_ptr());
    // SAFETY: gives this thread mount points of its own; takes no pointers.
    result_of(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: all strings are NUL-terminated and live; null stands for what the kernel ignores.
    result_of(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) })?;
    let options = options.as_ptr().cast();
    // SAFETY: all strings are NUL-terminated and live.
    result_of(unsafe { libc::mount(tmpfs, directory.as_ptr(), tmpfs, 0, options) })
}

/// Undoes [`mount_tmpfs`], so that the directory can be removed.
fn unmount(directory: &Path) -> io::Result<()> {
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: the string is NUL-terminated and live.
    result_of(unsafe { libc::umount2(directory.as_ptr(), libc::MNT_DETACH) })
}

fn result_of(value: i32) -> io::Result<()> {
    match value {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
