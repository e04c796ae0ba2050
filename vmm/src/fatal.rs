//! What ends the process at once: panics and fatal signals. The terminal is set back, and somebody is told why.
//!
//! One of these signals has a cause that a user can do something about: the file behind a restored machine's memory was shortened, and the process has
//! touched a page that is gone. That one is told in words, and ends the process with status 1. What a signal handler calls here is async-signal-safe: it
//! takes no lock, and allocates nothing.

use std::fmt::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

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

/// Text in a place of its own: the stack of a signal handler is small. What does not fit is cut off.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    fn push(&mut self, text: &str) {
        let room = N - self.len;
        let fits = (0..=room.min(text.len()))
            .rev()
            .find(|end| text.is_char_boundary(*end));
        let text = &text.as_bytes()[..fits.unwrap_or(0)];
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    /// At least `width` digits, at most 20.
    fn push_number(&mut self, mut number: u64, base: u64, width: usize) {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        while number > 0 {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
        }
        let first = first.min(digits.len() - width);
        self.push(std::str::from_utf8(&digits[first..]).unwrap_or_default());
    }

    /// Seconds since 1970 and nanoseconds in UTC, as the log's other lines have them.
    fn push_time(&mut self, seconds: i64, nanoseconds: i64) {
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Howard Hinnant's civil_from_days: eras of 400 years that begin in March.
        let day = days + 719_468;
        let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let date = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        for (number, width, behind) in [
            (year, 4, "-"),
            (month, 2, "-"),
            (date, 2, "T"),
            (hour, 2, ":"),
            (minute, 2, ":"),
            (second, 2, "."),
            (nanoseconds / 1000, 6, "Z"),
        ] {
            self.push_number(number.unsigned_abs(), 10, width);
            self.push(behind);
        }
    }

    /// What cannot stand in a JSON string becomes a question mark.
    fn make_plain(&mut self) {
        for byte in &mut self.bytes[..self.len] {
            if matches!(*byte, b'"' | b'\\' | 0..0x20) {
                *byte = b'?';
            }
        }
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

/// A stretch of guest memory that is mapped from a file: where it begins and ends.
struct Mapped(AtomicUsize, AtomicUsize);

/// As many as guest memory has ranges.
static MAPPED: [Mapped; 4] = [const { Mapped(AtomicUsize::new(0), AtomicUsize::new(0)) }; 4];
static MEMORY_FILE: AtomicI32 = AtomicI32::new(-1);
static MEMORY_LEN: AtomicU64 = AtomicU64::new(0);

/// Guest memory begins at these addresses (and has so many bytes there), and comes from the first `len` bytes of `file`, which stays open until
/// [`forget_memory`].
pub(crate) fn watch_memory(
    ranges: impl Iterator<Item = (usize, usize)>,
    file: BorrowedFd<'_>,
    len: u64,
) {
    MEMORY_FILE.store(file.as_raw_fd(), Ordering::Relaxed);
    MEMORY_LEN.store(len, Ordering::Relaxed);
    for (Mapped(begin, end), (address, len)) in MAPPED.iter().zip(ranges) {
        begin.store(address, Ordering::Relaxed);
        end.store(address + len, Ordering::Relaxed);
    }
}

/// That memory is gone.
pub(crate) fn forget_memory() {
    MEMORY_FILE.store(-1, Ordering::Relaxed);
    for Mapped(begin, end) in &MAPPED {
        begin.store(0, Ordering::Relaxed);
        end.store(0, Ordering::Relaxed);
    }
}

/// A page of guest memory could not be had from its file.
fn loss_at(address: usize) -> Option<MemoryLoss> {
    let within = |Mapped(begin, end): &Mapped| {
        (begin.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&address)
    };
    if !MAPPED.iter().any(within) {
        return None;
    }
    let file = MEMORY_FILE.load(Ordering::Relaxed);
    if file < 0 {
        return None;
    }
    // SAFETY: it is open for as long as its memory is mapped, and only asked for its length and name.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    Some(MemoryLoss::of(file, MEMORY_LEN.load(Ordering::Relaxed)))
}

/// How much of a file's name is told, in bytes.
const NAME_LEN: usize = 256;

/// Why guest memory cannot be had from the file behind it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct MemoryLoss {
    /// What it is called now, if that is known; cut off where it is long.
    name: [u8; NAME_LEN],
    name_len: usize,
    /// How many bytes it has, if it is too short.
    short: Option<u64>,
    needed: u64,
}

impl MemoryLoss {
    /// Looks at the file. Async-signal-safe.
    pub(crate) fn of(file: BorrowedFd<'_>, needed: u64) -> Self {
        let len = rustix::fs::fstat(file).ok();
        let len = len.and_then(|stat| u64::try_from(stat.st_size).ok());
        // More than there are digits in a descriptor: there is a zero behind it.
        let mut link = Text::<32>::new();
        let _ = write!(link, "/proc/self/fd/{}", file.as_raw_fd());
        let mut name = [0_u8; NAME_LEN];
        // SAFETY: a path that ends with a zero, and a buffer of that length.
        let read = unsafe {
            libc::readlink(
                link.bytes.as_ptr().cast(),
                name.as_mut_ptr().cast(),
                NAME_LEN,
            )
        };
        let name_len = usize::try_from(read).unwrap_or(0).min(NAME_LEN);
        Self {
            name,
            name_len,
            short: len.filter(|len| *len < needed),
            needed,
        }
    }

    /// Whether the file is too short, and not only hard to read.
    pub(crate) fn is_truncated(&self) -> bool {
        self.short.is_some()
    }
}

impl fmt::Display for MemoryLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory file that this machine was restored from")?;
        if let Ok(name) = std::str::from_utf8(&self.name[..self.name_len])
            && !name.is_empty()
        {
            write!(f, ", {name:?},")?;
        }
        match self.short {
            Some(len) => write!(
                f,
                " was truncated to {len} bytes of {}: a snapshot's files may be replaced and removed while machines run from them, not written to",
                self.needed
            ),
            None => f.write_str(" could not be read"),
        }
    }
}

#[cfg(test)]
#[path = "fatal_test.rs"]
mod tests;
