//! Overlays, against a model, over closing and crashing.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

/// Not a multiple of the granule.
const LEN: u64 = 24 * GRANULE + 1536;
const SECTORS: u64 = LEN / 512;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir };
        let base: Vec<u8> = (0..LEN).map(|at| (at / 512) as u8 | 0x80).collect();
        std::fs::write(place.path("base"), base).unwrap();
        format(&place.open_file("overlay"), LEN).unwrap();
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn open_file(&self, name: &str) -> File {
        open_file(&self.path(name))
    }

    fn open(&self) -> Overlay {
        let base = File::open(self.path("base")).unwrap();
        Overlay::open(self.open_file("overlay"), base, LEN).unwrap()
    }

    fn blocks(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.path("overlay")).unwrap().blocks() * 512
    }
}

fn open_file(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

/// Two pieces that lie apart, so that no call is a simple one.
fn buffers(memory: &Arc<GuestMemoryMmap>, len: u64) -> Buffers {
    let first = len / 3;
    let pieces = [
        (GuestAddress(0), first as u32),
        (GuestAddress(0x8_0000), (len - first) as u32),
    ];
    Buffers::new(memory, &pieces).unwrap()
}

fn read(overlay: &Overlay, offset: u64, len: u64) -> Vec<u8> {
    let memory = memory();
    overlay
        .run(Operation::Read {
            offset,
            buffers: buffers(&memory, len),
        })
        .unwrap();
    let mut bytes = vec![0; len as usize];
    let (first, second) = bytes.split_at_mut(len as usize / 3);
    memory.read_slice(first, GuestAddress(0)).unwrap();
    memory.read_slice(second, GuestAddress(0x8_0000)).unwrap();
    bytes
}

fn write(overlay: &Overlay, offset: u64, bytes: &[u8]) {
    let memory = memory();
    let (first, second) = bytes.split_at(bytes.len() / 3);
    memory.write_slice(first, GuestAddress(0)).unwrap();
    memory.write_slice(second, GuestAddress(0x8_0000)).unwrap();
    overlay
        .run(Operation::Write {
            offset,
            buffers: buffers(&memory, bytes.len() as u64),
            durable: false,
        })
        .unwrap();
}

fn zero(overlay: &Overlay, offset: u64, len: u64, unmap: bool) {
    overlay
        .run(Operation::WriteZeroes {
            offset,
            len,
            unmap,
            durable: false,
        })
        .unwrap();
}

/// One step of a test.
#[derive(Debug, Clone, Copy)]
struct Step {
    kind: u8,
    sector: u64,
    count: u64,
    byte: u8,
}

fn step() -> impl Strategy<Value = Step> {
    (0..6_u8, 0..SECTORS, 1..60_u64, any::<u8>()).prop_map(|(kind, sector, count, byte)| Step {
        kind,
        sector,
        count: count.min(SECTORS - sector),
        byte,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn an_overlay_reads_as_a_model_does_also_when_it_is_opened_anew(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let place = Place::new();
        let before = std::fs::read(place.path("base")).unwrap();
        let mut model = before.clone();
        let mut overlay = place.open();
        for Step { kind, sector, count, byte } in steps {
            let (offset, len) = (sector * 512, count * 512);
            let range = offset as usize..(offset + len) as usize;
            match kind {
                0 => prop_assert_eq!(read(&overlay, offset, len), &model[range]),
                1 | 2 => {
                    model[range].fill(byte);
                    write(&overlay, offset, &vec![byte; len as usize]);
                }
                3 | 4 => {
                    model[range].fill(0);
                    zero(&overlay, offset, len, kind == 3);
                }
                // As a process that is killed leaves it.
                _ => overlay = place.open(),
            }
        }
        prop_assert!(read(&overlay, 0, LEN) == model);
        prop_assert!(read(&place.open(), 0, LEN) == model);
        prop_assert!(std::fs::read(place.path("base")).unwrap() == before, "the base has changed");
    }
}

#[test]
fn a_discard_masks_the_base_and_gives_space_back() {
    let place = Place::new();
    let overlay = place.open();
    let empty = place.blocks();
    write(&overlay, 0, &vec![7; 16 * GRANULE as usize]);
    overlay.sync().unwrap();
    assert!(place.blocks() >= empty + 16 * GRANULE);
    let (offset, len) = (GRANULE - 512, 10 * GRANULE);
    overlay.run(Operation::Discard { offset, len }).unwrap();
    overlay.sync().unwrap();
    assert!(place.blocks() <= empty + 9 * GRANULE, "{}", place.blocks());
    let masked = read(&place.open(), GRANULE, 9 * GRANULE);
    assert!(masked.iter().all(|byte| *byte == 0));
    // What was never written goes as well.
    overlay
        .run(Operation::Discard {
            offset: 20 * GRANULE,
            len: LEN - 20 * GRANULE,
        })
        .unwrap();
    let masked = read(&place.open(), 20 * GRANULE, LEN - 20 * GRANULE);
    assert!(masked.iter().all(|byte| *byte == 0));
}

#[test]
fn an_overlay_costs_the_granules_that_were_written() {
    let place = Place::new();
    let overlay = place.open();
    let empty = place.blocks();
    write(&overlay, 5 * GRANULE + 512, &[1; 512]);
    overlay.sync().unwrap();
    assert_eq!(place.blocks(), empty + GRANULE);
    assert_eq!(read(&overlay, 5 * GRANULE, 512), vec![40 | 0x80; 512]);
}

#[test]
fn writers_and_readers_may_come_at_the_same_time() {
    let place = Place::new();
    let overlay = place.open();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let overlay = &overlay;
            // Each has sectors of its own in granules that they share.
            scope.spawn(move || {
                for sector in (thread..SECTORS).step_by(4) {
                    write(overlay, sector * 512, &[thread as u8; 512]);
                    assert_eq!(read(overlay, sector * 512, 512), [thread as u8; 512]);
                }
            });
        }
    });
    let all = read(&place.open(), 0, LEN);
    for (sector, bytes) in all.chunks(512).enumerate() {
        assert!(
            bytes.iter().all(|byte| *byte == (sector % 4) as u8),
            "{sector}"
        );
    }
}

#[test]
fn what_is_no_overlay_of_this_base_is_refused() {
    let place = Place::new();
    let base = || File::open(place.path("base")).unwrap();
    let other = Overlay::open(place.open_file("overlay"), base(), LEN + 512).unwrap_err();
    assert!(matches!(other, OverlayError::OtherBase { .. }), "{other}");
    for bytes in [vec![], vec![0; 5000], MAGIC.to_vec()] {
        std::fs::write(place.path("other"), bytes).unwrap();
        let refused = Overlay::open(place.open_file("other"), base(), LEN).unwrap_err();
        assert!(matches!(refused, OverlayError::NoOverlay), "{refused}");
    }
    // A copy that was cut short.
    let short = place.open_file("overlay");
    short.set_len(file_len(LEN) - 1).unwrap();
    let refused = Overlay::open(short, base(), LEN).unwrap_err();
    assert!(matches!(refused, OverlayError::Short), "{refused}");
    let huge = format(&place.open_file("huge"), MAX_LEN + 512).unwrap_err();
    assert!(matches!(huge, OverlayError::TooLarge(_)), "{huge}");
}

#[test]
fn zeros_that_could_not_be_noted_are_no_zeros_at_the_next_attempt_either() {
    let place = Place::new();
    // Whatever is written to it fails.
    let file = File::open(place.path("overlay")).unwrap();
    let overlay = Overlay::open(file, File::open(place.path("base")).unwrap(), LEN).unwrap();
    let before = read(&overlay, 0, 4 * GRANULE);
    for attempt in 0..2 {
        let (offset, len) = (GRANULE, 2 * GRANULE);
        let discarded = overlay.run(Operation::Discard { offset, len });
        assert!(discarded.is_err(), "{attempt}");
        let zeroed = overlay.run(Operation::WriteZeroes {
            offset,
            len,
            unmap: attempt == 0,
            durable: true,
        });
        assert!(zeroed.is_err(), "{attempt}");
    }
    assert!(read(&overlay, 0, 4 * GRANULE) == before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A file that came from elsewhere may hold anything: it is refused, or is a disk that can be read and written from end to end.
    #[test]
    fn a_file_with_anything_in_it_is_refused_or_is_a_disk(
        // The header's fields, its rest, the bits and what is behind them, and the disk.
        scribbles in prop::collection::vec(
            (prop_oneof![0..24_u64, 0..GRANULE, GRANULE..GRANULE + 8, GRANULE..2 * GRANULE, 0..file_len(LEN) + GRANULE], any::<u8>()),
            0..8,
        ),
        len in prop_oneof![3 => Just(None), 1 => (0..file_len(LEN) + GRANULE).prop_map(Some)],
    ) {
        let place = Place::new();
        let file = place.open_file("overlay");
        for (at, byte) in &scribbles {
            file.write_all_at(&[*byte], *at).unwrap();
        }
        if let Some(len) = len {
            file.set_len(len).unwrap();
        }
        let base = File::open(place.path("base")).unwrap();
        let Ok(overlay) = Overlay::open(file, base, LEN) else {
            prop_assert!(len.is_some_and(|len| len < file_len(LEN)) || scribbles.iter().any(|(at, _)| *at < 24));
            return Ok(());
        };
        read(&overlay, 0, LEN);
        let bytes: Vec<u8> = (0..LEN).map(|at| at as u8).collect();
        write(&overlay, 512, &bytes[512..LEN as usize - 512]);
        zero(&overlay, GRANULE, 3 * GRANULE, true);
        prop_assert_eq!(&read(&overlay, 4 * GRANULE, GRANULE), &bytes[4 * GRANULE as usize..][..GRANULE as usize]);
        let all = read(&overlay, 0, LEN);
        drop(overlay);
        prop_assert!(read(&place.open(), 0, LEN) == all);
    }
}
