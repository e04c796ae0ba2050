//! What the fuzz targets do with their input: `cargo xtask fuzz`.
//!
//! | target | the input is |
//! |---|---|
//! | [`queues`] | what a driver does to one virtio device: rings, chains, requests, packets |
//! | [`registers`] | accesses to the registers of every device |
//! | [`state`] | a state file, or changes of a good one |
//! | [`api`] | the body of a request |
//!
//! No input may make anything panic, go on without end or take memory without bound; and whatever a guest has done to a device, the
//! state that is saved of it can be restored.
//!
//! Seeds lie in `seeds/TARGET`: text with a comment for each line of hexadecimal digits (`.hex`), or as they are. What a fuzzer has found is
//! mended with a test beside the code.

mod api;
mod backends;
mod driver;
mod input;
mod machine;
mod queues;
mod registers;
mod state;

pub use api::api;
pub use queues::queues;
pub use registers::registers;
pub use state::state;

use input::Input;

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 4] = [
    ("queues", queues),
    ("registers", registers),
    ("state", state),
    ("api", api),
];

/// The bytes that a `.hex` seed stands for: pairs of hexadecimal digits, up to a `#` on each line.
///
/// None if it says anything else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().bytes())
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                Some((digit(*high)? * 16 + digit(*low)?) as u8)
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_target_takes_its_seeds() {
        for (name, target) in TARGETS {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("seeds")
                .join(name);
            let mut seeds = 0;
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                match path.extension().is_some_and(|is| is == "hex") {
                    true => target(&from_hex(&String::from_utf8(bytes).unwrap()).unwrap()),
                    false => target(&bytes),
                }
                seeds += 1;
            }
            assert!(seeds > 0, "no seeds of {name}");
            target(&[]);
        }
    }

    #[test]
    fn a_seed_in_text_is_read_up_to_each_comment() {
        assert_eq!(from_hex("00 1f # x\n\nAb"), Some(vec![0, 0x1f, 0xab]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }
}
