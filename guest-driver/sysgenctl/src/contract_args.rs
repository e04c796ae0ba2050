//! What may be said on the command line of the contracts that programs speak already. None is kept unless it is
//! asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(next_help_heading = "Contracts")]
pub(crate) struct ContractArgs {
    #[command(flatten)]
    pub(crate) lambda: LambdaArgs,
    #[command(flatten)]
    pub(crate) microvm: MicrovmArgs,
    /// Mount a file there of which a read waits until the machine is forked, and returns as JSON which one this is; such as
    /// /run/vmgenie/forkpoint. Anybody may read it.
    #[arg(long, value_name = "FILE")]
    pub(crate) forkpoint_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) directories: DirectoryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LambdaArgs {
    /// Serve the runtime API of AWS Lambda at this loopback address: a runtime with SnapStart hooks waits there
    /// over the snapshot.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub(crate) lambda: Option<SocketAddr>,
    /// What the runtime of the original does after the snapshot.
    #[arg(long, default_value = "wait", requires = "lambda")]
    pub(crate) lambda_original: LambdaOriginal,
    /// How long the runtime may take for an event.
    #[arg(long, default_value = "5m", requires = "lambda", value_parser = humantime::parse_duration)]
    pub(crate) lambda_timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct MicrovmArgs {
    /// Call the HTTP hooks of AWS Lambda MicroVMs of the program that listens at this loopback address, such as
    /// http://127.0.0.1:9000.
    #[arg(long, value_name = "URL", value_parser = loopback_url)]
    pub(crate) microvm_hooks: Option<SocketAddr>,
    /// Which of them the program has.
    #[arg(
        long,
        value_name = "HOOK,...",
        value_delimiter = ',',
        default_value = "ready,suspend,run,resume",
        requires = "microvm_hooks"
    )]
    pub(crate) microvm_enable: Vec<MicrovmHook>,
}

/// A hook of Lambda MicroVMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MicrovmHook {
    /// Before a snapshot: the program is ready for it. It may ask for more time.
    Ready,
    /// Then: it is to come to rest.
    Suspend,
    /// In a clone: it is on a new machine.
    Run,
    /// Then: it works there. It may ask for more time.
    Validate,
    /// In the original, or when there is no snapshot: it goes on.
    Resume,
    /// The agent ends.
    Terminate,
}

impl MicrovmHook {
    /// Its name in the path.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspend => "suspend",
            Self::Run => "run",
            Self::Validate => "validate",
            Self::Resume => "resume",
            Self::Terminate => "terminate",
        }
    }

    /// Whether the program may answer that it needs more time.
    pub(crate) const fn may_be_early(self) -> bool {
        matches!(self, Self::Ready | Self::Validate)
    }
}

#[derive(Debug, Args)]
pub(crate) struct DirectoryArgs {
    /// Run the executables of this directory with `freeze` before a snapshot and with `thaw` after it, as QEMU's
    /// guest agent runs those of fsfreeze-hook.d.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) fsfreeze_hooks: Option<PathBuf>,
    /// Run the executables of this directory with `pre suspend` before a snapshot and with `post suspend` after
    /// it, as systemd runs those of system-sleep.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) system_sleep: Option<PathBuf>,
}

/// What the runtime of the original does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LambdaOriginal {
    /// It goes on waiting: the machine stays a template.
    Wait,
    /// It is restored, too, and serves. The machine cannot be snapshotted with its runtime any more.
    Return,
}

/// What is on no network but this machine's own.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "it is no ADDRESS:PORT".to_owned())?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err("it is no loopback address, such as 127.0.0.1".into()),
    }
}

fn loopback_url(text: &str) -> Result<SocketAddr, String> {
    let rest = text
        .strip_prefix("http://")
        .ok_or("it does not begin with http://")?;
    loopback(rest.strip_suffix('/').unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::Cli;

    fn parse(options: &str) -> Result<Cli, clap::Error> {
        let line = format!("sysgenctl agent {options}");
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn an_address_that_others_reach_is_refused() {
        for good in ["127.0.0.1:9001", "127.8.8.8:1", "[::1]:9001"] {
            parse(&format!("--lambda {good}")).unwrap();
        }
        for bad in [
            "0.0.0.0:9001",
            "[::]:9001",
            "10.0.0.1:9001",
            "127.0.0.1",
            "localhost:1",
        ] {
            assert!(parse(&format!("--lambda {bad}")).is_err(), "{bad}");
        }
        assert!(parse("--lambda-original return").is_err());
        for good in ["http://127.0.0.1:9000", "http://[::1]:9000/"] {
            parse(&format!(
                "--microvm-hooks {good} --microvm-enable run,validate"
            ))
            .unwrap();
        }
        for bad in [
            "http://10.0.0.1:9000",
            "https://127.0.0.1:9000",
            "127.0.0.1:9000",
            "http://127.0.0.1:9000/hooks",
            "http://127.0.0.1",
        ] {
            assert!(parse(&format!("--microvm-hooks {bad}")).is_err(), "{bad}");
        }
        assert!(parse("--microvm-hooks http://[::1]:9 --microvm-enable start").is_err());
    }
}
