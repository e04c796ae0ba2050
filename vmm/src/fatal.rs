//! What ends the process at once: panics and fatal signals. The terminal is set back, and somebody is told why.
//!
//! One of these signals has a cause that a user can do something about: the file behind a restored machine's memory was shortened, and the process has
//! touched a page that is gone. That one is told in words, and ends the process with status 1. What a signal handler calls here is async-signal-safe: it
//! takes no lock, and allocates nothing.

use std::fmt::Write;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

use vmgenie_machine::memory_loss::loss_at;
use vmgenie_machine::text::Text;

use crate::terminal;

/// The signals that end a process without running its destructors.
const SIGNALS: [(libc::c_int, &str); 7] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGSYS, "SIGSYS"),
];

/// The status of a process whose memory file has gone.
const FAILURE: libc::c_int = 1;

/// From here on a panic and a fatal signal set the terminal back and leave a line on standard error, and in the log if that is a file.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            terminal::restore();
            previous(info);
            let mut line = Text::<512>::new();
            let _ = write!(line, "{info}");
            log(&mut line);
        }));
        for (signal, _) in SIGNALS {
            handle(signal);
        }
    });
}

/// What the signals did before, so that it is done afterwards: Rust's own handler reports a stack
/// overflow, for example. Indexed by signal.
static PREVIOUS: [AtomicPtr<libc::sigaction>; 32] = [const { AtomicPtr::new(ptr::null_mut()) }; 32];

fn handle(signal: libc::c_int) {
    // SAFETY: an all-zero sigaction is a valid one. sigaction() writes `previous` and reads
    // `action`, both of which live through the call. The handler is async-signal-safe.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_NODEFER | libc::SA_SIGINFO;
        if signal == libc::SIGSEGV {
            // The stack may have run over. The other one is small: what is called there formats nothing by `core::fmt`.
            action.sa_flags |= libc::SA_ONSTACK;
        }
        let done = libc::sigaction(signal, &action, &mut previous) == 0;
        if done
            && previous.sa_sigaction != libc::SIG_DFL
            && let Some(slot) = slot(signal)
        {
            slot.store(Box::into_raw(Box::new(previous)), Ordering::SeqCst);
        }
    }
}

/// Ends the process if it has touched guest memory at an address that cannot be had from its file any more.
fn end_if_lost(address: usize) {
    if let Some(loss) = loss_at(address) {
        let mut line = Text::<512>::new();
        let _ = write!(line, "{loss}");
        say(&mut line);
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(FAILURE) };
    }
}

fn slot(signal: libc::c_int) -> Option<&'static AtomicPtr<libc::sigaction>> {
    usize::try_from(signal)
        .ok()
        .and_then(|index| PREVIOUS.get(index))
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore();
    // SAFETY: the kernel's, valid while the handler runs.
    let info = unsafe { &*info };
    if info.si_code > 0 && signal == libc::SIGBUS {
        // SAFETY: a SIGBUS of the kernel's has an address.
        end_if_lost(unsafe { info.si_addr() }.addr());
    }
    static ENTERED: AtomicBool = AtomicBool::new(false);
    if ENTERED.swap(true, Ordering::SeqCst) {
        // What has ended the process once, or a fault in here: no more words.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let name = SIGNALS.iter().find(|(number, _)| *number == signal);
    let name = name.map_or("a signal", |(_, name)| name);
    let previous = slot(signal).map_or(ptr::null_mut(), |slot| slot.load(Ordering::SeqCst));
    let mut line = Text::<128>::new();
    if info.si_code > 0 {
        // SAFETY: all signals of the kernel's that are handled here have an address, or none that is used.
        let address = unsafe { info.si_addr() }.addr();
        line.push(name);
        line.push(" at address 0x");
        line.push_number(address as u64, 16, 1);
        line.push(": this is a fault in vmgenie");
        say(&mut line);
        // A faulting instruction is executed again when we return, and meets the previous action with the true address.
        // SAFETY: `previous` is null or points to a sigaction that `handle` leaked; both calls are async-signal-safe.
        unsafe {
            match previous.is_null() {
                true => libc::signal(signal, libc::SIG_DFL),
                false => libc::sigaction(signal, previous, ptr::null_mut()) as usize,
            }
        };
        return;
    }
    // SAFETY: a signal that a process has sent tells which; getpid cannot fail.
    let (from, own) = unsafe { (info.si_pid(), libc::getpid()) };
    line.push("ended by ");
    line.push(name);
    if from != own {
        line.push(", which the process ");
        line.push_number(from.unsigned_abs().into(), 10, 1);
        line.push(" has sent");
        say(&mut line);
    } else {
        log(&mut line);
    }
    // Rust's own handler would let the process go on, because it waits for the instruction that does not come.
    // SAFETY: both are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Tells it on standard error, and in the log if that is elsewhere.
fn say<const N: usize>(line: &mut Text<N>) {
    write_to(libc::STDERR_FILENO, "error: ", line.text(), "\n");
    log(line);
}

/// The log's file, if it has one and is not switched off, and whether its lines are JSON.
static LOG: AtomicI32 = AtomicI32::new(-1);
static LOG_IS_JSON: AtomicBool = AtomicBool::new(false);

/// The last words go to this file as well, from now on. It stays open until another one takes its place.
pub(crate) fn set_log(file: Option<BorrowedFd<'_>>, json: bool) {
    LOG.store(file.map_or(-1, |file| file.as_raw_fd()), Ordering::SeqCst);
    LOG_IS_JSON.store(json, Ordering::SeqCst);
}

/// Tells the log why the process ends, whatever modules are logged, if it has a file: standard error has been told.
pub fn last_words(text: &str) {
    let one_line = text.replace('\n', " ");
    let json = LOG_IS_JSON.load(Ordering::SeqCst);
    let quotable = |c: char| !(c.is_control() || json && matches!(c, '"' | '\\'));
    let plain = |c| if quotable(c) { c } else { '?' };
    write_log(&one_line.chars().map(plain).collect::<String>());
}

/// Async-signal-safe.
fn log<const N: usize>(line: &mut Text<N>) {
    line.make_plain();
    write_log(line.text());
}

fn write_log(text: &str) {
    let file = LOG.load(Ordering::SeqCst);
    if file < 0 {
        return;
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let (mut before, mut after) = (Text::<96>::new(), "\n");
    let json = LOG_IS_JSON.load(Ordering::SeqCst);
    before.push(if json { r#"{"timestamp":""# } else { "" });
    before.push_time(now.tv_sec, now.tv_nsec);
    before.push(match json {
        true => r#"","level":"ERROR","message":""#,
        false => " ERROR ",
    });
    if json {
        after = "\"}\n";
    }
    write_to(file, before.text(), text, after);
}

fn write_to(file: RawFd, before: &str, text: &str, after: &str) {
    let piece = |text: &str| libc::iovec {
        iov_base: text.as_ptr().cast_mut().cast(),
        iov_len: text.len(),
    };
    let pieces = [piece(before), piece(text), piece(after)];
    // SAFETY: the pieces live through the call, which only reads them; nothing breaks if the file is closed.
    let _ = unsafe { libc::writev(file, pieces.as_ptr(), 3) };
}

#[cfg(test)]
#[path = "fatal_test.rs"]
mod tests;
