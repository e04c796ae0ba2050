//! The demo: a guest boots, is snapshotted, and wakes up three times as three machines that know it.
//!
//! `cargo xtask demo` runs it on a KVM. The harness of the tests does the work; since it fails by a panic, `ending` turns a panic
//! into one line for people and ends whatever was started.

mod ending;
mod fork;
mod full;
mod report;
mod show;
mod steps;
mod verdict;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use vmgenie_tests::Guest;

use steps::Steps;

/// Boots a guest, snapshots it, and wakes it up three times as three machines, each of which notices.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Print the result as JSON; what happens meanwhile is told on standard error.
    #[arg(long)]
    json: bool,

    /// Show a whole Debian instead: it boots from a disk, serves, and its clones become machines of their own.
    #[arg(long, conflicts_with = "guest")]
    full: bool,

    /// Show `vmgenie fork`: a Debian under load becomes four machines on one bridge.
    #[arg(long, conflicts_with_all = ["guest", "full"])]
    fork: bool,

    /// What boots.
    #[arg(long, value_enum, default_value_t = Kernel::Debian)]
    guest: Kernel,

    /// If something fails, show also what the guest's console said.
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kernel {
    /// The stock Debian cloud kernel.
    Debian,
    /// The small kernel, which boots faster.
    Small,
}

impl Kernel {
    fn guest(self) -> Guest {
        match self {
            Self::Debian => Guest::Debian,
            Self::Small => Guest::Small,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Debian => "the unmodified Debian kernel",
            Self::Small => "the small kernel",
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => ending::fail(&format!("{error:#}")),
    }
}

/// Returns whether all was as it should be.
fn run(arguments: &Arguments) -> Result<bool> {
    ending::begin(arguments.verbose)?;
    let steps = Steps::new(arguments.json);
    if arguments.fork {
        return fork::run(&steps, arguments.json);
    }
    if arguments.full {
        return full::run(&steps, arguments.json);
    }
    let facts = show::show(
        &steps,
        arguments.guest.guest(),
        arguments.guest.description(),
    )?;
    // The VMMs have ended; this is for what they may have left.
    ending::clean();
    let failures = verdict::failures(&facts);
    report::print(&facts, &failures, arguments.json);
    Ok(failures.is_empty())
}
