//! The vmgenie program.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmgenie::cli::main()
}
