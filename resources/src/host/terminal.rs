//! The user's terminal, raw while a shell in the host has it.

use std::io::IsTerminal;

use anyhow::{Result, bail};

use crate::lifetime::{self, OnSignal};

/// The terminal of standard input in raw mode, as it was before when the value is dropped or a
/// signal ends the program.
pub(super) struct RawTerminal {
    before: libc::termios,
    _on_signal: OnSignal,
}

impl RawTerminal {
    /// Makes the terminal raw; `None` when standard input is not one.
    pub(super) fn enter() -> Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        // SAFETY: an all-zero termios is a valid value, and tcgetattr fills it.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live value.
        if unsafe { libc::tcgetattr(0, &mut settings) } != 0 {
            bail!(
                "could not read the terminal's settings: {}",
                std::io::Error::last_os_error()
            );
        }
        let before = settings;
        let on_signal = lifetime::on_signal(move || restore(&before));
        // SAFETY: cfmakeraw changes the live value, tcsetattr reads it.
        unsafe {
            libc::cfmakeraw(&mut settings);
            libc::tcsetattr(0, libc::TCSANOW, &settings);
        }
        Ok(Some(Self {
            before,
            _on_signal: on_signal,
        }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(settings: &libc::termios) {
    // SAFETY: the pointer is to a live value that tcgetattr filled.
    unsafe { libc::tcsetattr(0, libc::TCSANOW, settings) };
}

/// Rows and columns of the terminal, or what terminals have been since punched cards.
pub(crate) fn size() -> (u16, u16) {
    // SAFETY: an all-zero winsize is a valid value, and the ioctl fills it.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live winsize, as this ioctl writes.
    let result = unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &mut size) };
    match (result, size.ws_row, size.ws_col) {
        (0, rows @ 1.., columns @ 1..) => (rows, columns),
        _ => (24, 80),
    }
}
