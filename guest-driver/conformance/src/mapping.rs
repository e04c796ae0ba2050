//! What may be mapped and how.

use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::Subject;
use crate::outcome::{Outcome, equal, refused, success, wanted};

const PAGE: usize = 4096;

pub(crate) fn mmap(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let reader = subject.open_with(libc::O_RDONLY)?;
    for len in [1, 4, PAGE] {
        success(
            "mmap of one page",
            device.map(len, PROT_READ, MAP_SHARED, 0),
        )?;
        success("mmap, read-only", reader.map(len, PROT_READ, MAP_SHARED, 0))?;
    }
    let too_long = device.map(2 * PAGE, PROT_READ, MAP_SHARED, 0);
    refused("mmap of two pages", too_long, libc::EINVAL)?;
    let behind = device.map(PAGE, PROT_READ, MAP_SHARED, PAGE as i64);
    refused("mmap with an offset", behind, libc::EINVAL)?;
    let writable = device.map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    refused("mmap, writable", writable, libc::EPERM)?;
    let private = device.map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
    refused("mmap, private and writable", private, libc::EPERM)?;
    // The kernel itself refuses before the driver is asked.
    let by_reader = reader.map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    refused(
        "mmap, writable, of a read-only file",
        by_reader,
        libc::EACCES,
    )?;

    let mapping = success("mmap", device.map(PAGE, PROT_READ, MAP_SHARED, 0))?;
    let later = mapping.protect(PROT_READ | PROT_WRITE);
    refused("mprotect to writable", later, libc::EACCES)?;
    let mut other = success("mmap", reader.map(4, PROT_READ, MAP_SHARED, 0))?;
    drop(reader);
    for _ in 0..3 {
        let new = subject.next(&device)?;
        equal("the mapped counter", mapping.load(), new)?;
        equal("the mapping of a closed file", other.load(), new)?;
        wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
        let again = subject.open_with(libc::O_RDONLY)?;
        other = success("mmap", again.map(4, PROT_READ, MAP_SHARED, 0))?;
        equal("a new mapping", other.load(), new)?;
    }
    // The page is the machine's, not the driver's: nothing else may be on it.
    for index in 1..PAGE / 4 {
        equal("a word behind the counter", mapping.word(index), 0)?;
    }
    Ok(())
}
