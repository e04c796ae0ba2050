//! Shows, waits for and reacts to the generations of a machine.

mod agent;
mod args;
mod commands;
mod contract_args;
mod data;
mod output;
mod participate;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use sysgenid::{ForkPointError, WatchersError};

use args::{Cli, Command};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum Failure {
    #[error(transparent)]
    Open(#[from] sysgenid::OpenError),
    #[error(transparent)]
    Wait(#[from] sysgenid::WaitError),
    #[error(transparent)]
    Acknowledge(#[from] sysgenid::AcknowledgeError),
    #[error(transparent)]
    Watchers(#[from] WatchersError),
    #[error(transparent)]
    Trigger(#[from] sysgenid::TriggerError),
    #[error(transparent)]
    Fork(#[from] sysgenid::ForkPointError),
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    #[error(transparent)]
    Participate(#[from] participate::ParticipateError),
    #[error(transparent)]
    Thaw(#[from] agent::FreezeError),
    #[error(
        "could not read {}: is the module qemu_fw_cfg loaded, and this machine one of vmgenie's?",
        data::FILE
    )]
    Data(#[source] io::Error),
    #[error("no new generation began in {0:?}")]
    NoGeneration(std::time::Duration),
    #[error("could not write the output")]
    Output(#[from] io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Watchers(WatchersError::TimedOut(_))
            | Self::Fork(ForkPointError::TimedOut)
            | Self::NoGeneration(_) => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(status) => status,
        // Whoever reads the output has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Participate(error)) if error.is_end() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("sysgenctl: {}", output::report(&failure));
            failure.exit_code()
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let done = match &cli.command {
        Command::ForkSelf(args) => return commands::fork_self(cli, args),
        Command::Status => commands::status(cli),
        Command::Watch(args) => commands::watch(cli, args),
        Command::Wait(args) => commands::wait(cli, args),
        Command::Trigger(args) => commands::trigger(cli, args),
        Command::Data => data::data(cli),
        Command::Agent(args) => Ok(agent::run(cli, args)?),
        Command::Participate => Ok(participate::participate(cli)?),
        Command::Thaw(args) => commands::thaw(cli, args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "sysgenctl", &mut script);
            Ok(io::Write::write_all(&mut io::stdout(), &script)?)
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}
