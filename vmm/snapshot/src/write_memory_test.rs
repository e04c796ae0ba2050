use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::tempfile;

use super::super::test_support::{Mapping, PAGE};
use super::*;
use crate::end_request::told_to_end;

/// Writes `sources` into a new file, as a create does.
fn write(sources: &[MemorySource<'_>]) -> Result<(File, Written), WriteMemoryError> {
    let file = tempfile()?;
    file.set_len(total_length(sources)?)?;
    copy_bases(&file, sources)?;
    let written = write_changed(&file, sources)?;
    Ok((file, written))
}

fn contents(file: &File, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_gigabyte_with_three_touched_pages_takes_three_pages_of_disk() {
    let mut memory = Mapping::anonymous(1 << 30);
    for page in [0, 1000, (1 << 18) - 1] {
        memory.page(page).fill(page as u8 | 1);
    }
    let (file, written) = write(&[memory.source(0)]).unwrap();
    assert_eq!(written.memory_length, 1 << 30);
    assert_eq!(
        (written.touched, written.written),
        (3 * PAGE as u64, 3 * PAGE as u64)
    );
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(
        metadata.blocks() * 512 <= 64 << 10,
        "{} blocks",
        metadata.blocks()
    );
    for page in [0, 1000, (1 << 18) - 1] {
        let mut bytes = [0; PAGE];
        file.read_exact_at(&mut bytes, (page * PAGE) as u64)
            .unwrap();
        assert_eq!(bytes, [page as u8 | 1; PAGE]);
    }
}

#[test]
fn who_is_told_to_end_writes_no_memory_and_copies_none() {
    let mut memory = Mapping::anonymous(8 * PAGE);
    memory.page(3).fill(1);
    let (base, _) = write(&[memory.source(0)]).unwrap();
    let out = tempfile().unwrap();
    let ended = told_to_end(|| write_changed(&out, &[memory.source(0)]));
    assert!(
        matches!(ended, Err(WriteMemoryError::Ended(_))),
        "{ended:?}"
    );
    let ended = told_to_end(|| write_by_content(&out, &[memory.source(0)]));
    assert!(
        matches!(ended, Err(WriteMemoryError::Ended(_))),
        "{ended:?}"
    );
    let all = 0..8 * PAGE as u64;
    for copy in [
        copy_range,
        |base: &File, range: &Range<u64>, out: &File, at| {
            copy_through_memory(base, range.clone(), out, at)
        },
    ] {
        told_to_end(|| copy(&base, &all, &out, 0)).unwrap_err();
    }
    assert_eq!(out.metadata().unwrap().len(), 0);
}

#[test]
fn it_is_looked_at_times_whether_to_end_and_after_a_large_run_at_once() {
    told_to_end(|| {
        let mut until_look = 0;
        look_at_times(&mut until_look, PAGE).unwrap_err();
        until_look = LOOK_EVERY;
        for _ in 0..LOOK_EVERY / PAGE {
            look_at_times(&mut until_look, PAGE).unwrap();
        }
        look_at_times(&mut until_look, PAGE).unwrap_err();
    });
    let mut until_look = 0;
    look_at_times(&mut until_look, LOOK_EVERY).unwrap();
    assert_eq!(until_look, 0);
}

#[test]
fn writing_touches_no_page_that_the_guest_has_not_touched() {
    let mut memory = Mapping::anonymous(512 * PAGE);
    memory.page(7).fill(1);
    write(&[memory.source(0)]).unwrap();
    assert_eq!(memory.resident(), 1);

    let (base, _) = write(&[memory.source(0)]).unwrap();
    let mut clone = Mapping::of(&base, 512 * PAGE);
    clone.page(9).fill(2);
    let before = clone.resident();
    write(&[clone.source(0).over(&base, 0).unwrap()]).unwrap();
    assert_eq!(clone.resident(), before);
}

#[test]
fn pages_that_were_only_read_or_hold_zeros_are_holes() {
    let mut memory = Mapping::anonymous(256 * PAGE);
    assert!(memory.bytes()[..16 * PAGE].iter().all(|byte| *byte == 0));
    (100..200).for_each(|page| memory.page(page).fill(0));
    memory.page(150)[PAGE - 1] = 1;
    let (file, written) = write(&[memory.source(0)]).unwrap();
    assert_eq!(written.written, PAGE as u64);
    assert!(written.touched >= 100 * PAGE as u64);
    assert_eq!(contents(&file, 256 * PAGE), memory.bytes());
}

#[test]
fn a_clone_is_its_base_and_what_it_changed() {
    let mut memory = Mapping::anonymous(64 * PAGE);
    (0..32).for_each(|page| memory.page(page).fill(page as u8 + 1));
    let (base, _) = write(&[memory.source(0)]).unwrap();

    let mut clone = Mapping::of(&base, 64 * PAGE);
    clone.page(3).fill(0xaa);
    clone.page(5).fill(0); // zeroed again
    clone.page(40).fill(0xbb); // a hole of the base
    clone.page(41).fill(0);
    let (file, written) = write(&[clone.source(0).over(&base, 0).unwrap()]).unwrap();
    assert_eq!(
        (written.touched, written.written),
        (4 * PAGE as u64, 2 * PAGE as u64)
    );
    assert_eq!(contents(&file, 64 * PAGE), clone.bytes());
    let hole = file.metadata().unwrap().blocks() * 512;
    assert!(hole <= 34 * PAGE as u64, "{hole} bytes on disk");
    assert_eq!(
        contents(&base, 64 * PAGE),
        memory.bytes(),
        "the base is as it was"
    );
}

/// Writes `sources` as where there is no `/proc`.
fn write_without_pagemap(sources: &[MemorySource<'_>]) -> (File, Written) {
    let file = tempfile().unwrap();
    file.set_len(total_length(sources).unwrap()).unwrap();
    copy_bases(&file, sources).unwrap();
    let written = write_by_content(&file, sources).unwrap();
    (file, written)
}

#[test]
fn without_proc_the_same_files_are_written() {
    let length = COPY_CHUNK + 64 * PAGE;
    let mut memory = Mapping::anonymous(length);
    for page in [
        0,
        1,
        7,
        COPY_CHUNK / PAGE - 1,
        COPY_CHUNK / PAGE,
        length / PAGE - 1,
    ] {
        memory.page(page).fill(page as u8 | 1);
    }
    let (base, written) = write_without_pagemap(&[memory.source(0)]);
    assert_eq!(written.written, 6 * PAGE as u64);
    assert_eq!(contents(&base, length), memory.bytes());
    let hole = base.metadata().unwrap().blocks() * 512;
    assert!(hole <= 8 * PAGE as u64, "{hole} bytes on disk");

    let mut clone = Mapping::of(&base, length);
    clone.page(3).fill(0xaa);
    clone.page(7).fill(0); // zeroed again
    clone.page(COPY_CHUNK / PAGE).fill(0xbb);
    let (file, written) = write_without_pagemap(&[clone.source(0).over(&base, 0).unwrap()]);
    assert_eq!(
        (written.touched, written.written),
        (3 * PAGE as u64, 2 * PAGE as u64)
    );
    assert_eq!(contents(&file, length), clone.bytes());
}

#[test]
fn regions_lie_one_after_the_other_each_with_its_own_base() {
    let mut low = Mapping::anonymous(8 * PAGE);
    let mut high = Mapping::anonymous(4 * PAGE);
    low.page(7).fill(7);
    high.page(0).fill(8);
    let (base, _) = write(&[low.source(0), high.source(8 * PAGE as u64)]).unwrap();
    assert_eq!(
        contents(&base, 12 * PAGE),
        [low.bytes(), high.bytes()].concat()
    );

    // The clone maps only the second region from the file, and has it first.
    let whole = Mapping::of(&base, 12 * PAGE);
    let fresh = Mapping::anonymous(2 * PAGE);
    let source = whole.source(0).over(&base, 0).unwrap();
    let (file, _) = write(&[source, fresh.source(12 * PAGE as u64)]).unwrap();
    assert_eq!(
        contents(&file, 14 * PAGE),
        [whole.bytes(), fresh.bytes()].concat()
    );
}

#[test]
fn regions_with_a_gap_or_an_overlap_are_refused() {
    let memory = Mapping::anonymous(2 * PAGE);
    for second in [PAGE as u64, 3 * PAGE as u64] {
        let error = write(&[memory.source(0), memory.source(second)]).unwrap_err();
        assert!(
            matches!(error, WriteMemoryError::NotContiguous { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_base_that_was_truncated_is_refused() {
    let base = tempfile().unwrap();
    base.set_len(4 * PAGE as u64).unwrap();
    let clone = Mapping::of(&base, 4 * PAGE);
    base.set_len(3 * PAGE as u64).unwrap();
    let error = write(&[clone.source(0).over(&base, 0).unwrap()]).unwrap_err();
    assert!(
        matches!(error, WriteMemoryError::BaseTruncated { .. }),
        "{error}"
    );
}

#[test]
fn memory_that_is_not_whole_pages_is_refused() {
    let memory = Mapping::anonymous(PAGE);
    let address = std::ptr::NonNull::from(&memory.bytes()[0]);
    for (length, offset) in [(PAGE - 1, 0), (PAGE, 1)] {
        // SAFETY: within the mapping, which nobody writes to.
        let source = unsafe { MemorySource::new(address, length, offset) };
        source.expect_err("not whole pages");
    }
    memory
        .source(0)
        .over(&tempfile().unwrap(), 5)
        .expect_err("not whole pages");
}

#[test]
fn copying_through_memory_is_the_same_as_copying_in_the_kernel() {
    let (base, out) = (tempfile().unwrap(), tempfile().unwrap());
    let bytes: Vec<u8> = (0..COPY_CHUNK + 3 * PAGE).map(|n| (n / 7) as u8).collect();
    base.write_all_at(&bytes, 0).unwrap();
    let range = PAGE as u64..bytes.len() as u64;
    copy_through_memory(&base, range, &out, 2 * PAGE as u64).unwrap();
    let copied = contents(&out, bytes.len() + PAGE);
    assert_eq!(copied[2 * PAGE..], bytes[PAGE..]);
}

#[test]
fn a_zero_page_is_told_from_one_with_a_single_bit() {
    let mut page = [0; PAGE];
    assert!(is_zero(&page));
    for index in [0, 255, 256, PAGE - 1] {
        page[index] = 0x80;
        assert!(!is_zero(&page), "{index}");
        page[index] = 0;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_chain_of_clones_always_gives_what_its_guest_saw(
        generations in prop::collection::vec(
            prop::collection::vec((0_usize..48, 0_u8..4), 0..40), 1..5),
    ) {
        let mut model = vec![0; 48 * PAGE];
        let mut base: Option<File> = None;
        for changes in generations {
            let mut memory = match &base {
                None => Mapping::anonymous(48 * PAGE),
                Some(base) => Mapping::of(base, 48 * PAGE),
            };
            for (page, value) in changes {
                memory.page(page).fill(value);
                model[page * PAGE..][..PAGE].fill(value);
            }
            let source = memory.source(0);
            let source = match &base {
                None => source,
                Some(base) => source.over(base, 0).unwrap(),
            };
            let (file, _) = write(&[source]).unwrap();
            prop_assert_eq!(&contents(&file, 48 * PAGE), &model);
            base = Some(file);
        }
    }
}

/// `cargo test --release -- --ignored --nocapture measure`
#[test]
#[ignore = "measures; says nothing about being right"]
fn measure_a_gigabyte_with_32_mib_touched() {
    for (name, stride) in [
        ("in one piece", 1),
        ("every eighth page", 8),
        ("every 32nd", 32),
    ] {
        let mut memory = Mapping::anonymous(1 << 30);
        (0..8192).for_each(|page| memory.page(page * stride).fill(page as u8 | 1));
        let file = tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        measure(&format!("32 MiB of 1 GiB, {name}: pages found"), || {
            let visit = |_| Ok::<_, io::Error>(());
            Pagemap::open()?.changed(memory.source(0).address(), 1 << 30, visit)
        });
        measure("  and written", || {
            write_changed(&file, &[memory.source(0)])
        });

        let mut clone = Mapping::of(&file, 1 << 30);
        (0..2048).for_each(|page| clone.page(page * 128).fill(0x55));
        let out = tempfile().unwrap();
        let source = [clone.source(0).over(&file, 0).unwrap()];
        out.set_len(1 << 30).unwrap();
        measure("  a clone's base copied", || copy_bases(&out, &source));
        measure("  and 8 MiB that the clone changed", || {
            write_changed(&out, &source)
        });
    }
}

/// Says how long `work` takes on the clock, and how much of that this thread ran.
fn measure<T, E: std::fmt::Debug>(name: &str, work: impl FnOnce() -> Result<T, E>) {
    let processor = || {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes one timespec into the one given.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (clock, before) = (std::time::Instant::now(), processor());
    work().unwrap();
    println!(
        "{name}: {:?}, {:?} of them running",
        clock.elapsed(),
        processor() - before
    );
}
