//! What may be said on the command line of the contracts that programs speak already. None is kept unless it is
//! asked for.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(next_help_heading = "Contracts")]
pub(crate) struct ContractArgs {
    #[command(flatten)]
    pub(crate) lambda: LambdaArgs,
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
    }
}
