//! Restores on QEMU, as programs see them.

use std::collections::HashSet;

use vmgenie_tests::evidence::Noticed;
use vmgenie_tests::shell::{generation, load_modules, no_complaints, start, told};
use vmgenie_tests::{Guest, Qemu, Shell};

use crate::boot;

/// Two clones of one snapshot: a program that has started before it learns of the restore in all four ways,
/// and the kernel has reseeded once, from another ID in each.
fn noticed_in_every_way(guest: Guest) {
    let mut qemu = boot(guest);
    let text = start(&mut qemu, "sysgenid-test notice");
    assert!(text.contains("ready 1\n"), "{text}");
    let frozen = qemu.snapshot();
    let mut ids = HashSet::new();
    for _ in 0..2 {
        let mut clone = Qemu::restore(&frozen);
        let text = told(&mut clone, "ok notice");
        // By one: here nobody but the driver moves the counter.
        for line in [
            "read Ok(2)",
            "poll Ok(65) Ok(2)",
            "wait Err(4)",
            "mapped 2",
            "mapped at last 2",
            "uevent Some(\"SYSGENID=2\")",
        ] {
            let times = text.lines().filter(|said| *said == line).count();
            assert_eq!(times, 1, "{line:?} in {text}");
        }
        assert_eq!(generation(&mut clone), 2);
        let noticed = Noticed::of(&mut clone);
        assert_eq!((noticed.reseeds, noticed.ids.len()), (1, 1), "{noticed:?}");
        assert!(ids.insert(noticed.ids[0].clone()), "{noticed:?} {ids:?}");
        no_complaints(&mut clone);
    }
    qemu.resume();
    assert_eq!(generation(&mut qemu), 1, "the original is no clone");
    assert!(!qemu.shell("cat /tmp/told").contains("read Ok"));
}

#[test]
fn a_read_a_poll_a_mapping_and_a_wait_notice_a_restore_of_the_small_kernel_on_qemu() {
    noticed_in_every_way(Guest::Small);
}

#[test]
fn a_read_a_poll_a_mapping_and_a_wait_notice_a_restore_of_the_stock_kernel_on_qemu() {
    noticed_in_every_way(Guest::Debian);
}

/// The last word of the line that starts with `word`.
fn bytes<'a>(text: &'a str, word: &str) -> &'a str {
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with(word)).expect("a line");
    line.rsplit(' ').next().expect("bytes")
}

#[test]
fn aws_lc_draws_other_bytes_in_each_clone_on_qemu() {
    let mut qemu = boot(Guest::Small);
    let text = start(&mut qemu, "sysgenid-aws-lc draw --after /tmp/restored");
    assert!(text.starts_with("ready active 1 generation 0 "), "{text}");
    let before = bytes(&text, "ready").to_owned();
    let frozen = qemu.snapshot();
    let mut drawn = HashSet::from([before]);
    for _ in 0..2 {
        let mut clone = Qemu::restore(&frozen);
        clone.shell("touch /tmp/restored");
        let text = told(&mut clone, "again");
        assert!(text.contains("\nagain active 1 generation 1 "), "{text}");
        assert!(
            drawn.insert(bytes(&text, "again").to_owned()),
            "drawn before: {text}"
        );
    }
    qemu.resume();
    qemu.shell("touch /tmp/restored");
    let text = told(&mut qemu, "again");
    assert!(text.contains("\nagain active 1 generation 0 "), "{text}");
    assert!(drawn.insert(bytes(&text, "again").to_owned()), "{text}");
}

/// Snapshots of clones of clones. A thread that does nothing but load counts how long the mapping stays old
/// after each resume: the figures are in the test's output, and that it does move is asserted.
#[test]
fn each_generation_of_a_chain_on_qemu_moves_the_counter_by_one_and_the_mapping_in_the_end() {
    const ROUNDS: u32 = 4;
    let mut qemu = Qemu::boot(Guest::Small, 2);
    load_modules(&mut qemu, "");
    qemu.shell("test -e /dev/vmclock0 || insmod /modules/ptp_vmclock.ko");
    start(&mut qemu, "sysgenid-test first-load");
    for round in 1..=ROUNDS {
        let frozen = qemu.snapshot();
        drop(qemu);
        qemu = Qemu::restore(&frozen);
        let line = format!("counter {} {round} stale", round - 1);
        let text = told_line(&mut qemu, round);
        assert!(text.contains(&line), "{line:?} in {text}");
        println!("on QEMU: {text}");
        assert_eq!(generation(&mut qemu), round);
    }
    let reseeds = Noticed::of(&mut qemu).reseeds;
    assert_eq!(reseeds, ROUNDS as usize);
    no_complaints(&mut qemu);
}

/// The line of the `number`th resume.
fn told_line(qemu: &mut Qemu, number: u32) -> String {
    vmgenie_tests::process::wait_until("a resume", crate::LIMIT, || {
        told(qemu, "ready").matches("resume").count() == number as usize
    });
    let text = told(qemu, "resume");
    let line = text.lines().rfind(|line| line.starts_with("resume"));
    line.expect("a resume").to_owned()
}
