//! What is behind the devices: a disk in memory, a network and programs on the host that do what the input says.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vmgenie_devices::virtio::block::{BlockBackend, Operation, SECTOR, Task};
use vmgenie_devices::virtio::net::{FrameBackend, Offloads};
use vmgenie_devices::virtio::vsock::{Event, Host, LISTENER, Stream, Token};

/// What the input has to say to a backend.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Block: nothing ends before it is waited for.
    pub(crate) held: bool,
    /// Block and net: what is done next fails with this error.
    pub(crate) error: Option<i32>,
    /// Net: frames that have come. Vsock: what programs say that want to connect.
    pub(crate) incoming: VecDeque<Vec<u8>>,
    /// Vsock: programs take only so many bytes.
    pub(crate) room: usize,
    /// Vsock: programs have ended their side.
    pub(crate) ended: bool,
}

/// The same for the backend and for who reads the input.
#[derive(Debug, Default, Clone)]
pub(crate) struct Shared(Arc<Mutex<Said>>);

impl Shared {
    pub(crate) fn get(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> io::Result<()> {
        match self.get().error.take() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Ok(()),
        }
    }
}

const SECTORS: u64 = 64;
const DEPTH: u16 = 8;

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) shared: Shared,
    pub(crate) read_only: bool,
    bytes: Vec<u8>,
    tasks: VecDeque<Task>,
    ended: VecDeque<(u16, io::Result<()>)>,
}

impl Disk {
    pub(crate) fn new(shared: &Shared, read_only: bool) -> Self {
        Self {
            shared: shared.clone(),
            read_only,
            bytes: vec![0x5a; (SECTORS * SECTOR) as usize],
            tasks: VecDeque::new(),
            ended: VecDeque::new(),
        }
    }

    fn end_one(&mut self) {
        if let Some(task) = self.tasks.pop_front() {
            let result = self.shared.failure();
            if result.is_ok() {
                self.carry_out(&task.operation);
            }
            self.ended.push_back((task.token, result));
        }
    }

    /// Panics if the device has let something through that is not on the disk.
    fn carry_out(&mut self, operation: &Operation) {
        match operation {
            Operation::Read { offset, buffers } => {
                let mut at = *offset as usize;
                for piece in buffers.iovecs() {
                    let from = &self.bytes[at..at + piece.iov_len];
                    // SAFETY: the buffers keep their memory mapped; a guest's memory has no references to it.
                    unsafe { std::ptr::copy(from.as_ptr(), piece.iov_base.cast(), from.len()) };
                    at += piece.iov_len;
                }
            }
            Operation::Write {
                offset, buffers, ..
            } => {
                assert!(!self.read_only);
                let mut at = *offset as usize;
                for piece in buffers.iovecs() {
                    let to = &mut self.bytes[at..at + piece.iov_len];
                    // SAFETY: as above.
                    unsafe { std::ptr::copy(piece.iov_base.cast(), to.as_mut_ptr(), to.len()) };
                    at += piece.iov_len;
                }
            }
            Operation::Flush => {}
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                assert!(!self.read_only);
                self.bytes[*offset as usize..(offset + len) as usize].fill(0);
            }
        }
    }
}

impl BlockBackend for Disk {
    fn sectors(&self) -> u64 {
        SECTORS
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn flushes(&self) -> bool {
        true
    }

    fn discards(&self) -> bool {
        !self.read_only
    }

    fn depth(&self) -> u16 {
        DEPTH
    }

    fn start(&mut self, task: Task) {
        assert!(task.token < DEPTH);
        assert!(self.tasks.iter().all(|other| other.token != task.token));
        self.tasks.push_back(task);
    }

    fn kick(&mut self) -> bool {
        while !self.shared.get().held && !self.tasks.is_empty() {
            self.end_one();
        }
        true
    }

    fn ended(&mut self) -> Option<(u16, io::Result<()>)> {
        self.ended.pop_front()
    }

    fn wait(&mut self) {
        assert!(!self.tasks.is_empty() || !self.ended.is_empty());
        self.end_one();
    }

    fn sync(&mut self) -> io::Result<()> {
        assert!(self.tasks.is_empty());
        self.shared.failure()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Copies `from` into `into`; returns how many bytes that were.
fn fill(mut from: &[u8], into: &[VolatileSlice<'_>]) -> usize {
    let all = from.len();
    for slice in into {
        let now = from.len().min(slice.len());
        slice.copy_from(&from[..now]);
        from = &from[now..];
    }
    all - from.len()
}

fn len(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// A network.
#[derive(Debug, Clone)]
pub(crate) struct Network(pub(crate) Shared);

impl FrameBackend for Network {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        assert!(len(frame) >= vmgenie_devices::virtio::net::HEADER_LEN);
        self.0.failure()
    }

    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.0.failure()?;
        match self.0.get().incoming.pop_front() {
            Some(frame) => Ok(fill(&frame, buffers)),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// The host's programs.
#[derive(Debug)]
pub(crate) struct Programs {
    shared: Shared,
    watched: Vec<Token>,
}

impl Programs {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self {
            shared: shared.clone(),
            watched: Vec::new(),
        }
    }
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Program {
    shared: Shared,
    says: VecDeque<u8>,
}

impl Program {
    fn say(&mut self, most: usize, take: bool) -> io::Result<Vec<u8>> {
        if self.says.is_empty() && !self.shared.get().ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        let most = most.min(self.says.len());
        Ok(match take {
            true => self.says.drain(..most).collect(),
            false => self.says.iter().take(most).copied().collect(),
        })
    }

    fn hear(&mut self, bytes: usize) -> io::Result<usize> {
        self.shared.failure()?;
        let mut said = self.shared.get();
        let now = bytes.min(said.room);
        said.room -= now;
        match now {
            0 => Err(ErrorKind::WouldBlock.into()),
            now => Ok(now),
        }
    }
}

impl Stream for Program {
    fn read_vectored(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        assert!(len(into) > 0);
        Ok(fill(&self.say(len(into), true)?, into))
    }

    fn write_vectored(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.hear(len(from))
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.hear(from.len())
    }

    fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.say(into.len(), false)?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.say(into.len(), true)?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn shutdown(&mut self, _how: Shutdown) -> io::Result<()> {
        self.shared.failure()
    }
}

impl Host for Programs {
    type Stream = Program;

    fn connect(&mut self, port: u32) -> io::Result<Program> {
        self.shared.failure()?;
        match port % 4 {
            0 => Err(ErrorKind::ConnectionRefused.into()),
            n => Ok(Program {
                shared: self.shared.clone(),
                says: (0..n * 300).map(|n| n as u8).collect(),
            }),
        }
    }

    fn accept(&mut self) -> io::Result<Program> {
        match self.shared.get().incoming.pop_front() {
            Some(says) => Ok(Program {
                shared: self.shared.clone(),
                says: says.into(),
            }),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn watch(&mut self, _stream: &Program, token: Token) -> io::Result<()> {
        self.watched.push(token);
        self.shared.failure()
    }

    fn watch_writable(&mut self, _stream: &Program, _token: Token, _on: bool) -> io::Result<()> {
        self.shared.failure()
    }

    fn ready(&mut self, events: &mut Vec<Event>) -> bool {
        let ended = self.shared.get().ended;
        let tokens = self.watched.iter().copied().chain([LISTENER]);
        events.extend(tokens.map(|token| Event {
            token,
            readable: true,
            writable: true,
            ended,
            closed: false,
        }));
        false
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
