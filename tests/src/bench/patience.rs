//! Steps that a guest may spoil.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, bail};

/// How often a step is tried. In the emulated host about one busy guest in a hundred crashes or falls silent.
const ATTEMPTS: usize = 3;

/// Does something that a guest may spoil by crashing, which is a panic, up to [`ATTEMPTS`] times. Also says how
/// often it was spoilt.
pub(crate) fn patiently<T>(what: &str, mut step: impl FnMut() -> Result<T>) -> Result<(T, usize)> {
    for spoilt in 0..ATTEMPTS {
        // What a panic leaves half done is a machine that is gone with it.
        match catch_unwind(AssertUnwindSafe(&mut step)) {
            Ok(result) => return result.map(|value| (value, spoilt)),
            Err(_) => eprintln!("NOTE: {what} crashed or fell silent"),
        }
    }
    bail!("{what} crashed or fell silent {ATTEMPTS} times in a row")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_panics_is_done_again_and_counted() {
        let mut times = 0;
        let (done, spoilt) = patiently("a step", || {
            times += 1;
            assert!(times > 2, "once more");
            Ok(times)
        })
        .unwrap();
        assert_eq!((done, spoilt), (3, 2));
        assert!(patiently("a step", || -> Result<()> { panic!("always") }).is_err());
    }
}
