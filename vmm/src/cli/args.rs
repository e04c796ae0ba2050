//! What may be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;
use vmgenie_api::wire::SelfSnapshot;
use vmgenie_machine::config;

pub use super::clones_args::{CloneArgs, ClonesArgs, ForkArgs};
use super::cooperation::CooperationArgs;
use super::help::{
    AFTER_HELP, API_HELP, COMPLETIONS_HELP, CONSOLE_HELP, GENERATION_HELP, INFO_HELP, PAUSE_HELP,
    PS_HELP, RESTORE_HELP, RESUME_HELP, SNAPSHOT_HELP, STOP_HELP, run_help,
};
pub use super::reboot::OnReboot;
pub use super::restored_args::{ChangedDrives, Clock, Generation, OverrideArgs};
use super::self_snapshot::parse_self_snapshot;
pub use super::tree::TreeArgs;
use super::units::{parse_id, parse_memory_mib, parse_vcpus, parse_wait};
use crate::kinds::DeviceFlags;

/// A microVM monitor whose guests always know when they have been cloned.
#[derive(Debug, Parser)]
#[command(name = "vmgenie", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What every command takes.
    #[command(flatten)]
    pub all: AllArgs,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct AllArgs {
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,

    /// How much to tell on standard error.
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "VMGENIE_LOG",
        default_value = "warn"
    )]
    pub log_level: LogLevel,
}

impl Cli {
    /// Reads a command line; ends the process if there is nothing to do.
    pub fn read(words: Vec<OsString>) -> Self {
        Self::read_api(&words).unwrap_or_else(|| Self::parse_from(words))
    }

    /// Reads the command line of an `api` without a fault. The process of each clone has one, and
    /// would keep the memory that all commands' options have taken.
    pub(super) fn read_api(words: &[OsString]) -> Option<Self> {
        if words.get(1)? != "api" {
            return None;
        }
        let OnlyApi { command, all } = OnlyApi::try_parse_from(words).ok()?;
        let OnlyApiCommand::Api(args) = command;
        let command = Command::Api(args);
        Some(Self { command, all })
    }
}

/// A command line of `api`. What it has to say of a fault nobody sees.
#[derive(Debug, Parser)]
#[command(name = "vmgenie")]
struct OnlyApi {
    #[command(subcommand)]
    command: OnlyApiCommand,
    #[command(flatten)]
    all: AllArgs,
}

#[derive(Debug, Subcommand)]
enum OnlyApiCommand {
    Api(ApiArgs),
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a machine with this terminal as its console.
    Run(RunArgs),
    /// Start an empty VMM that waits for requests on its socket.
    Api(ApiArgs),
    /// Stop all vCPUs of a machine.
    #[command(after_help = PAUSE_HELP)]
    Pause(Target),
    /// Let all vCPUs of a machine go on.
    #[command(after_help = RESUME_HELP)]
    Resume(Target),
    /// Tell what a VMM is doing.
    #[command(after_help = INFO_HELP)]
    Info(Target),
    /// Show the generation of a machine, or begin a new one.
    Generation(GenerationArgs),
    /// Write a full snapshot of a machine.
    Snapshot(SnapshotArgs),
    /// Restore a snapshot: here, or into an empty VMM.
    Restore(RestoreArgs),
    /// Start several machines from one snapshot.
    Clone(CloneArgs),
    /// Start copies of a machine that runs, and wait until they know what they are.
    Fork(ForkArgs),
    /// List the machines that this user runs on this host.
    #[command(after_help = PS_HELP)]
    Ps,
    /// Show where the machines that this user runs on this host come from, and how far they have come.
    Tree(TreeArgs),
    /// Have this terminal be the console of a machine that runs elsewhere.
    Console(ConsoleArgs),
    /// End a machine.
    Stop(StopArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
}

/// `vmgenie run`.
#[derive(Debug, Args)]
#[command(after_help = run_help())]
#[command(group(ArgGroup::new("booted").required(true).multiple(true).args(["kernel", "disk"])))]
pub struct RunArgs {
    /// The kernel: an ELF vmlinux or a bzImage. Without it, the kernel of the image that --disk names, with its initial RAM disk.
    #[arg(long, value_name = "FILE", env = "VMGENIE_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    #[arg(long, value_name = "TEXT", default_value = config::DEFAULT_CMDLINE)]
    pub cmdline: String,
    /// The guest's memory: a number with K, M, G or T (powers of 1024), 1.5G for example; MiB without. By default 128M, and 512M for a machine that boots
    /// the kernel of its disk.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory_mib)]
    pub memory: Option<u64>,
    /// The number of vCPUs.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_vcpus)]
    pub cpus: u64,
    /// Its devices.
    #[command(flatten)]
    pub devices: DeviceFlags,
    /// The guest's identity string, which it reads in /sys/firmware/qemu_fw_cfg/by_name/opt/org.vmgenie.instance/raw;
    /// @FILE is a file's content; 4096 bytes at most.
    #[arg(long, value_name = "TEXT")]
    pub data: Option<String>,
    /// Let the guest's kernel ask for snapshots of the machine, which go into DIR, each into a directory named by its number:
    /// DIR[,count=N][,interval=TIME][,quiesce=TIME]. N is how many there may be (1), TIME how long it takes at least from one to the next (10s),
    /// and how long the guest may take to stand still (10s). A comma of DIR is written twice.
    #[arg(long, value_name = "DIR", value_parser = parse_self_snapshot)]
    pub self_snapshot: Option<SelfSnapshot>,
    /// Serve the API on this Unix socket, too.
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// What a reboot in the guest does.
    #[arg(long, value_name = "WHAT", default_value = "restart")]
    pub on_reboot: OnReboot,
    /// A name for the machine: 1 to 64 letters, digits and hyphens.
    #[arg(long, default_value = DEFAULT_ID, value_parser = parse_id)]
    pub id: String,
}

/// `vmgenie api`.
#[derive(Debug, Args)]
#[command(after_help = API_HELP)]
pub struct ApiArgs {
    /// The Unix socket to listen on; its mode is 0600.
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// What a reboot in the guest does.
    #[arg(long, value_name = "WHAT", default_value = "exit")]
    pub on_reboot: OnReboot,
    /// A name for the machine: 1 to 64 letters, digits and hyphens.
    #[arg(long, default_value = DEFAULT_ID, value_parser = parse_id)]
    pub id: String,
    /// For `vmgenie clone` and `vmgenie fork`.
    #[command(flatten)]
    pub lifeline: LifelineArgs,
}

/// What `vmgenie clone` and `vmgenie fork` say to the machines that they start.
#[derive(Debug, Default, Args)]
pub struct LifelineArgs {
    /// End when standard input ends before a byte has come from it.
    #[arg(long, hide = true)]
    pub lifeline: bool,
    /// The file that is standard output and error; a large one is put aside.
    #[arg(long, hide = true, requires = "lifeline")]
    pub rotate: Option<PathBuf>,
    /// A file to remove then, or a directory with all that is in it.
    #[arg(long, hide = true, requires = "lifeline")]
    pub doomed: Vec<PathBuf>,
    /// A directory that goes with the last machine that was told so.
    #[arg(long, hide = true, requires = "lifeline")]
    pub shared_dir: Option<PathBuf>,
}

/// The name of a machine that was given none; Firecracker's, too.
pub const DEFAULT_ID: &str = "anonymous-instance";

/// The machine that a client command speaks to.
#[derive(Debug, Args)]
pub struct Target {
    /// The machine: its name, its process, or its socket.
    #[arg(
        value_name = "MACHINE",
        required_unless_present = "api_sock",
        conflicts_with = "api_sock"
    )]
    pub machine: Option<String>,
    /// The machine's socket, as an option: for scripts of before MACHINE could be a name.
    #[arg(long, value_name = "SOCKET", hide = true)]
    pub api_sock: Option<PathBuf>,
}

/// `vmgenie generation`.
#[derive(Debug, Args)]
#[command(after_help = GENERATION_HELP)]
pub struct GenerationArgs {
    /// The VMM.
    #[command(flatten)]
    pub target: Target,
    /// Begin a new generation.
    #[arg(long)]
    pub new: bool,
    /// Wait until the guest has adapted to its generation: 500ms, 10s, 2m; 10s when no TIMEOUT is given.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "10s", value_parser = parse_wait)]
    pub wait: Option<Duration>,
    /// How many agents of the guest have to have finished. Without it: as many as ever had in one generation of this machine,
    /// which may be none.
    #[arg(long, value_name = "N", requires = "wait")]
    pub agents: Option<u32>,
    /// Wait for watchers without privileges as well. Any program of the guest can be one.
    #[arg(long, requires = "wait")]
    pub all_watchers: bool,
}

/// `vmgenie snapshot`.
#[derive(Debug, Args)]
#[command(after_help = SNAPSHOT_HELP, allow_missing_positional = true)]
pub struct SnapshotArgs {
    /// The machine.
    #[command(flatten)]
    pub target: Target,
    /// The directory for the files `state` and `memory`; it is made when it is not there.
    #[arg(value_name = "DIR", required = true)]
    pub dir: PathBuf,
    /// Copy the drives that the guest may write to into DIR, too, while it stands still; blocks are shared where the file system can.
    /// Without that the snapshot is good for as long as the drives stay as they are.
    #[arg(long)]
    pub copy_drives: bool,
    /// How the guest takes part.
    #[command(flatten)]
    pub cooperation: CooperationArgs,
}

/// `vmgenie restore`.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_HELP)]
pub struct RestoreArgs {
    /// The directory that `vmgenie snapshot` wrote.
    #[arg(value_name = "SNAPSHOT_DIR")]
    pub dir: PathBuf,
    /// An empty VMM that becomes the machine, started with `vmgenie api`: its name, its process, or its socket. Without it this process becomes the
    /// machine, with this terminal as its console.
    #[arg(long, value_name = "MACHINE", alias = "api-sock", conflicts_with_all = ["serve", "id", "on_reboot", "self_snapshot"])]
    pub into: Option<String>,
    /// Let the guest's kernel ask for snapshots of the machine, which go into DIR, each into a directory named by its number:
    /// DIR[,count=N][,interval=TIME][,quiesce=TIME]. N is how many there may be (1), TIME how long it takes at least from one to the next (10s),
    /// and how long the guest may take to stand still (10s). A comma of DIR is written twice.
    #[arg(long, value_name = "DIR", value_parser = parse_self_snapshot)]
    pub self_snapshot: Option<SelfSnapshot>,
    /// Serve the API of the machine on this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub serve: Option<PathBuf>,
    /// A name for the machine: 1 to 64 letters, digits and hyphens.
    #[arg(long, default_value = DEFAULT_ID, value_parser = parse_id)]
    pub id: String,
    /// Other devices.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Whether the restored machine begins a new generation.
    #[arg(long, value_name = "WHICH", default_value = "new")]
    pub generation: Generation,
    /// Leave the restored machine paused.
    #[arg(long)]
    pub no_resume: bool,
}

/// `vmgenie stop`.
#[derive(Debug, Args)]
#[command(after_help = STOP_HELP)]
pub struct StopArgs {
    /// The machine: its name, its process, or its socket.
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Press its power button first, and end it only if the guest has not powered off in time: 500ms, 10s, 2m; 10s when no TIMEOUT
    /// is given.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "10s", value_parser = parse_wait)]
    pub power_off: Option<Duration>,
}

/// `vmgenie console`.
#[derive(Debug, Args)]
#[command(after_help = CONSOLE_HELP)]
pub struct ConsoleArgs {
    /// The machine: its name, its process, or its socket.
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

/// `vmgenie completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

/// The shells that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What went wrong.
    Error,
    /// What may go wrong.
    Warn,
    /// What happens.
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}
