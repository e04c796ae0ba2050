//! What is left when the kernel has no memory. It needs a kernel that can be told to fail allocations.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::Subject;
use crate::observers::shown;
use crate::outcome::{Failure, Outcome, equal, holds, wanted};
use crate::raw::Device;

/// At most so many allocations are in one `open()`.
const MOST: u32 = 100;

/// Opens the device again and again, and lets the first allocation fail, then the second, and so on. None
/// of the failures leaves a watcher.
pub(crate) fn no_memory(subject: Subject<'_>) -> Outcome {
    for (name, value) in [("ignore-gfp-wait", "N"), ("verbose", "0")] {
        let path = format!("/sys/kernel/debug/failslab/{name}");
        fs::write(&path, value)
            .map_err(|error| Failure::new(format!("could not write {path}: {error}")))?;
    }
    let nth = Nth::open()?;
    let before = shown("watchers")?;
    for failing in 1..=MOST {
        nth.set(failing)?;
        let opened = Device::open(
            subject.path,
            libc::O_RDWR | libc::O_NONBLOCK,
            subject.numbering,
        );
        let left = nth.left()?;
        nth.set(0)?;
        match opened {
            Ok(_) if left > 0 => {
                holds("some allocation failed", failing > 1)?;
                equal(
                    "watchers when all have closed",
                    shown("watchers")?,
                    before + 1,
                )?;
                drop(opened);
                return nobody_is_waited_for(subject);
            }
            Ok(_) => drop(opened),
            Err(errno) => equal("the errno", errno, libc::ENOMEM)?,
        }
        let what = format!("watchers after allocation {failing} has failed");
        equal(&what, shown("watchers")?, before)?;
    }
    Err(Failure::new(format!("{MOST} allocations are not all")))
}

fn nobody_is_waited_for(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let new = subject.next(&device)?;
    wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
    wanted("wait after it", device.wait(1000), Ok(0))
}

/// Which allocation of this thread fails next; 0 is none.
struct Nth(File);

impl Nth {
    fn open() -> Outcome<Self> {
        const PATH: &str = "/proc/thread-self/fail-nth";
        File::options()
            .read(true)
            .write(true)
            .open(PATH)
            .map(Self)
            .map_err(|error| Failure::new(format!("could not open {PATH}: {error}")))
    }

    fn set(&self, nth: u32) -> Outcome {
        self.0
            .write_all_at(nth.to_string().as_bytes(), 0)
            .map_err(|error| Failure::new(format!("could not set fail-nth: {error}")))
    }

    /// What is left to count, 0 when an allocation has failed.
    fn left(&self) -> Outcome<u32> {
        let mut text = [0; 16];
        let length = self
            .0
            .read_at(&mut text, 0)
            .map_err(|error| Failure::new(format!("could not read fail-nth: {error}")))?;
        String::from_utf8_lossy(&text[..length])
            .trim()
            .parse()
            .map_err(|_| Failure::new("fail-nth is no number"))
    }
}
