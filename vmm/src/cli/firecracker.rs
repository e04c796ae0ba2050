//! Firecracker's command line: `vmgenie --api-sock PATH ...` without a command is what `firecracker --api-sock PATH ...` is, so that
//! a program that starts Firecracker needs nothing but another path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, stdin};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use vmgenie_api::limits::BODY_LIMIT;
use vmgenie_api::wire::ConfigFile;
use vmgenie_machine::config::OnReboot;

use super::Failure;
use super::help::VERSIONS;
use super::units::parse_id;
use super::vmm::{become_vmm, ended_badly};
use crate::api::convert::{Checked, CheckedConfigFile, WireError, parse_level};
use crate::controller::RunError;
use crate::controller::command::Command;
use crate::logging::{self, DIALECT_LEVEL, LogConfig, LogError};
use crate::metrics::{METRICS, MetricsConfig};
use crate::process::{ProcessError, RunOptions};
use crate::terminal;

/// Firecracker's exit status for a configuration that it cannot use.
pub const BAD_CONFIGURATION: u8 = 152;
/// Firecracker's exit status for a command line that it cannot use.
pub const BAD_ARGUMENTS: u8 = 153;
/// Where the API listens when nothing else is said, as Firecracker's does.
const DEFAULT_SOCKET: &str = "/run/firecracker.socket";

const AFTER_HELP: &str = "\
Firecracker's options, for programs that were written for it; `vmgenie --help` tells of the
commands that people use.

Exit status:
  0    the guest powered off or rebooted, or SIGTERM, SIGINT or SIGHUP ended the process
  1    failure
  3    the guest crashed
  4    KVM is not usable
  152  the configuration file or the log level cannot be used
  153  the command line is wrong

Example:
  vmgenie --api-sock fc.sock --config-file vm.json --level Debug --log-path fc.log";

/// What Firecracker takes.
#[derive(Debug, Parser)]
#[command(name = "vmgenie", after_help = AFTER_HELP, disable_version_flag = true)]
struct Options {
    /// The Unix socket of the API.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    api_sock: PathBuf,
    /// A name for the machine: 1 to 64 letters, digits and hyphens.
    #[arg(long, default_value = super::args::DEFAULT_ID, value_parser = parse_id)]
    id: String,
    /// Boot what this JSON file says.
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Serve no API.
    #[arg(long, requires = "config_file")]
    no_api: bool,
    /// Where the log goes: a file or named pipe; standard error without.
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,
    /// How much is logged: Error, Warning, Info, Debug, Trace, Off.
    #[arg(long)]
    level: Option<String>,
    /// Log only what comes from the modules that begin so.
    #[arg(long)]
    module: Option<String>,
    /// Tell the level in each line of the log (vmgenie always does).
    #[arg(long)]
    show_level: bool,
    /// Tell the place in the source in each line of the log.
    #[arg(long)]
    show_log_origin: bool,
    /// Where the metrics go: a file or named pipe.
    #[arg(long, value_name = "FILE")]
    metrics_path: Option<PathBuf>,
    /// Give the guest a boot timer at 0xc0000000, and log how long it took until the guest wrote the byte 123 there.
    #[arg(long)]
    boot_timer: bool,
    /// The longest body of a request, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = BODY_LIMIT)]
    http_api_max_payload_size: usize,
    /// When the process was started, in microseconds of the monotonic clock.
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,
    /// How much CPU time the process had used when it was started, in microseconds.
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,
    /// How much CPU time its parent had used, in microseconds.
    #[arg(long, value_name = "US")]
    parent_cpu_time_us: Option<u64>,
    /// Taken, and without effect: there are no seccomp filters yet.
    #[arg(long, conflicts_with = "seccomp_filter")]
    no_seccomp: bool,
    /// Refused: there are no seccomp filters yet.
    #[arg(long, value_name = "FILE")]
    seccomp_filter: Option<PathBuf>,
    /// Refused: there is no metadata service.
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Taken, and without effect: there is no metadata service.
    #[arg(long, value_name = "BYTES")]
    mmds_size_limit: Option<usize>,
    /// Refused: there is no PCI bus.
    #[arg(long)]
    enable_pci: bool,
    /// Print the version of Firecracker that this is like, and vmgenie's.
    #[arg(long)]
    version: bool,
    /// Print the version of the format of snapshots.
    #[arg(long)]
    snapshot_version: bool,
    /// Print the version of the format of a state file.
    #[arg(long, value_name = "FILE")]
    describe_snapshot: Option<PathBuf>,
}

/// What is wrong with a Firecracker command line that clap cannot see.
#[derive(Debug, Error)]
enum OptionsError {
    #[error("{0} is not supported: leave it out")]
    Absent(&'static str),
    #[error("could not read the configuration file {0}")]
    ReadConfig(PathBuf, #[source] io::Error),
    #[error("the configuration file {0} is not the JSON that it should be")]
    ParseConfig(PathBuf, #[source] serde_json::Error),
    #[error("the configuration file {0} cannot be used")]
    Config(PathBuf, #[source] WireError),
    #[error(transparent)]
    Level(WireError),
    #[error(transparent)]
    Log(LogError),
    #[error("could not read the state file {0}")]
    Describe(PathBuf, #[source] vmgenie_snapshot::StateError),
}

fn failure(status: u8) -> impl Fn(OptionsError) -> Failure {
    move |error| Failure {
        error: Box::new(error),
        status,
    }
}

/// Is this Firecracker's command line? It is if its first argument is one of Firecracker's options.
pub(super) fn is_meant(first: Option<&OsStr>) -> bool {
    let Some(first) = first.and_then(OsStr::to_str) else {
        return false;
    };
    let name = first.split('=').next().unwrap_or_default();
    let Some(name) = name.strip_prefix("--") else {
        return false;
    };
    Options::command()
        .get_arguments()
        .filter(|argument| argument.get_id() != "help")
        .any(|argument| argument.get_long() == Some(name))
}

/// Does what Firecracker would do.
pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(told) => {
            let status = if told.use_stderr() { BAD_ARGUMENTS } else { 0 };
            let _ = told.print();
            std::process::exit(status.into());
        }
    };
    if options.version {
        print!("{VERSIONS}");
        return Ok(());
    }
    if options.snapshot_version {
        println!("v{}", vmgenie_snapshot::FORMAT);
        return Ok(());
    }
    if let Some(path) = &options.describe_snapshot {
        let reader = vmgenie_snapshot::StateReader::open(path).map_err(|error| {
            failure(super::FAILURE)(OptionsError::Describe(path.clone(), error))
        })?;
        println!("v{}", reader.header().format);
        return Ok(());
    }
    run(options)
}

fn run(options: Options) -> Result<(), Failure> {
    // First of all: whatever is wrong belongs into the log.
    start_log(&options)?;
    for (name, there) in [
        ("--seccomp-filter", options.seccomp_filter.is_some()),
        ("--metadata", options.metadata.is_some()),
        ("--enable-pci", options.enable_pci),
    ] {
        if there {
            return Err(failure(BAD_ARGUMENTS)(OptionsError::Absent(name)));
        }
    }
    report_start_time(&options);
    let (mut first, machine) = match &options.config_file {
        Some(path) => {
            let (first, machine) = read_config(path).map_err(failure(BAD_CONFIGURATION))?;
            (first, Some(machine))
        }
        None => (Vec::new(), None),
    };
    if let Some(path) = options.metrics_path {
        let metrics = MetricsConfig {
            path,
            ..MetricsConfig::default()
        };
        first.insert(0, Command::SetMetrics(metrics));
    }
    let has_file = options.config_file.is_some();
    let done = become_vmm(RunOptions {
        api_socket: (!options.no_api).then_some(options.api_sock),
        body_limit: options.http_api_max_payload_size,
        on_reboot: OnReboot::Exit,
        first,
        machine,
        restore: None,
        console_input: terminal::may_read(stdin().as_fd()),
        id: options.id,
        boot_timer: options.boot_timer,
        lifeline: None,
    });
    done.map_err(|error| match error {
        // Whatever of the file it was that the machine could not be made of.
        ProcessError::Run(RunError::Command(_) | RunError::Start(_)) if has_file => Failure {
            error: Box::new(error),
            status: BAD_CONFIGURATION,
        },
        error => ended_badly(error),
    })
}

fn start_log(options: &Options) -> Result<(), Failure> {
    let level = options.level.as_deref().map(parse_level).transpose();
    let level = level.map_err(|error| failure(BAD_CONFIGURATION)(OptionsError::Level(error)))?;
    // Without a file for it the log shares the terminal with whoever starts this: only what goes wrong then.
    let quiet = options.log_path.is_none() && level.is_none();
    let level = level.unwrap_or(if quiet {
        LevelFilter::WARN
    } else {
        DIALECT_LEVEL
    });
    logging::start(level);
    let config = LogConfig {
        path: options.log_path.clone(),
        level: Some(level),
        show_level: None,
        show_origin: Some(options.show_log_origin),
        module: options.module.clone(),
        format: None,
    };
    logging::update(&config).map_err(|error| failure(super::FAILURE)(OptionsError::Log(error)))
}

fn report_start_time(options: &Options) {
    let metrics = &METRICS.api_server;
    if let Some(start) = options.start_time_us {
        let now = vmgenie_machine::monotonic_ns() / 1000;
        metrics
            .process_startup_time_us
            .set(now.saturating_sub(start));
    }
    if let Some(start) = options.start_time_cpu_us {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let used = u64::try_from(used.tv_sec * 1_000_000 + used.tv_nsec / 1000).unwrap_or(0);
        let parent = options.parent_cpu_time_us.unwrap_or(0);
        let startup = used.saturating_sub(start).saturating_add(parent);
        metrics.process_startup_time_cpu_us.set(startup);
    }
}

/// The longest configuration file, in bytes.
const MAX_CONFIG_LEN: u64 = 1 << 20;

fn read_config(path: &PathBuf) -> Result<CheckedConfigFile, OptionsError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(path)?
            .take(MAX_CONFIG_LEN + 1)
            .read_to_end(&mut text)?;
        match text.len() as u64 > MAX_CONFIG_LEN {
            true => Err(io::Error::other(format!(
                "it has more than {MAX_CONFIG_LEN} bytes"
            ))),
            false => Ok(text),
        }
    };
    let text = read().map_err(|error| OptionsError::ReadConfig(path.clone(), error))?;
    let parse = |error| OptionsError::ParseConfig(path.clone(), error);
    let file: ConfigFile = serde_json::from_slice(&text).map_err(parse)?;
    for name in ConfigFile::unknown_names(&text).map_err(parse)? {
        warn!("the configuration file {path:?} has {name:?}, which is not known and has no effect");
    }
    file.checked()
        .map_err(|error| OptionsError::Config(path.clone(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecrackers_options_are_known_by_the_first_one() {
        for first in [
            "--api-sock",
            "--api-sock=/x",
            "--no-api",
            "--id",
            "--config-file",
            "--boot-timer",
            "--version",
        ] {
            assert!(is_meant(Some(OsStr::new(first))), "{first}");
        }
        for first in [
            "run",
            "--help",
            "--json",
            "--log-level",
            "-V",
            "--",
            "--kernel",
        ] {
            assert!(!is_meant(Some(OsStr::new(first))), "{first}");
        }
        assert!(!is_meant(None));
    }

    #[test]
    fn the_help_is_shown_as_it_is_written() {
        crate::cli::tests::check_help(Options::command());
    }

    #[test]
    fn every_option_of_firecracker_is_known() {
        let all = [
            "vmgenie",
            "--api-sock",
            "/s",
            "--id",
            "a-1",
            "--config-file",
            "/c",
            "--log-path",
            "/l",
            "--level",
            "Info",
            "--module",
            "m",
            "--show-level",
            "--show-log-origin",
            "--metrics-path",
            "/m",
            "--boot-timer",
            "--http-api-max-payload-size",
            "1",
            "--start-time-us",
            "1",
            "--start-time-cpu-us",
            "1",
            "--parent-cpu-time-us",
            "1",
            "--no-seccomp",
            "--mmds-size-limit",
            "1",
            "--no-api",
        ];
        let options = Options::try_parse_from(all).unwrap();
        assert_eq!(
            (options.http_api_max_payload_size, options.no_api),
            (1, true)
        );
        assert!(Options::try_parse_from(["vmgenie", "--no-api"]).is_err());
        for id in ["", "a_b", &"x".repeat(65)] {
            assert!(
                Options::try_parse_from(["vmgenie", "--id", id]).is_err(),
                "{id}"
            );
        }
    }
}
