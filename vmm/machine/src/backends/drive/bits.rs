//! A set of numbers that threads look into while another changes it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each granule.
#[derive(Debug)]
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    /// All off.
    pub(super) fn new(granules: u64) -> Self {
        let words = granules.div_ceil(64);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// False behind the end.
    pub(super) fn get(&self, granule: u64) -> bool {
        let word = self.0.get((granule / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (granule % 64) != 0)
    }

    /// Does nothing behind the end.
    pub(super) fn set(&self, granule: u64, on: bool) {
        let Some(word) = self.0.get((granule / 64) as usize) else {
            return;
        };
        let bit = 1 << (granule % 64);
        match on {
            true => word.fetch_or(bit, Ordering::Release),
            false => word.fetch_and(!bit, Ordering::Release),
        };
    }

    /// The byte with the bits of the granules from `8 * index` on.
    pub(super) fn byte(&self, index: u64) -> u8 {
        let word = self.0.get((index / 8) as usize);
        let word = word.map_or(0, |word| word.load(Ordering::Acquire));
        (word >> (8 * (index % 8))) as u8
    }
}
