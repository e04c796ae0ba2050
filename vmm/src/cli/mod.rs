//! The command line of the `vmgenie` program.
//!
//! `run`, `api` and `restore` (without `--api-sock`) become a VMM, as Firecracker's own command line does; the other commands are clients of a VMM's
//! socket. Results go to standard output, a table or text for people or, with `--json`, one JSON document; errors and the log go to standard error.

pub mod args;
mod client_commands;
mod clone;
mod clone_dir;
mod clone_log;
mod clone_process;
mod clones_args;
mod console;
mod cooperation;
mod data;
mod firecracker;
mod fork;
mod gate;
mod help;
mod host_things;
mod machines;
mod output;
mod reboot;
mod requests;
mod restored_args;
mod self_snapshot;
mod templates;
mod tree;
mod units;
mod vmm;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;

use args::{Cli, Command};
use output::report;
use vmgenie_machine::boot;

pub use firecracker::{BAD_ARGUMENTS, BAD_CONFIGURATION};
pub use units::parse_memory_mib;

/// The exit status for a failure that has no status of its own.
pub const FAILURE: u8 = 1;
/// The exit status of `generation --wait` and `fork` for a guest that has not adapted in time.
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
    let mut arguments = std::env::args().skip(1);
    if arguments.next().is_some_and(|first| first == boot::READER) {
        return boot::reader_main(arguments.next().and_then(|limit| limit.parse().ok()));
    }
    let done = if firecracker::is_meant(std::env::args_os().nth(1).as_deref()) {
        firecracker::main(std::env::args_os())
    } else {
        let cli = Cli::read(std::env::args_os().collect());
        crate::logging::start(cli.all.log_level.into());
        dispatch(cli)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = report(failure.error.as_ref());
            eprintln!("error: {text}");
            crate::fatal::last_words(&text);
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let json = cli.all.json;
    match cli.command {
        Command::Run(args) => vmm::run(args),
        Command::Api(args) => vmm::api(args),
        Command::Pause(args) => client_commands::pause(&args, json),
        Command::Resume(args) => client_commands::resume(&args, json),
        Command::Info(args) => client_commands::info(&args, json),
        Command::Generation(args) => client_commands::generation(&args, json),
        Command::Snapshot(args) => client_commands::snapshot(&args, json),
        Command::Restore(args) => match &args.into {
            Some(into) => client_commands::restore(into, &args, json),
            None => vmm::restore(args),
        },
        Command::Ps => machines::ps(json),
        Command::Tree(args) => tree::tree(&args, json),
        Command::Console(args) => console::console(&args),
        Command::Stop(args) => machines::stop(&args, json),
        Command::Clone(args) => clone::clone(&args, json),
        Command::Fork(args) => fork::fork(&args, json),
        Command::Completions(args) => {
            let shell = clap_complete::Shell::from(args.shell);
            // Into memory first: it panics when it cannot write, to a closed pipe for example.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vmgenie", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
    }
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
