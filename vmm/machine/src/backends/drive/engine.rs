//! What serves a drive's requests: a ring or threads, but for a request that is alone and will not wait, see [`Quick`].

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vmgenie_devices::virtio::block::Task;

use super::durability::Durability;
use super::overlay::Overlay;
use super::quick::Quick;
use super::store::Store;
use super::threads::{self, Threads};
use super::uring::{self, Uring};
use crate::config::IoEngine;

/// See the module's documentation. Tasks go in by token and come out in any order.
pub(super) struct Engine {
    kind: Kind,
    /// Tasks that the ring or the threads have.
    in_flight: usize,
    /// They have nothing to do and nothing to tell.
    is_idle: bool,
    /// None for an overlay: a request may take several calls.
    quick: Option<Quick>,
    /// Was taken while there was nothing else to do.
    alone: Option<Task>,
    /// Was carried out at once.
    at_once: Option<u16>,
    /// Something was, in this turn: the driver does not know of it yet.
    answered: bool,
    /// How many more tasks go to the ring or the threads even if they are alone: the driver does not wait for each of its requests.
    crowd: u32,
}

/// For how many tasks a driver that has made one request available before the answer to another is taken to have more.
const CROWD: u32 = 64;

enum Kind {
    Uring(Box<Uring>),
    Threads(Threads),
}

impl Engine {
    /// For a plain file, `wanted` if the host has it.
    ///
    /// # Errors
    /// No eventfd can be had.
    pub(super) fn new(file: File, wanted: IoEngine) -> io::Result<Self> {
        let quick = Some(Quick::new(&file));
        if wanted == IoEngine::Async {
            match file.try_clone().and_then(Uring::new) {
                Ok(uring) => return Ok(Self::of(Kind::Uring(Box::new(uring)), quick)),
                Err(error) => {
                    tracing::warn!(%error, "this host has no io_uring for us: threads serve the drive");
                }
            }
        }
        let threads = Threads::new(Store::File(file, Durability::default()))?;
        Ok(Self::of(Kind::Threads(threads), quick))
    }

    /// Threads for a drive in two layers: a request may take several calls, which depend on each other.
    ///
    /// # Errors
    /// No eventfd can be had.
    pub(super) fn with_overlay(overlay: Arc<Overlay>) -> io::Result<Self> {
        let threads = Threads::new(Store::Overlay(overlay))?;
        Ok(Self::of(Kind::Threads(threads), None))
    }

    fn of(kind: Kind, quick: Option<Quick>) -> Self {
        Self {
            kind,
            in_flight: 0,
            is_idle: true,
            quick,
            alone: None,
            at_once: None,
            answered: false,
            crowd: 0,
        }
    }

    /// The file that the guest's writes go to.
    pub(super) fn file(&self) -> &File {
        file(&self.kind)
    }

    pub(super) fn overlay(&self) -> Option<&Arc<Overlay>> {
        match &self.kind {
            Kind::Threads(threads) => match threads.store() {
                Store::Overlay(overlay) => Some(overlay),
                Store::File(..) => None,
            },
            Kind::Uring(_) => None,
        }
    }

    /// Makes durable what was written. Nothing is in flight.
    ///
    /// # Errors
    /// The file's, or a sync has failed before.
    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Uring(uring) => uring.sync(),
            Kind::Threads(threads) => threads.store().sync(),
        }
    }

    /// How many tasks may be in flight.
    pub(super) fn depth(&self) -> u16 {
        match &self.kind {
            Kind::Uring(_) => uring::DEPTH,
            Kind::Threads(_) => threads::DEPTH,
        }
    }

    /// The driver is told afterwards of all that ends from here on.
    pub(super) fn turn_begins(&mut self) {
        self.answered = false;
    }

    /// Takes a task.
    pub(super) fn start(&mut self, task: Task) {
        if self.answered || self.in_flight > 0 || self.alone.is_some() {
            // Together they take less: requests that end by and by, each at once, cost an interrupt each.
            self.crowd = CROWD;
        } else if self.crowd > 0 {
            self.crowd -= 1;
        } else if self.quick.is_some() {
            self.alone = Some(task);
            return;
        }
        if let Some(first) = self.alone.take() {
            self.hand_over(first);
        }
        self.hand_over(task);
    }

    fn hand_over(&mut self, task: Task) {
        self.in_flight += 1;
        self.is_idle = false;
        match &mut self.kind {
            Kind::Uring(uring) => uring.start(task),
            Kind::Threads(threads) => threads.start(task),
        }
    }

    /// Begins what was taken. False if the host has no room for some of it.
    pub(super) fn kick(&mut self) -> bool {
        if let (Some(task), Some(quick)) = (self.alone.take(), &self.quick) {
            if quick.run(file(&self.kind), &task.operation) {
                self.at_once = Some(task.token);
                self.answered = true;
            } else {
                self.hand_over(task);
            }
        }
        match &mut self.kind {
            Kind::Uring(uring) => uring.kick(),
            Kind::Threads(_) => true,
        }
    }

    /// A task that has ended.
    pub(super) fn ended(&mut self) -> Option<(u16, io::Result<()>)> {
        if let Some(token) = self.at_once.take() {
            return Some((token, Ok(())));
        }
        if self.is_idle {
            return None;
        }
        let ended = match &mut self.kind {
            Kind::Uring(uring) => uring.ended(),
            Kind::Threads(threads) => threads.ended(),
        };
        self.in_flight -= usize::from(ended.is_some());
        // Its descriptor may become readable once more for what was taken here; who watches it looks again, and finds nothing.
        self.is_idle = ended.is_none() && self.in_flight == 0;
        ended
    }

    /// Takes the file for one in memory.
    #[cfg(test)]
    pub(super) fn in_memory(&mut self) {
        self.quick = Some(Quick::in_memory(true));
    }

    /// Whether there is one that nobody else has carried out.
    #[cfg(test)]
    pub(super) fn at_once(&self) -> bool {
        self.at_once.is_some()
    }

    /// Waits until there is one.
    pub(super) fn wait(&mut self) {
        if self.at_once.is_some() {
            return;
        }
        match &mut self.kind {
            Kind::Uring(uring) => uring.wait(),
            Kind::Threads(threads) => threads.wait(),
        }
    }

    /// Readable when tasks have ended in the ring or the threads.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Uring(uring) => uring.fd(),
            Kind::Threads(threads) => threads.fd(),
        }
    }
}

fn file(kind: &Kind) -> &File {
    match kind {
        Kind::Uring(uring) => uring.file(),
        Kind::Threads(threads) => threads.store().file(),
    }
}
