//! The gate in front of all vCPUs: who may run. The proof that nobody does is [`super::vcpus::Standstill`], which stands on it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait for the vCPUs before they are kicked once more. A kick can be lost when it hits a system call of a device
/// model, so it is repeated until it has worked.
const KICK_INTERVAL: Duration = Duration::from_millis(5);

/// What the vCPU threads shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stand,
    Run,
    Exit,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    running: usize,
}

/// Where all vCPU threads of a machine wait.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                wish: Wish::Stand,
                running: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is two plain values: a panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// vCPU thread: waits until it may run (true) or must end (false). `ready` is called before anybody can want it to stop
    /// again.
    pub(super) fn enter(&self, ready: impl FnOnce()) -> bool {
        let mut state = self.lock();
        while state.wish == Wish::Stand {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.wish == Wish::Exit {
            return false;
        }
        state.running += 1;
        ready();
        true
    }

    /// vCPU thread: no longer runs.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.running -= 1;
        if state.running == 0 {
            self.changed.notify_all();
        }
    }

    /// vCPU thread: has failed and waits for its end.
    pub(super) fn wait_for_exit(&self) {
        let mut state = self.lock();
        while state.wish != Wish::Exit {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// vCPU thread: may it go on?
    pub(super) fn may_run(&self) -> bool {
        self.lock().wish == Wish::Run
    }

    /// Lets the vCPUs run.
    pub(super) fn open(&self) {
        self.lock().wish = Wish::Run;
        self.changed.notify_all();
    }

    /// Stops the vCPUs and waits until none runs. `kick` makes every one of them look at the gate. If one still runs after `patience`, all go on.
    ///
    /// # Errors
    /// How many still run.
    pub(super) fn close(&self, patience: Duration, kick: impl Fn()) -> Result<(), usize> {
        let deadline = Instant::now() + patience;
        self.stop(Wish::Stand, kick, || Instant::now() >= deadline)
    }

    /// Ends all vCPU threads.
    pub(super) fn dismiss(&self, kick: impl Fn()) {
        // It does not give up.
        let _ = self.stop(Wish::Exit, kick, || false);
    }

    fn stop(&self, wish: Wish, kick: impl Fn(), gives_up: impl Fn() -> bool) -> Result<(), usize> {
        let mut state = self.lock();
        state.wish = wish;
        self.changed.notify_all();
        while state.running > 0 {
            if gives_up() {
                let running = state.running;
                state.wish = Wish::Run;
                self.changed.notify_all();
                return Err(running);
            }
            kick();
            state = self
                .changed
                .wait_timeout(state, KICK_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// Is the gate open?
    pub(super) fn is_open(&self) -> bool {
        self.may_run()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn close_returns_when_no_thread_runs_and_open_lets_them_go_on() {
        let gate = Arc::new(Gate::new());
        let inside = Arc::new(AtomicUsize::new(0));
        let rounds = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (gate, inside, rounds) = (gate.clone(), inside.clone(), rounds.clone());
                thread::spawn(move || {
                    while gate.enter(|| {
                        inside.fetch_add(1, Ordering::SeqCst);
                    }) {
                        while gate.may_run() {
                            rounds.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        gate.leave();
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            let before = rounds.load(Ordering::SeqCst);
            gate.open();
            while rounds.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
            gate.close(Duration::from_secs(60), || {}).unwrap();
            assert_eq!(inside.load(Ordering::SeqCst), 0);
        }
        gate.dismiss(|| {});
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_vcpu_that_waits_for_a_device_lets_the_others_go_on() {
        let gate = Arc::new(Gate::new());
        let device = Arc::new(Mutex::new(()));
        let hung = device.lock().unwrap();
        let [inside, free] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let vcpu = |waits: bool| {
            let (gate, device) = (gate.clone(), device.clone());
            let rounds = if waits { inside.clone() } else { free.clone() };
            thread::spawn(move || {
                while gate.enter(|| {}) {
                    while gate.may_run() {
                        rounds.fetch_add(1, Ordering::SeqCst);
                        if waits {
                            drop(device.lock());
                        }
                        thread::yield_now();
                    }
                    gate.leave();
                }
            })
        };
        let threads = [vcpu(true), vcpu(false)];
        gate.open();
        while inside.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert_eq!(gate.close(Duration::from_millis(50), || {}), Err(1));
        let before = free.load(Ordering::SeqCst);
        while free.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        assert!(gate.is_open());
        drop(hung);
        gate.close(Duration::from_secs(60), || {}).unwrap();
        gate.dismiss(|| {});
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
