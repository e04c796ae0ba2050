//! What the server of the runtime API and the agent's thread know in common.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use tokio::sync::{Notify, oneshot};

use super::fault::Fault;
use super::runtime::Runtime;

#[derive(Debug, Default)]
pub(super) struct State {
    /// Who asks for the restore gets it. So it stays: no runtime can be asked to wait once more.
    pub(super) released: bool,
    /// The generation, as far as the agent has said it.
    pub(super) generation: Option<u32>,
    /// In which generation the last runtime was let go.
    pub(super) restored: Option<u32>,
    /// A runtime waited before the snapshot, and none was let go since.
    pub(super) missed: bool,
    /// The runtime that waits for the restore.
    pub(super) waiting: Option<Runtime>,
    /// One that was let go and has not asked for an event since.
    pub(super) adapting: Option<Runtime>,
    /// How many requests for an event wait.
    pub(super) pollers: usize,
    /// What a runtime has reported before it came to wait.
    pub(super) init: Option<Fault>,
    /// What one has reported when it was let go.
    pub(super) restore: Option<Fault>,
    /// What is to be handled, or is: one at a time.
    pub(super) event: Option<Event>,
    /// The last event whose client went away before the answer.
    pub(super) abandoned: Option<String>,
}

/// An event, as its client has sent it.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) deadline_ms: u64,
    /// A runtime has it.
    pub(super) taken: bool,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What a runtime says to an event.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) failed: bool,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Bytes,
}

impl State {
    /// This runtime is let go in this generation.
    pub(super) fn let_go(&mut self, runtime: Runtime) {
        self.adapting = Some(runtime);
        self.restored = self.generation;
        self.missed = false;
    }
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the agent's thread.
    changed: Condvar,
    /// Wakes the server's tasks.
    notify: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes all that wait for something in it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        self.notify.notify_waiters();
        changed
    }

    /// Looks at the state at each change until `look` returns something, in the agent's thread.
    pub(super) fn wait<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut found = None;
        let waiting = |state: &mut State| {
            found = look(state);
            found.is_none()
        };
        let waited = self.changed.wait_timeout_while(self.lock(), limit, waiting);
        drop(waited);
        found
    }

    /// The same in a task, for as long as it takes.
    pub(super) async fn seen<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut notified = std::pin::pin!(self.notify.notified());
            notified.as_mut().enable();
            let found = look(&mut self.lock());
            if let Some(found) = found {
                return found;
            }
            notified.await;
        }
    }
}
