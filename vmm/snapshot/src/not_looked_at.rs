//! Tests that cannot look at their subject where they run.

use std::io::Write;

/// Says that what follows in a test was not looked at. Not by `eprintln!`, which is kept from sight when a test passes.
pub fn not_looked_at(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "{test}: not all was looked at: {why}");
}
