//! Names that no clone shares with another: random ones, where a counter would be the same in all.

use rustix::rand::{GetRandomFlags, getrandom};

/// A UUID of version 4, from the kernel's generator.
pub(super) fn fresh() -> Option<String> {
    let mut bytes = [0; 16];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty()).ok()?;
    (filled == bytes.len()).then(|| formatted(u128::from_be_bytes(bytes)))
}

fn formatted(random: u128) -> String {
    let id = random & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        id >> 96,
        id >> 80 & 0xffff,
        id >> 64 & 0xffff,
        id >> 48 & 0xffff,
        id & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_version_4() {
        let zero = "00000000-0000-4000-8000-000000000000";
        assert_eq!(formatted(0), zero);
        let all = "ffffffff-ffff-4fff-bfff-ffffffffffff";
        assert_eq!(formatted(u128::MAX), all);
        assert_ne!(fresh().unwrap(), fresh().unwrap());
    }
}
