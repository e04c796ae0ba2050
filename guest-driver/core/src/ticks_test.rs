// SPDX-License-Identifier: GPL-2.0

//! Milliseconds in ticks of the kernel's clock.

use proptest::prelude::*;

use crate::sysgenid_core::ticks;

/// From what number on a timer takes its end for the past.
const PAST: usize = isize::MAX as usize;

#[test]
fn a_limit_is_not_shorter_than_it_was_told() {
    assert_eq!(ticks(1, 1000), 2);
    assert_eq!(ticks(1, 250), 2);
    assert_eq!(ticks(5, 250), 3);
    assert_eq!(ticks(60_000, 100), 6001);
}

proptest! {
    #[test]
    fn a_limit_is_exact_to_two_ticks_or_for_ever(milliseconds: usize, short in 0..1_000_000_usize) {
        for hz in [24, 100, 250, 300, 1000] {
            let exact = short as u128 * hz as u128 / 1000;
            prop_assert!((exact + 1..=exact + 2).contains(&(ticks(short, hz) as u128)));
            let long = ticks(milliseconds, hz);
            prop_assert!(long == usize::MAX || long as u128 > milliseconds as u128 * hz as u128 / 1000);
        }
    }

    /// The clock may be a good while ahead of what a timer knows.
    #[test]
    fn no_limit_is_so_long_that_it_is_over_at_once(below in 0..100_000_usize) {
        for milliseconds in [PAST - below, PAST + below, usize::MAX - below] {
            let long = ticks(milliseconds, 1000);
            prop_assert!(long == usize::MAX || long < PAST - (1 << 32), "{long:#x}");
        }
    }
}
