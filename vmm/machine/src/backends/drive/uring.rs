//! Requests through io_uring: as many at a time as the guest asks for, without a thread of our own.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;
use vmgenie_devices::virtio::block::Task;

use super::durability::Durability;
use super::job::{Call, Job};

/// Requests in flight; the ring has as many entries.
pub(super) const DEPTH: u16 = 128;
/// How often a kernel that has no memory for requests is asked before others have their turn.
const KICKS: u32 = 3;

/// A ring and the requests in it.
pub(super) struct Uring {
    ring: IoUring,
    file: File,
    /// By token. One that is here may be known to the kernel, which then uses its buffers.
    jobs: Vec<Option<Job>>,
    in_flight: usize,
    ended: VecDeque<(u16, io::Result<()>)>,
    durability: Durability,
    /// The task whose sync the kernel has: never more than one, see [`Durability`].
    syncing: Option<u16>,
    /// Those that have come to theirs meanwhile.
    syncs: VecDeque<u16>,
}

impl Uring {
    /// Makes a ring.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not allow it.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(DEPTH.into())?;
        Ok(Self {
            ring,
            file,
            jobs: (0..DEPTH).map(|_| None).collect(),
            in_flight: 0,
            ended: VecDeque::new(),
            durability: Durability::default(),
            syncing: None,
            syncs: VecDeque::new(),
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes durable what was written. Nothing is in flight.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.durability.sync(&self.file)
    }

    pub(super) fn start(&mut self, task: Task) {
        let Some(slot) = self.jobs.get_mut(usize::from(task.token)) else {
            unreachable!("tokens are smaller than the depth");
        };
        debug_assert!(slot.is_none(), "the token is in use");
        *slot = Some(Job::new(task.operation));
        self.in_flight += 1;
        self.queue(task.token);
    }

    /// Puts the next call of a job into the ring, a sync when its turn has come; the kernel does not look yet.
    fn queue(&mut self, token: u16) {
        let Some(job) = &self.jobs[usize::from(token)] else {
            unreachable!("only called for jobs that are there");
        };
        let call = job.call();
        if matches!(call, Call::Sync) {
            if self.syncing.is_some_and(|other| other != token) {
                return self.syncs.push_back(token);
            }
            self.syncing = Some(token);
        }
        let entry = entry(&self.file, &call).user_data(token.into());
        // SAFETY: the entry's pointers lead to a list of pieces which the job owns, and to the pieces themselves, which it keeps mapped. The
        // job stays in `jobs`, and its list is not changed, until the kernel has answered for this entry; `drop` waits for that.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // The ring has as many entries as there are tokens, and a job has one entry at a time.
        debug_assert!(pushed.is_ok(), "the ring is full");
    }

    /// False if the kernel has not taken all: memory, or answers that nobody has taken.
    pub(super) fn kick(&mut self) -> bool {
        for _ in 0..KICKS {
            if self.ring.submission().is_empty() {
                return true;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.reap();
                    thread::sleep(Duration::from_micros(100));
                }
            }
        }
        self.ring.submission().is_empty()
    }

    /// Takes the kernel's answers; puts into the ring again what is not complete. True if there is something for the kernel.
    fn reap(&mut self) -> bool {
        let mut more = false;
        loop {
            let Some(answer) = self.ring.completion().next() else {
                return more;
            };
            let Ok(token) = u16::try_from(answer.user_data()) else {
                continue;
            };
            let Some(slot) = self.jobs.get_mut(usize::from(token)) else {
                continue;
            };
            let Some(job) = slot else { continue };
            let result = match answer.result() {
                bytes @ 0.. => Ok(bytes.unsigned_abs().into()),
                error => Err(Errno::from_raw_os_error(-error)),
            };
            match job.advance(result) {
                Some(result) => {
                    *slot = None;
                    self.in_flight -= 1;
                    if self.syncing != Some(token) {
                        self.ended.push_back((token, result));
                        continue;
                    }
                    self.syncing = None;
                    self.ended.push_back((token, self.durability.ended(result)));
                    if let Some(next) = self.syncs.pop_front() {
                        self.queue(next);
                        more = true;
                    }
                }
                None => {
                    self.queue(token);
                    more = true;
                }
            }
        }
    }

    pub(super) fn ended(&mut self) -> Option<(u16, io::Result<()>)> {
        if self.ended.is_empty() && self.reap() {
            // What does not go now goes with the device's own kick, which comes after this.
            let _ = self.kick();
        }
        self.ended.pop_front()
    }

    pub(super) fn wait(&mut self) {
        while self.ended.is_empty() && self.in_flight > 0 {
            self.reap();
            if !self.ended.is_empty() {
                return;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's file descriptor, open for as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may write into the buffers of what is in flight.
        while self.in_flight > 0 {
            self.wait();
            self.ended.clear();
        }
    }
}

/// The entry of the ring that makes `call`.
fn entry(file: &File, call: &Call<'_>) -> Entry {
    let fd = types::Fd(file.as_raw_fd());
    match *call {
        // The lists are shorter than IOV_MAX.
        Call::Read(pieces, offset) => opcode::Readv::new(fd, pieces.as_ptr(), pieces.len() as u32)
            .offset(offset)
            .build(),
        Call::Write(pieces, offset) => {
            opcode::Writev::new(fd, pieces.as_ptr(), pieces.len() as u32)
                .offset(offset)
                .build()
        }
        Call::Sync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Call::Allocate(mode, offset, len) => opcode::Fallocate::new(fd, len)
            .offset(offset)
            .mode(mode.bits().cast_signed())
            .build(),
    }
}
