//! Nothing outlives this program: no child process, no temporary file, no raw terminal.
//!
//! Children die with it because the kernel is asked to kill them, even when it is killed itself.
//! Temporary files go when their owner is dropped, and at a signal through [`on_signal`]; what a
//! `kill -9` leaves is swept by the next run (see `cache`).

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Action = Box<dyn FnOnce() + Send>;

static ACTIONS: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

const SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Something to do if a signal ends the program while this value lives.
pub(crate) struct OnSignal(u64);

/// Registers `action`, latest first in the order of execution.
pub(crate) fn on_signal(action: impl FnOnce() + Send + 'static) -> OnSignal {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    actions().insert(id, Box::new(action));
    OnSignal(id)
}

impl Drop for OnSignal {
    fn drop(&mut self) {
        actions().remove(&self.0);
    }
}

fn actions() -> std::sync::MutexGuard<'static, BTreeMap<u64, Action>> {
    // An insertion or a removal is all or nothing, so a poisoned map is a sound one.
    ACTIONS.lock().unwrap_or_else(|e| e.into_inner())
}

/// Takes charge of the signals that end the program. To be called first, before any thread starts.
pub(crate) fn begin() {
    follow_cargo();
    // What our children leave behind comes to us, and goes with us.
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    let set = signal_set();
    // SAFETY: the set is initialised; blocking signals touches no other memory.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    std::thread::spawn(wait_for_signal);
}

/// Ends with cargo when cargo is killed, which otherwise would leave us running unseen.
fn follow_cargo() {
    // SAFETY: getppid takes no pointers.
    let parent = unsafe { libc::getppid() };
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    if name.trim_end() == "cargo" {
        // SAFETY: prctl with these arguments touches no memory.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set that sigaddset then adds to.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in SIGNALS {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

fn wait_for_signal() {
    let set = signal_set();
    let mut signal = 0;
    // SAFETY: both pointers are to live values.
    if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
        return;
    }
    end_children();
    while let Some((_, action)) = { actions().pop_last() } {
        action();
    }
    std::process::exit(128 + signal);
}

/// Kills the children, which might write into a directory while an action removes it, and waits
/// until they are gone: reaped by the thread that waits for them, or dead at least.
fn end_children() {
    for _ in 0..100 {
        let alive = children();
        if alive.is_empty() {
            return;
        }
        for pid in alive {
            // SAFETY: kill touches no memory. The child was alive a moment ago; that its number
            // has been given to another process since is as good as impossible.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The children of this process that are not dead.
fn children() -> Vec<libc::pid_t> {
    let me = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &libc::pid_t| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            is_live_child(&stat, me)
        })
        .collect()
}

/// Whether a line of `/proc/PID/stat` is that of a child of `parent` that is not dead. The second
/// field, the program's name in brackets, may hold blanks and brackets of its own.
fn is_live_child(stat: &str, parent: u32) -> bool {
    let mut fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace();
    fields.next().is_some_and(|state| state != "Z")
        && fields.next() == Some(parent.to_string().as_str())
}

/// Prepares a child that is killed when the thread that starts it ends, and that reacts to
/// signals in the ordinary way although this program blocks them.
pub(crate) fn bind(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: the closure makes only async-signal-safe system calls on its own stack.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The parent may have died before the line above took effect.
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_known_by_its_parent_and_not_by_its_name() {
        assert!(is_live_child("12 (a) Z 7 (b) S 7 12", 7));
        assert!(!is_live_child("12 (sh) Z 7 12 12", 7));
        assert!(!is_live_child("12 (sh) S 8 7 7", 7));
        assert!(!is_live_child("", 7));
    }

    #[test]
    fn an_action_is_forgotten_when_its_owner_is_dropped() {
        let before = actions().len();
        let registered = on_signal(|| {});
        assert_eq!(actions().len(), before + 1);
        drop(registered);
        assert_eq!(actions().len(), before);
    }
}
