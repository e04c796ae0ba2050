//! Loads for a disk, each byte of which is checked: past the page cache (`O_DIRECT`), by several threads at once.

use std::fs::{File, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The bytes of a block, the smallest thing that is written or read here.
pub const BLOCK: usize = 4096;
/// How many blocks each worker of a churn has for itself.
pub const REGION: u64 = 256;
/// `O_DIRECT` on x86.
const O_DIRECT: i32 = 0o40000;

/// Memory that `O_DIRECT` takes: it begins at a page.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK];
        let from = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, from, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.len]
    }
}

/// A small generator of numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Fills a block with what version `version` of block `number` has in it; no two are alike.
pub fn fill(block: &mut [u8], number: u64, version: u64) {
    let mut numbers = Numbers::new(number << 32 ^ version);
    let (head, rest) = block.split_at_mut(16);
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8..].copy_from_slice(&version.to_le_bytes());
    for word in rest.chunks_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes()[..word.len()]);
    }
}

fn open(disk: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(disk)
}

/// Writes and reads blocks in no order, and checks that each has what was written last, until `stop` is there.
///
/// What is expected is in memory: if memory and disk are not of the same instant after a restore, it shows. Calls `progress` now and
/// then with the number of writes and checked reads of the first worker.
///
/// # Errors
/// The disk's, or a block that is not what it should be.
pub fn churn(
    disk: &Path,
    workers: u64,
    stop: &Path,
    progress: impl Fn(u64) + Sync,
) -> io::Result<u64> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let (progress, over) = (&progress, &over);
                scope.spawn(move || {
                    let done = churn_region(disk, worker, stop, over, progress);
                    over.store(true, Ordering::Relaxed);
                    done
                })
            })
            .collect();
        let mut total = 0;
        for handle in handles {
            let done = handle.join();
            total += done.unwrap_or_else(|_| Err(Error::other("a worker has panicked")))?;
        }
        Ok(total)
    })
}

fn churn_region(
    disk: &Path,
    worker: u64,
    stop: &Path,
    over: &AtomicBool,
    progress: &(impl Fn(u64) + Sync),
) -> io::Result<u64> {
    let file = open(disk)?;
    let mut numbers = Numbers::new(worker + 1);
    let mut versions = vec![0_u64; REGION as usize];
    let mut block = Aligned::new(BLOCK);
    let first = worker * REGION;
    for number in first..first + REGION {
        fill(block.get_mut(), number, 0);
        file.write_all_at(block.get(), number * BLOCK as u64)?;
    }
    let mut done = 0;
    loop {
        if over.load(Ordering::Relaxed) || done % 64 == 0 && stop.exists() {
            break;
        }
        let index = numbers.below(REGION);
        let version = &mut versions[index as usize];
        if numbers.below(2) == 0 {
            fill(block.get_mut(), first + index, *version + 1);
            file.write_all_at(block.get(), (first + index) * BLOCK as u64)?;
            *version += 1;
        } else {
            check(&file, &mut block, first + index, *version)?;
        }
        done += 1;
        if done % 32 == 0 {
            file.sync_data()?;
        }
        if worker == 0 && done % 32 == 0 {
            progress(done);
        }
    }
    for (number, version) in (first..).zip(versions) {
        check(&file, &mut block, number, version)?;
    }
    Ok(done)
}

fn check(file: &File, block: &mut Aligned, number: u64, version: u64) -> io::Result<()> {
    file.read_exact_at(block.get_mut(), number * BLOCK as u64)?;
    let mut expected = [0; BLOCK];
    fill(&mut expected, number, version);
    if block.get() == expected {
        return Ok(());
    }
    let found = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block.get()[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    Err(Error::new(
        ErrorKind::InvalidData,
        format!(
            "block {number} should have version {version}, and has block {} version {}",
            found(0),
            found(8)
        ),
    ))
}

/// Writes record after record, each into a block of its own, and calls `durable` with its number when it is on the disk for good.
///
/// # Errors
/// The disk's; also when it is full.
pub fn log(disk: &Path, durable: impl Fn(u64)) -> io::Result<()> {
    let file = open(disk)?;
    let mut block = Aligned::new(BLOCK);
    for number in 0.. {
        fill(block.get_mut(), number, 1);
        file.write_all_at(block.get(), number * BLOCK as u64)?;
        file.sync_data()?;
        durable(number);
    }
    Ok(())
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Writes, else reads.
    pub write: bool,
    /// Anywhere, else one after the other.
    pub random: bool,
    /// Bytes in one access, a multiple of [`BLOCK`].
    pub bytes: usize,
    /// Accesses of each worker.
    pub count: u64,
    /// Threads, which is how many accesses are under way at a time.
    pub workers: u64,
}

/// Makes all the accesses; returns how long that took.
///
/// # Errors
/// The disk's.
pub fn time(disk: &Path, timing: Timing) -> io::Result<Duration> {
    let size = io::Seek::seek(&mut File::open(disk)?, io::SeekFrom::End(0))?;
    let share = size / timing.bytes as u64 / timing.workers;
    let begun = Instant::now();
    thread::scope(|scope| {
        let handles: Vec<_> = (0..timing.workers)
            .map(|worker| scope.spawn(move || time_worker(disk, timing, worker, share)))
            .collect();
        handles.into_iter().try_for_each(|handle| {
            let done = handle.join();
            done.unwrap_or_else(|_| Err(Error::other("a worker has panicked")))
        })
    })?;
    Ok(begun.elapsed())
}

fn time_worker(disk: &Path, timing: Timing, worker: u64, share: u64) -> io::Result<()> {
    let file = open(disk)?;
    let mut numbers = Numbers::new(worker + 7);
    let mut buffer = Aligned::new(timing.bytes);
    fill(&mut buffer.get_mut()[..BLOCK], worker, 1);
    for n in 0..timing.count {
        let index = if timing.random {
            numbers.below(share)
        } else {
            n % share.max(1)
        };
        let offset = (worker * share + index) * timing.bytes as u64;
        if timing.write {
            file.write_all_at(buffer.get(), offset)?;
        } else {
            file.read_exact_at(buffer.get_mut(), offset)?;
        }
    }
    if timing.write {
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_blocks_or_versions_are_alike() {
        let block = |number, version| {
            let mut block = [0; BLOCK];
            fill(&mut block, number, version);
            block
        };
        assert_eq!(block(1, 2), block(1, 2));
        assert_ne!(block(1, 2)[16..], block(2, 1)[16..]);
        assert_ne!(block(1, 2)[16..], block(1, 3)[16..]);
    }

    #[test]
    fn a_block_of_another_version_is_found() {
        let dir = std::env::temp_dir().join(format!("guest-load-{}", std::process::id()));
        std::fs::write(&dir, [0; BLOCK]).unwrap_or_else(|error| panic!("{error}"));
        let file = OpenOptions::new().read(true).write(true).open(&dir);
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let mut block = Aligned::new(BLOCK);
        fill(block.get_mut(), 0, 3);
        assert!(file.write_all_at(block.get(), 0).is_ok());
        assert!(check(&file, &mut block, 0, 3).is_ok());
        let wrong = check(&file, &mut block, 0, 4).map_err(|error| error.to_string());
        let _ = std::fs::remove_file(&dir);
        assert_eq!(
            wrong,
            Err("block 0 should have version 4, and has block 0 version 3".to_owned())
        );
    }
}
