//! What tells a program that its machine was resumed, and when: VMClock's page, which the hypervisor changes
//! while no processor of the machine runs, and the processor's time-stamp counter.

use std::time::{Duration, Instant};

use crate::outcome::{Failure, Outcome};
use crate::raw::{self, Mapping};

/// The page, and what is in it.
const VMCLOCK: &str = "/dev/vmclock0";
const DISRUPTION_MARKER: usize = 0x10;
const FLAGS: usize = 0x18;
const GENERATION: usize = 0x68;
/// There is a generation counter.
const GENERATION_PRESENT: u32 = 1 << 8;

/// How long the time-stamp counter is compared with the clock.
const CALIBRATION: Duration = Duration::from_millis(200);

/// VMClock's page.
pub(crate) struct VmClock {
    page: Mapping,
    /// The word that another life of the machine changes.
    word: usize,
}

impl VmClock {
    pub(crate) fn map() -> Outcome<Self> {
        let page = raw::map_file(VMCLOCK, libc::PROT_READ, 4096)
            .map_err(|errno| Failure::new(format!("could not map {VMCLOCK}: errno {errno}")))?;
        // QEMU has the page without a generation counter. Its marker moves at a restore just as well.
        let offset = match page.word(FLAGS / 4) & GENERATION_PRESENT {
            0 => DISRUPTION_MARKER,
            _ => GENERATION,
        };
        Ok(Self {
            page,
            word: offset / 4,
        })
    }

    /// A number that changes with each resume in another generation.
    pub(crate) fn resumes(&self) -> u32 {
        self.page.word(self.word)
    }
}

/// The processor's time-stamp counter.
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// How many nanoseconds a tick takes.
pub(crate) fn calibrate() -> f64 {
    let (begun, first) = (Instant::now(), ticks());
    while begun.elapsed() < CALIBRATION {
        std::hint::spin_loop();
    }
    let last = ticks();
    begun.elapsed().as_nanos() as f64 / (last.wrapping_sub(first)) as f64
}
