//! A task as the system calls that it takes, one after the other, whoever makes them: a transfer may end early, and what a file
//! system cannot do in one way it may do in another.

use std::io;
use std::sync::atomic::AtomicU8;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vmgenie_devices::virtio::block::{Buffers, Operation};

/// What zeros are written from, where the file system cannot make any. Atomic although nobody writes them: plain ones would be constants,
/// in the program's file and in memory with their neighbours; these are there when they are first read.
static ZEROS: [AtomicU8; 64 << 10] = [const { AtomicU8::new(0) }; 64 << 10];
/// How often [`ZEROS`] go into one system call.
const ZEROS_AT_ONCE: u64 = 16;

/// The next system call.
#[derive(Debug)]
pub(super) enum Call<'a> {
    /// `preadv`.
    Read(&'a [libc::iovec], u64),
    /// `pwritev`.
    Write(&'a [libc::iovec], u64),
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate(FallocateFlags, u64, u64),
}

/// A task on its way.
#[derive(Debug)]
pub(super) struct Job {
    step: Step,
    /// [`Step::Sync`] comes last.
    durable: bool,
}

#[derive(Debug)]
enum Step {
    Read(u64, Buffers),
    Write(u64, Buffers),
    Sync,
    Discard(u64, u64),
    /// The ways in which a range can be zeroed, each the next one's predecessor: giving its space back, keeping its space, with data.
    Punch(u64, u64),
    ZeroRange(u64, u64),
    ZeroData(u64, u64, Zeros),
}

/// Pieces of [`ZEROS`].
#[derive(Debug)]
struct Zeros(Vec<libc::iovec>);

// SAFETY: the pointers lead into a static array that nobody writes: these are only ever given to `pwritev`.
unsafe impl Send for Zeros {}

impl Zeros {
    /// Not more than `len` bytes of zeros, and some if `len` is not 0.
    fn up_to(len: u64) -> Self {
        let piece = |n: u64| {
            let left = len.saturating_sub(n * ZEROS.len() as u64);
            libc::iovec {
                iov_base: ZEROS.as_ptr().cast_mut().cast(),
                iov_len: left.min(ZEROS.len() as u64) as usize,
            }
        };
        let pieces = (0..ZEROS_AT_ONCE).map(piece);
        Self(pieces.take_while(|piece| piece.iov_len > 0).collect())
    }
}

impl Job {
    pub(super) fn new(operation: Operation) -> Self {
        let (step, durable) = match operation {
            Operation::Read { offset, buffers } => (Step::Read(offset, buffers), false),
            Operation::Write {
                offset,
                buffers,
                durable,
            } => (Step::Write(offset, buffers), durable),
            Operation::Flush => (Step::Sync, false),
            Operation::Discard { offset, len } => (Step::Discard(offset, len), false),
            Operation::WriteZeroes {
                offset,
                len,
                unmap: true,
                durable,
            } => (Step::Punch(offset, len), durable),
            Operation::WriteZeroes {
                offset,
                len,
                unmap: false,
                durable,
            } => (Step::ZeroRange(offset, len), durable),
        };
        Self { step, durable }
    }

    /// What is to be done next.
    pub(super) fn call(&self) -> Call<'_> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match &self.step {
            Step::Read(offset, buffers) => Call::Read(buffers.iovecs(), *offset),
            Step::Write(offset, buffers) => Call::Write(buffers.iovecs(), *offset),
            Step::Sync => Call::Sync,
            Step::Discard(offset, len) | Step::Punch(offset, len) => {
                Call::Allocate(punch, *offset, *len)
            }
            Step::ZeroRange(offset, len) => {
                let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                Call::Allocate(zero, *offset, *len)
            }
            Step::ZeroData(offset, _, zeros) => Call::Write(&zeros.0, *offset),
        }
    }

    /// What came of it: the result of the task if it has ended, none if there is another call to make.
    pub(super) fn advance(&mut self, result: Result<u64, Errno>) -> Option<io::Result<()>> {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(Errno::INTR | Errno::AGAIN) => return None,
            Err(error) => {
                return match self.other_way(error) {
                    true => None,
                    false => Some(Err(error.into())),
                };
            }
        };
        match &mut self.step {
            Step::Read(offset, buffers) | Step::Write(offset, buffers) => {
                if bytes == 0 {
                    // The file is shorter than it was.
                    return Some(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                *offset += bytes;
                buffers.advance(bytes);
                if !buffers.is_empty() {
                    return None;
                }
            }
            Step::ZeroData(offset, len, zeros) => {
                if bytes == 0 {
                    return Some(Err(io::ErrorKind::WriteZero.into()));
                }
                *offset += bytes;
                *len = len.saturating_sub(bytes);
                if *len > 0 {
                    *zeros = Zeros::up_to(*len);
                    return None;
                }
            }
            Step::Sync | Step::Discard(..) | Step::ZeroRange(..) | Step::Punch(..) => {}
        }
        if std::mem::take(&mut self.durable) {
            self.step = Step::Sync;
            return None;
        }
        Some(Ok(()))
    }

    /// Zeros can be had in another way than the one that was not possible.
    fn other_way(&mut self, error: Errno) -> bool {
        if error != Errno::OPNOTSUPP {
            return false;
        }
        self.step = match self.step {
            Step::Punch(offset, len) => Step::ZeroRange(offset, len),
            Step::ZeroRange(offset, len) => Step::ZeroData(offset, len, Zeros::up_to(len)),
            _ => return false,
        };
        true
    }
}
