//! Text that is made where nothing may be allocated, as in a signal handler.

use std::fmt::{self, Write};

/// Text in a place of its own: the stack of a signal handler is small. What does not fit is cut off.
#[derive(Debug)]
pub struct Text<const N: usize> {
    pub(super) bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    /// Adds text, as much of it as fits.
    pub fn push(&mut self, text: &str) {
        let room = N - self.len;
        let fits = (0..=room.min(text.len()))
            .rev()
            .find(|end| text.is_char_boundary(*end));
        let text = &text.as_bytes()[..fits.unwrap_or(0)];
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    /// At least `width` digits, at most 20.
    pub fn push_number(&mut self, mut number: u64, base: u64, width: usize) {
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
    pub fn push_time(&mut self, seconds: i64, nanoseconds: i64) {
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
    pub fn make_plain(&mut self) {
        for byte in &mut self.bytes[..self.len] {
            if matches!(*byte, b'"' | b'\\' | 0..0x20) {
                *byte = b'?';
            }
        }
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}
