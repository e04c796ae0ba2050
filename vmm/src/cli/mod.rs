//! The command line of the `vmgenie` program.
//!
//! `run` and `api` become a VMM; the other commands are clients of a VMM's socket. Results go to standard output, a table or text for
//! people or, with `--json`, one JSON document; errors and the log go to standard error.

pub mod args;
mod client_commands;
mod clone;
mod clone_process;
mod output;
mod units;
mod vmm;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing::level_filters::LevelFilter;

use args::{Cli, Command};
use output::report;

pub use units::parse_memory_mib;

/// The exit status for a failure that has no status of its own.
pub const FAILURE: u8 = 1;
/// The exit status of `generation --wait` for a guest that has not adapted in time.
pub const NOT_ADAPTED: u8 = 5;

/// Why a command failed: an error and the status that the process ends with.
#[derive(Debug)]
struct Failure {
    error: Box<dyn Error + Send + Sync>,
    status: u8,
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: Box::new(error),
            status: FAILURE,
        }
    }
}

/// Does what the command line says and returns the status to exit with: see `vmgenie --help`.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_level.into());
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", report(failure.error.as_ref()));
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let json = cli.json;
    match cli.command {
        Command::Run(args) => vmm::run(args),
        Command::Api(args) => vmm::api(args),
        Command::Pause(args) => client_commands::pause(&args, json),
        Command::Resume(args) => client_commands::resume(&args, json),
        Command::Info(args) => client_commands::info(&args, json),
        Command::Generation(args) => client_commands::generation(&args, json),
        Command::Snapshot(args) => client_commands::snapshot(&args, json),
        Command::Restore(args) => client_commands::restore(&args, json),
        Command::Clone(args) => clone::clone(&args, json),
        Command::Completions(args) => {
            let shell = clap_complete::Shell::from(args.shell);
            // Into memory first: it panics when it cannot write, to a closed pipe for example.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vmgenie", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
    }
}

fn start_log(level: LevelFilter) {
    use std::io::IsTerminal;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(level)
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests;
