//! Requests through plain system calls, on a few threads of their own: where there is no io_uring, or none is wanted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmgenie_devices::virtio::block::Task;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::store::Store;

/// Requests that the guest may have in flight; as many of them are worked on as there are threads.
pub(super) const DEPTH: u16 = 128;
/// The most threads.
const THREADS: usize = 4;

/// What the threads share.
struct Shared {
    store: Store,
    work: Mutex<Work>,
    /// There is a task, or no more.
    begin: Condvar,
    /// A task has ended.
    end: Condvar,
    wake: EventFd,
}

#[derive(Default)]
struct Work {
    tasks: VecDeque<Task>,
    ended: VecDeque<(u16, io::Result<()>)>,
    /// Threads that wait for a task.
    idle: usize,
    in_flight: usize,
    stop: bool,
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        // Nobody panics with the lock held.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads. They are made when there is something to do.
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// No thread yet.
    ///
    /// # Errors
    /// No eventfd can be had.
    pub(super) fn new(store: Store) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                work: Mutex::default(),
                begin: Condvar::new(),
                end: Condvar::new(),
                wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            }),
            threads: Vec::new(),
        })
    }

    pub(super) fn store(&self) -> &Store {
        &self.shared.store
    }

    pub(super) fn start(&mut self, task: Task) {
        let mut work = self.shared.work();
        work.in_flight += 1;
        work.tasks.push_back(task);
        let busy = work.tasks.len() > work.idle;
        drop(work);
        self.shared.begin.notify_one();
        if busy && self.threads.len() < THREADS {
            self.add_thread();
        }
    }

    fn add_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name("drive".to_owned())
            .spawn(move || serve(&shared));
        match thread {
            Ok(thread) => self.threads.push(thread),
            Err(error) if self.threads.is_empty() => {
                tracing::warn!(%error, "a drive's requests are served in the event loop");
                let task = self.shared.work().tasks.pop_front();
                if let Some(task) = task {
                    serve_one(&self.shared, task);
                }
            }
            Err(_) => {}
        }
    }

    pub(super) fn ended(&mut self) -> Option<(u16, io::Result<()>)> {
        let mut work = self.shared.work();
        let ended = work.ended.pop_front();
        if ended.is_none() {
            // With the lock held, so that no wake-up of a later end is taken away.
            let _ = self.shared.wake.read();
        }
        ended
    }

    pub(super) fn wait(&mut self) {
        let mut work = self.shared.work();
        while work.ended.is_empty() && work.in_flight > 0 {
            work = self
                .shared
                .end
                .wait(work)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is open for as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.shared.wake.as_raw_fd()) }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.work().stop = true;
        self.shared.begin.notify_all();
        for thread in self.threads.drain(..) {
            // Not even a panic would matter any more.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared) {
    let mut work = shared.work();
    loop {
        if let Some(task) = work.tasks.pop_front() {
            drop(work);
            serve_one(shared, task);
            work = shared.work();
        } else if work.stop {
            return;
        } else {
            work.idle += 1;
            work = shared
                .begin
                .wait(work)
                .unwrap_or_else(PoisonError::into_inner);
            work.idle -= 1;
        }
    }
}

fn serve_one(shared: &Shared, task: Task) {
    // The buffers are done with when this returns, before anybody hears of it.
    let result = shared.store.run(task.operation);
    let mut work = shared.work();
    work.in_flight -= 1;
    work.ended.push_back((task.token, result));
    drop(work);
    shared.end.notify_one();
    let _ = shared.wake.write(1);
}
