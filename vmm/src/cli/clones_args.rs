//! What may be said to `vmgenie clone` and `vmgenie fork`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::cooperation::{FallbackArg, parse_quiesce};
use super::help::{clone_help, fork_help};
use super::restored_args::{Generation, OverrideArgs};
use super::units::parse_wait;

/// Machines that are started from one snapshot.
#[derive(Debug, Args)]
pub struct ClonesArgs {
    /// How many clones to start.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub number: u16,
    /// The directory for sockets and console logs; a fresh one under $XDG_RUNTIME_DIR or /tmp when
    /// not given.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Other devices; `{n}` stands for the number of the clone.
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

/// `vmgenie clone`.
#[derive(Debug, Args)]
#[command(after_help = clone_help())]
pub struct CloneArgs {
    /// The directory that `vmgenie snapshot` wrote.
    #[arg(value_name = "SNAPSHOT_DIR")]
    pub snapshot: PathBuf,
    /// The clones.
    #[command(flatten)]
    pub clones: ClonesArgs,
    /// Whether each clone begins a new generation.
    #[arg(long, value_name = "WHICH", default_value = "new")]
    pub generation: Generation,
}

/// `vmgenie fork`.
#[derive(Debug, Args)]
#[command(after_help = fork_help())]
pub struct ForkArgs {
    /// The machine, which runs: its name, its process, or its socket.
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// The directory for the snapshot, which then stays; it is made when it is not there.
    #[arg(value_name = "SNAPSHOT_DIR")]
    pub snapshot: Option<PathBuf>,
    /// The clones.
    #[command(flatten)]
    pub clones: ClonesArgs,
    /// How long the guest may take to stand still, such as 500ms, 10s or 2m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_quiesce)]
    pub quiesce: Duration,
    /// What happens if the guest does not take part.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = FallbackArg::Refuse)]
    pub fallback: FallbackArg,
    /// Let the clones meet their peers before they have adapted.
    #[arg(long, conflicts_with = "gate")]
    pub no_gate: bool,
    /// How long the clones may take to adapt. Those that have not stay; the status is 5.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_wait)]
    pub wait: Duration,
}
