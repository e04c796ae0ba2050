//! Drives on real files, by each engine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmgenie_devices::virtio::block::{Buffers, Operation};

use super::quick::Quick;
use super::*;
use crate::config::DeviceId;

pub(super) const ENGINES: [IoEngine; 2] = [IoEngine::Sync, IoEngine::Async];
const KIB: u64 = 1 << 10;

/// A file of its own, with `bytes` in it.
pub(super) struct Place {
    pub(super) dir: TempDir,
}

impl Place {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("image"), bytes).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(super) fn config(&self, engine: IoEngine) -> DriveConfig {
        DriveConfig {
            overlay: None,
            id: DeviceId::new("d").unwrap(),
            path: self.path(),
            read_only: false,
            is_root: false,
            cache: CacheMode::Writeback,
            io_engine: engine,
            partuuid: None,
        }
    }

    pub(super) fn read_only(&self) -> DriveConfig {
        DriveConfig {
            read_only: true,
            ..self.config(IoEngine::Sync)
        }
    }

    fn drive(&self, engine: IoEngine) -> Drive {
        Drive::open(&self.config(engine)).unwrap()
    }

    fn open(&self) -> fs::File {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).open(self.path()).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }
}

pub(super) fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

pub(super) fn buffers(memory: &Arc<GuestMemoryMmap>, pieces: &[(u64, u32)]) -> Buffers {
    let pieces: Vec<_> = pieces
        .iter()
        .map(|&(at, len)| (GuestAddress(at), len))
        .collect();
    Buffers::new(memory, &pieces).unwrap()
}

/// Carries out one operation, at once if that can be done.
pub(super) fn run(drive: &mut Drive, operation: Operation) -> io::Result<()> {
    carry_out(drive, operation, false)
}

/// Carries out one operation; has the engine do it if there is something else `beside` it to be done.
fn carry_out(drive: &mut Drive, operation: Operation, beside: bool) -> io::Result<()> {
    let mut left = 1;
    if beside {
        left += 1;
        drive.start(Task {
            token: 5,
            operation: Operation::Flush,
        });
    }
    drive.start(Task {
        token: 3,
        operation,
    });
    assert!(drive.kick());
    let mut result = None;
    while left > 0 {
        match drive.ended() {
            Some((3, ended)) => result = Some(ended),
            Some((5, flushed)) => flushed.unwrap(),
            Some(ended) => panic!("{ended:?}"),
            None => {
                drive.wait();
                continue;
            }
        }
        left -= 1;
    }
    assert!(drive.ended().is_none());
    result.unwrap()
}

fn read(memory: &Arc<GuestMemoryMmap>, offset: u64, at: u64, len: u32) -> Operation {
    Operation::Read {
        offset,
        buffers: buffers(memory, &[(at, len)]),
    }
}

pub(super) fn write(memory: &Arc<GuestMemoryMmap>, offset: u64, at: u64, len: u32) -> Operation {
    Operation::Write {
        offset,
        buffers: buffers(memory, &[(at, len)]),
        durable: false,
    }
}

pub(super) fn first_bytes(drive: &mut Drive, len: u32) -> Vec<u8> {
    let memory = memory();
    run(drive, read(&memory, 0, 0, len)).unwrap();
    let mut bytes = vec![0; len as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

#[test]
fn what_is_written_in_pieces_is_read_in_pieces() {
    for engine in ENGINES {
        let place = Place::new(&[0; 8 << 10]);
        let mut drive = place.drive(engine);
        let memory = memory();
        let pattern: Vec<u8> = (0..2048_u32).map(|n| (n / 7) as u8).collect();
        memory.write_slice(&pattern, GuestAddress(0)).unwrap();
        for (durable, beside) in [(false, false), (true, false), (false, true), (true, true)] {
            let buffers = buffers(&memory, &[(0, 100), (100, 1900), (2000, 48)]);
            let operation = Operation::Write {
                offset: 512,
                buffers,
                durable,
            };
            carry_out(&mut drive, operation, beside).unwrap();
        }
        assert_eq!(place.bytes()[512..2560], pattern);
        let backwards = buffers(&memory, &[(0x2000, 1024), (0x1000, 1024)]);
        let operation = Operation::Read {
            offset: 512,
            buffers: backwards,
        };
        carry_out(&mut drive, operation, true).unwrap();
        let mut read = [0; 1024];
        memory.read_slice(&mut read, GuestAddress(0x1000)).unwrap();
        assert_eq!(read, pattern[1024..]);
        run(&mut drive, Operation::Flush).unwrap();
        drive.sync().unwrap();
    }
}

#[test]
fn all_tasks_that_the_depth_allows_end_each_once() {
    for engine in ENGINES {
        let place = Place::new(&[7; 64 << 10]);
        let mut drive = place.drive(engine);
        let memory = memory();
        for _ in 0..3 {
            let mut open = vec![true; drive.depth().into()];
            for token in 0..drive.depth() {
                let operation = read(&memory, 512 * u64::from(token % 100), 0, 512);
                drive.start(Task { token, operation });
            }
            assert!(drive.kick());
            while open.contains(&true) {
                drive.wait();
                while let Some((token, result)) = drive.ended() {
                    result.unwrap();
                    assert!(std::mem::take(&mut open[usize::from(token)]));
                }
            }
            assert!(drive.ended().is_none());
        }
    }
}

#[test]
fn the_descriptor_becomes_readable_when_a_task_has_ended() {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    for engine in ENGINES {
        let place = Place::new(&[7; 4096]);
        let mut drive = place.drive(engine);
        let memory = memory();
        let epoll = Epoll::new().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&drive.fd().unwrap());
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, 0))
            .unwrap();
        for _ in 0..50 {
            // Of two, the engine does both.
            for token in 0..2 {
                let operation = read(&memory, 0, 0, 512);
                drive.start(Task { token, operation });
            }
            assert!(drive.kick());
            let mut ended = 0;
            while ended < 2 {
                let mut happened = [EpollEvent::default()];
                let count = epoll.wait(5000, &mut happened);
                assert_ne!(count.unwrap(), 0, "no event");
                while drive.ended().is_some() {
                    ended += 1;
                }
            }
        }
    }
}

#[test]
fn what_is_alone_and_small_is_done_at_once_where_nothing_has_to_wait() {
    let place = Place::new(&[7; 128 << 10]);
    let memory = memory();
    let file = place.open();
    // As on a file system in memory, and as on any other, where it depends on that whether the kernel will.
    for in_memory in [true, false] {
        let quick = Quick::in_memory(in_memory);
        let read_at_once = quick.run(&file, &read(&memory, 4096, 0, 4096));
        assert!(read_at_once || !in_memory);
        if read_at_once {
            let mut bytes = [0; 4096];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert_eq!(bytes, [7; 4096]);
        }
        memory.write_slice(&[8; 512], GuestAddress(0)).unwrap();
        let written_at_once = quick.run(&file, &write(&memory, 512, 0, 512));
        assert!(written_at_once || !in_memory);
        let there = [[7].as_slice(), &[8; 512], &[7]].concat();
        assert_eq!(place.bytes()[511..1025], there);
        let durable = Operation::Write {
            offset: 0,
            buffers: buffers(&memory, &[(0, 512)]),
            durable: true,
        };
        let len = 512;
        for left in [
            read(&memory, 0, 0, 65 << 10),
            write(&memory, 0, 0, 65 << 10),
            // The engine tells of the error.
            read(&memory, 128 << 10, 0, 512),
            durable,
            Operation::Flush,
            Operation::Discard { offset: 0, len },
        ] {
            assert!(!quick.run(&file, &left), "{left:?}");
        }
    }
}

#[test]
fn only_a_file_on_a_file_system_in_memory_is_in_memory() {
    let is_in_memory = |path: &str| {
        let file = fs::File::open(path).unwrap();
        Quick::new(&file).is_in_memory()
    };
    // Its node is on a file system in memory.
    assert!(!is_in_memory("/dev/null"));
    let system = rustix::fs::statfs("/dev/shm");
    if system.is_ok_and(|system| system.f_type as u32 == extents::TMPFS) {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        assert!(is_in_memory(file.path().to_str().unwrap()));
    }
    assert!(!is_in_memory("/proc/self/maps"));
}

#[test]
fn a_driver_that_does_not_wait_for_answers_has_its_requests_done_together() {
    let place = Place::new(&[7; 4096]);
    let memory = memory();
    let mut engine = Engine::new(place.open(), IoEngine::Sync).unwrap();
    engine.in_memory();
    // Does it end before anybody can have waited?
    let at_once = |engine: &mut Engine, turns: bool| {
        if turns {
            engine.turn_begins();
        }
        engine.start(Task {
            token: 0,
            operation: write(&memory, 0, 0, 512),
        });
        assert!(engine.kick());
        let at_once = engine.at_once();
        while engine.ended().is_none() {
            engine.wait();
        }
        at_once
    };
    for _ in 0..100 {
        assert!(at_once(&mut engine, true));
    }
    // One more in the same turn was there before the driver was told.
    assert!(!at_once(&mut engine, false));
    let later = (0..100).position(|_| at_once(&mut engine, true));
    assert_eq!(later, Some(64), "it is tried again");
}

#[test]
fn a_file_that_has_become_shorter_is_an_error_and_no_hang() {
    for engine in ENGINES {
        let place = Place::new(&[1; 8 << 10]);
        let mut drive = place.drive(engine);
        let memory = memory();
        File::options()
            .write(true)
            .open(place.path())
            .unwrap()
            .set_len(700)
            .unwrap();
        let error = run(&mut drive, read(&memory, 512, 0, 512)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(run(&mut drive, read(&memory, 0, 0, 512)).is_ok());
    }
}

#[test]
fn a_drive_with_tasks_in_flight_waits_for_them_when_it_goes() {
    for engine in ENGINES {
        let place = Place::new(&[0; 512 << 10]);
        let memory = memory();
        memory
            .write_slice(&[5; 512 << 10], GuestAddress(0))
            .unwrap();
        let mut drive = place.drive(engine);
        for token in 0..128 {
            let at = u64::from(token) * 4 * KIB;
            let operation = write(&memory, at, at, 4096);
            drive.start(Task { token, operation });
        }
        assert!(drive.kick());
        drop(memory);
        drop(drive);
        assert!(place.bytes().iter().all(|byte| *byte == 5));
    }
}

fn blocks(place: &Place) -> u64 {
    fs::metadata(place.path()).unwrap().blocks()
}

#[test]
fn a_discard_gives_space_back_and_zeros_are_zeros() {
    for engine in ENGINES {
        let place = Place::new(&[9; 1 << 20]);
        let mut drive = place.drive(engine);
        assert!(drive.discards());
        let before = blocks(&place);
        let (offset, len) = (64 * KIB, 512 * KIB);
        run(&mut drive, Operation::Discard { offset, len }).unwrap();
        assert_eq!(before - blocks(&place), len / 512);
        for (offset, unmap, durable) in [(0, false, true), (640 * KIB, true, false)] {
            let operation = Operation::WriteZeroes {
                offset,
                len: 32 * KIB,
                unmap,
                durable,
            };
            run(&mut drive, operation).unwrap();
        }
        let bytes = place.bytes();
        assert_eq!(bytes.len(), 1 << 20);
        for (kib, byte) in [
            (0, 0),
            (31, 0),
            (32, 9),
            (63, 9),
            (64, 0),
            (575, 0),
            (576, 9),
            (640, 0),
            (671, 0),
            (672, 9),
        ] {
            assert_eq!(bytes[kib << 10], byte, "{kib}");
        }
    }
}

#[test]
fn zeros_are_written_where_the_file_system_makes_none() {
    for (unmap, durable) in [(false, false), (true, true)] {
        let (offset, len) = (512, (2 << 20) + 1024);
        let mut job = job::Job::new(Operation::WriteZeroes {
            offset,
            len,
            unmap,
            durable,
        });
        let mut written = 0;
        let mut synced = false;
        let result = loop {
            let answer = match job.call() {
                job::Call::Allocate(..) => Err(Errno::OPNOTSUPP),
                job::Call::Write(pieces, at) => {
                    assert_eq!(at, offset + written);
                    let whole: usize = pieces.iter().map(|piece| piece.iov_len).sum();
                    // The kernel takes a part of it.
                    let taken = (whole as u64).min(700 << 10);
                    written += taken;
                    Ok(taken)
                }
                job::Call::Sync => {
                    synced = true;
                    Ok(0)
                }
                job::Call::Read(..) => unreachable!(),
            };
            if let Some(result) = job.advance(answer) {
                break result;
            }
        };
        result.unwrap();
        assert_eq!((written, synced), (len, durable));
    }
    let mut discard = job::Job::new(Operation::Discard {
        offset: 0,
        len: 512,
    });
    let refused = discard.advance(Err(Errno::OPNOTSUPP)).unwrap().unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sequence_leaves_the_file_as_a_model_has_it(
        engine in prop::sample::select(ENGINES.to_vec()),
        beside in any::<bool>(),
        steps in prop::collection::vec((0..4_u8, 0..120_u64, 1..8_u64, any::<u8>()), 1..60),
    ) {
        let place = Place::new(&[1; 128 * 512]);
        let mut model = vec![1; 128 * 512];
        let mut drive = place.drive(engine);
        let memory = memory();
        for (kind, sector, count, byte) in steps {
            let (offset, len) = (sector * 512, count * 512);
            let range = offset as usize..(offset + len) as usize;
            memory.write_slice(&vec![byte; len as usize], GuestAddress(0)).unwrap();
            let operation = match kind {
                0 => read(&memory, offset, 0, len as u32),
                1 => {
                    model[range.clone()].fill(byte);
                    write(&memory, offset, 0, len as u32)
                }
                _ => {
                    model[range.clone()].fill(0);
                    let (unmap, durable) = (kind == 2, false);
                    Operation::WriteZeroes { offset, len, unmap, durable }
                }
            };
            carry_out(&mut drive, operation, beside).unwrap();
            if kind == 0 {
                let mut read = vec![0; len as usize];
                memory.read_slice(&mut read, GuestAddress(0)).unwrap();
                prop_assert_eq!(&read, &model[range]);
            }
        }
        prop_assert!(place.bytes() == model);
    }
}

#[test]
fn one_writer_or_many_readers_have_the_file() {
    let place = Place::new(&[0; 4096]);
    let writer = place.drive(IoEngine::Async);
    for config in [place.config(IoEngine::Sync), place.read_only()] {
        let refused = Drive::open(&config).unwrap_err();
        assert!(matches!(refused, DriveError::InUse { .. }), "{refused}");
        assert!(
            refused.to_string().contains("image\" is in use"),
            "{refused}"
        );
    }
    drop(writer);
    let _readers = [(); 2].map(|()| Drive::open(&place.read_only()).unwrap());
    let refused = Drive::open(&place.config(IoEngine::Sync)).unwrap_err();
    assert!(matches!(refused, DriveError::InUse { .. }), "{refused}");
}

/// A snapshot takes a file that was written to for another one: looking at it must not count.
#[test]
fn a_file_is_as_it_was_when_a_drive_has_been_opened_and_has_gone() {
    let stamp = |path: &Path| FileStamp::of(&File::open(path).unwrap()).unwrap();
    for engine in ENGINES {
        let place = Place::new(&[1; 4096]);
        let overlay = place.dir.path().join("overlay");
        overlay::format(&File::create_new(&overlay).unwrap(), 4096).unwrap();
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for path in [&place.path(), &overlay] {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        let before = [stamp(&place.path()), stamp(&overlay)];
        let layered = DriveConfig {
            overlay: Some(overlay.clone()),
            ..place.config(engine)
        };
        for config in [place.config(engine), place.read_only(), layered] {
            let drive = Drive::open(&config).unwrap();
            let mut again = drive.reopen(&config).unwrap();
            again.sync().unwrap();
        }
        assert_eq!([stamp(&place.path()), stamp(&overlay)], before);
    }
}

#[test]
fn an_open_drive_s_descriptor_waits() {
    let place = Place::new(&[0; 4096]);
    let drive = place.drive(IoEngine::Async);
    let flags = rustix::fs::fcntl_getfl(drive.file()).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn a_read_only_drive_writes_nothing() {
    let place = Place::new(&[4; 4096]);
    let mut drive = Drive::open(&place.read_only()).unwrap();
    assert!(drive.read_only() && !drive.discards());
    let memory = memory();
    assert!(run(&mut drive, write(&memory, 0, 0, 512)).is_err());
    assert_eq!(place.bytes(), [4; 4096]);
}

#[test]
fn the_end_of_a_file_that_fills_no_sector_is_not_seen() {
    for (len, sectors) in [(0, 0), (511, 0), (512, 1), (1535, 2)] {
        let place = Place::new(&vec![0; len]);
        assert_eq!(place.drive(IoEngine::Sync).sectors(), sectors);
    }
}

#[test]
fn a_file_that_has_grown_is_opened_again_with_its_new_size_and_its_lock() {
    let place = Place::new(&[0; 4096]);
    let drive = place.drive(IoEngine::Async);
    File::options()
        .write(true)
        .open(place.path())
        .unwrap()
        .set_len(8192)
        .unwrap();
    assert_eq!(drive.sectors(), 8);
    let again = drive.reopen(&place.config(IoEngine::Async)).unwrap();
    assert_eq!(again.sectors(), 16);
    drop(drive);
    assert!(Drive::open(&place.read_only()).is_err());
    // Another file is opened as any other.
    let other = Place::new(&[0; 512]);
    let taken = other.drive(IoEngine::Sync);
    assert!(again.reopen(&other.config(IoEngine::Sync)).is_err());
    drop(taken);
    assert_eq!(
        again
            .reopen(&other.config(IoEngine::Sync))
            .unwrap()
            .sectors(),
        1
    );
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let place = Place::new(&[]);
    let path = |name: &str| place.dir.path().join(name);
    let _socket = UnixListener::bind(path("socket")).unwrap();
    for other in [
        place.dir.path().to_owned(),
        path("socket"),
        "/dev/null".into(),
    ] {
        let config = DriveConfig {
            path: other.clone(),
            ..place.config(IoEngine::Sync)
        };
        let refused = Drive::open(&config).unwrap_err();
        assert!(matches!(refused, DriveError::Kind(_)), "{refused}");
        assert!(refused.to_string().contains(other.to_str().unwrap()));
    }
    let config = DriveConfig {
        path: path("not-there"),
        ..place.config(IoEngine::Sync)
    };
    let refused = Drive::open(&config).unwrap_err();
    assert!(matches!(refused, DriveError::Open { .. }), "{refused}");
}

/// Two clones on one image.
#[test]
fn clones_share_their_base_and_keep_what_they_write_to_themselves() {
    let place = Place::new(&[1; 64 << 10]);
    let clone = |name: &str, engine| {
        let path = place.dir.path().join(name);
        let file = File::create_new(&path).unwrap();
        overlay::format(&file, 64 << 10).unwrap();
        let config = DriveConfig {
            overlay: Some(path),
            ..place.config(engine)
        };
        (Drive::open(&config).unwrap(), config)
    };
    let memory = memory();
    let (mut a, config) = clone("a", IoEngine::Sync);
    let (mut b, _) = clone("b", IoEngine::Async);
    for (drive, byte) in [(&mut a, 0xa), (&mut b, 0xb)] {
        memory.write_slice(&[byte; 700], GuestAddress(0)).unwrap();
        run(drive, write(&memory, 512, 0, 512)).unwrap();
        run(drive, Operation::Flush).unwrap();
        let (offset, len) = (32 << 10, 16 << 10);
        run(drive, Operation::Discard { offset, len }).unwrap();
        drive.sync().unwrap();
    }
    let first = |drive: &mut Drive, offset| {
        run(drive, read(&memory, offset, 0, 512)).unwrap();
        memory.read_obj::<u8>(GuestAddress(0)).unwrap()
    };
    let at = |drive: &mut Drive| [0, 512, 1024, 32 << 10].map(|offset| first(drive, offset));
    assert_eq!(at(&mut a), [1, 0xa, 1, 0]);
    assert_eq!(at(&mut b), [1, 0xb, 1, 0]);
    assert_eq!(place.bytes(), [1; 64 << 10], "the base has changed");
    // The overlay has one owner, and the base no writer.
    assert!(matches!(
        Drive::open(&config),
        Err(DriveError::InUse { .. })
    ));
    let writer = Drive::open(&place.config(IoEngine::Sync));
    assert!(matches!(writer, Err(DriveError::InUse { .. })));
    // Opened anew while it is in use, and after that.
    let mut again = a.reopen(&config).unwrap();
    drop(a);
    assert_eq!(at(&mut again), [1, 0xa, 1, 0]);
    drop(again);
    assert_eq!(at(&mut Drive::open(&config).unwrap()), [1, 0xa, 1, 0]);
}

#[test]
fn what_is_written_while_an_overlay_is_opened_again_is_there_afterwards() {
    let place = Place::new(&[1; 64 << 10]);
    let path = place.dir.path().join("overlay");
    overlay::format(&File::create_new(&path).unwrap(), 64 << 10).unwrap();
    let config = DriveConfig {
        overlay: Some(path),
        ..place.config(IoEngine::Sync)
    };
    let mut drive = Drive::open(&config).unwrap();
    let memory = memory();
    let mut again = drive.reopen(&config).unwrap();
    // What was in flight ends on the old one, as late as this.
    memory.write_slice(&[9; 4096], GuestAddress(0)).unwrap();
    run(&mut drive, write(&memory, 8192, 0, 4096)).unwrap();
    run(
        &mut drive,
        Operation::Discard {
            offset: 0,
            len: 4096,
        },
    )
    .unwrap();
    drop(drive);
    // A part of the same granule does not bring the base back either.
    run(&mut again, write(&memory, 8192, 0, 512)).unwrap();
    run(&mut again, read(&memory, 0, 0, 12288)).unwrap();
    let mut bytes = [0; 12288];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    assert!(bytes[..4096] == [0; 4096]);
    assert!(bytes[4096..8192] == [1; 4096]);
    assert!(bytes[8192..] == [9; 4096]);
    // Nor was the lock let go.
    assert!(Drive::open(&config).is_err());
}
