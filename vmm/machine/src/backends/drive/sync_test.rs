//! When a drive is durable, on files that cannot be made so.

use std::os::fd::{AsRawFd, RawFd};

use super::test::{ENGINES, Place, buffers, memory, run, write};
use super::*;
use vmgenie_devices::virtio::block::Operation;

/// Has a drive's descriptor lead to a device that cannot sync, until this is dropped. What is written meanwhile is gone.
struct Failing {
    fd: RawFd,
    before: File,
}

impl Failing {
    fn new(drive: &Drive) -> Self {
        let fd = drive.file().as_raw_fd();
        let before = drive.file().try_clone().unwrap();
        exchange(&File::options().write(true).open("/dev/zero").unwrap(), fd);
        Self { fd, before }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        exchange(&self.before, self.fd);
    }
}

fn exchange(new: &File, old: RawFd) {
    // SAFETY: both are open descriptors; `old` stays one, which its owner closes.
    let done = unsafe { libc::dup2(new.as_raw_fd(), old) };
    assert!(done >= 0);
}

fn layered(place: &Place, engine: IoEngine) -> DriveConfig {
    let path = place.dir.path().join("overlay");
    let _ = std::fs::remove_file(&path);
    overlay::format(&File::create_new(&path).unwrap(), 64 << 10).unwrap();
    DriveConfig {
        overlay: Some(path),
        ..place.config(engine)
    }
}

fn configs(place: &Place) -> [DriveConfig; 3] {
    let [sync, uring] = ENGINES.map(|engine| place.config(engine));
    [sync, uring, layered(place, IoEngine::Sync)]
}

fn fails(drive: &mut Drive) {
    let lost = drive.sync().unwrap_err().to_string();
    assert!(
        lost.contains("an earlier sync") && lost.contains("PATCH /drives"),
        "{lost}"
    );
}

#[test]
fn a_drive_that_offers_no_flushes_is_synced_for_a_snapshot_all_the_same() {
    let place = Place::new(&[1; 64 << 10]);
    for config in configs(&place) {
        for cache in [CacheMode::Unsafe, CacheMode::Writeback] {
            let config = DriveConfig {
                cache,
                ..config.clone()
            };
            let mut drive = Drive::open(&config).unwrap();
            assert_eq!(drive.flushes(), cache == CacheMode::Writeback);
            drive.sync().unwrap();
            let failing = Failing::new(&drive);
            assert!(drive.sync().is_err(), "nothing was synced");
            drop(failing);
        }
    }
}

#[test]
fn a_file_that_is_only_read_is_synced_once() {
    let place = Place::new(&[1; 64 << 10]);
    let mut drive = Drive::open(&place.read_only()).unwrap();
    drive.sync().unwrap();
    let mut base = Drive::open(&layered(&place, IoEngine::Sync)).unwrap();
    base.sync().unwrap();
    assert!(drive.settled && base.settled);
}

/// As the kernel has it: the next sync succeeds, and the data is gone.
#[test]
fn after_a_flush_that_has_failed_nothing_is_durable_until_the_file_is_opened_anew() {
    let place = Place::new(&[1; 64 << 10]);
    let memory = memory();
    for config in configs(&place) {
        let mut drive = Drive::open(&config).unwrap();
        let failing = Failing::new(&drive);
        let error = run(&mut drive, Operation::Flush).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        drop(failing);
        run(&mut drive, Operation::Flush).unwrap_err();
        let durable = Operation::Write {
            offset: 0,
            buffers: buffers(&memory, &[(0, 512)]),
            durable: true,
        };
        run(&mut drive, durable).unwrap_err();
        fails(&mut drive);
        // The guest may go on as far as it asks for nothing else.
        run(&mut drive, write(&memory, 0, 0, 512)).unwrap();
        let mut again = drive.reopen(&config).unwrap();
        drop(drive);
        again.sync().unwrap();
        run(&mut again, Operation::Flush).unwrap();
    }
}

#[test]
fn after_a_snapshot_that_could_not_sync_no_flush_succeeds_either() {
    let place = Place::new(&[1; 64 << 10]);
    for config in configs(&place) {
        let mut drive = Drive::open(&config).unwrap();
        let failing = Failing::new(&drive);
        drive.sync().unwrap_err();
        drop(failing);
        fails(&mut drive);
        run(&mut drive, Operation::Flush).unwrap_err();
    }
}

#[test]
fn a_discard_that_could_not_be_made_durable_takes_nothing_away_at_the_next_attempt() {
    let place = Place::new(&[1; 64 << 10]);
    let config = layered(&place, IoEngine::Sync);
    let mut drive = Drive::open(&config).unwrap();
    let memory = memory();
    run(&mut drive, write(&memory, 0, 0, 4096)).unwrap();
    let bits = || std::fs::read(config.overlay.as_ref().unwrap()).unwrap()[4096];
    let discard = || Operation::Discard {
        offset: 0,
        len: 4096,
    };
    let failing = Failing::new(&drive);
    run(&mut drive, discard()).unwrap_err();
    drop(failing);
    // The base would show through after a crash of the host.
    assert_eq!(bits(), 0);
    run(&mut drive, discard()).unwrap_err();
    fails(&mut drive);
    // Whoever goes on with it has the bits in the file first.
    let mut again = drive.reopen(&config).unwrap();
    drop(drive);
    assert_eq!(bits(), 1);
    run(&mut again, discard()).unwrap();
    again.sync().unwrap();
}

#[test]
fn many_flushes_and_durable_writes_at_once_all_end() {
    let place = Place::new(&[0; 64 << 10]);
    let memory = memory();
    for engine in ENGINES {
        let mut drive = Drive::open(&place.config(engine)).unwrap();
        let mut open = drive.depth();
        for token in 0..drive.depth() {
            let operation = match token % 3 {
                0 => Operation::Flush,
                _ => Operation::Write {
                    offset: u64::from(token) * 512,
                    buffers: buffers(&memory, &[(0, 512)]),
                    durable: token % 3 == 1,
                },
            };
            drive.start(Task { token, operation });
        }
        assert!(drive.kick());
        while open > 0 {
            drive.wait();
            while let Some((_, result)) = drive.ended() {
                result.unwrap();
                open -= 1;
            }
            assert!(drive.kick());
        }
    }
}
