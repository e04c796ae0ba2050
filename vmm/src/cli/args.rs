//! What may be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;
use vmgenie_api::wire::{Gate, GenerationChoice};
use vmgenie_machine::config;

use super::cooperation::CooperationArgs;
use super::gate::parse_gate;
use super::help::{
    AFTER_HELP, API_HELP, COMPLETIONS_HELP, CONSOLE_HELP, GENERATION_HELP, INFO_HELP, LONG_VERSION,
    PAUSE_HELP, PS_HELP, RESTORE_HELP, RESUME_HELP, SNAPSHOT_HELP, STOP_HELP, clone_help, run_help,
};
pub use super::reboot::OnReboot;
use super::reboot::RebootOfRestored;
use super::templates::{
    Override, Template, parse_any_template, parse_device_override, parse_template,
};
use super::units::{parse_id, parse_memory_mib, parse_vcpus, parse_wait};
use crate::kinds::DeviceFlags;

/// A microVM monitor whose guests always know when they have been cloned.
#[derive(Debug, Parser)]
#[command(name = "vmgenie", version, long_version = LONG_VERSION, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

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
    /// List the machines that this user runs on this host.
    #[command(after_help = PS_HELP)]
    Ps,
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
    /// For `vmgenie clone`.
    #[command(flatten)]
    pub lifeline: LifelineArgs,
}

/// What `vmgenie clone` says to the machines that it starts.
#[derive(Debug, Default, Args)]
pub struct LifelineArgs {
    /// End when standard input ends before a byte has come from it.
    #[arg(long, hide = true)]
    pub lifeline: bool,
    /// The file that is standard output and error; a large one is put aside.
    #[arg(long, hide = true, requires = "lifeline")]
    pub rotate: Option<PathBuf>,
    /// A file to remove then.
    #[arg(long, hide = true, requires = "lifeline")]
    pub doomed: Vec<PathBuf>,
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
    #[arg(long, value_name = "MACHINE", alias = "api-sock", conflicts_with_all = ["serve", "id", "on_reboot"])]
    pub into: Option<String>,
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

/// `vmgenie clone`.
#[derive(Debug, Args)]
#[command(after_help = clone_help())]
pub struct CloneArgs {
    /// The directory that `vmgenie snapshot` wrote.
    #[arg(value_name = "SNAPSHOT_DIR")]
    pub snapshot: PathBuf,
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
    /// Whether each clone begins a new generation.
    #[arg(long, value_name = "WHICH", default_value = "new")]
    pub generation: Generation,
}

/// What a restored machine has otherwise than the one that was snapshotted.
#[derive(Debug, Default, Args)]
pub struct OverrideArgs {
    /// Another tap behind a network interface: NAME=TAP[,mac=MAC] (`run` names them net0, net1, ...); may be given several times.
    #[arg(long, value_name = "NAME=TAP", value_parser = parse_device_override)]
    pub net: Vec<Override>,
    /// Another file behind a drive: NAME=PATH[,copy|,overlay] (`run` names them disk0, disk1, ...). With `copy` it is made first, as a copy;
    /// with `overlay` as a file that takes what the guest writes, while the snapshot's is only read. A comma of the path is written twice.
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_device_override)]
    pub drive: Vec<Override>,
    /// Another Unix socket for the vsock device: PATH[,peers=own|any]. The guest reaches your own programs and root's there, or with
    /// `peers=any` everybody's. A comma of the path is written twice. Without this, the socket and the peers are the
    /// snapshot's.
    #[arg(long, value_name = "VSOCK", value_parser = parse_template)]
    pub vsock: Option<Template>,
    /// Another CID for the vsock device: a number, or a sum of numbers.
    #[arg(long, value_name = "CID", value_parser = parse_template)]
    pub cid: Option<Template>,
    /// The guest's identity string; @FILE is a file's content, as it is. Without it, none (with --generation keep: as before).
    #[arg(long, value_name = "TEXT", value_parser = parse_any_template)]
    pub data: Option<Template>,
    /// Open nothing that only the snapshot names: for one of somebody else's. Without this and --trust-paths it is so for a snapshot that somebody
    /// else than this user and root can have written: one whose files or directory belong to another, or may be written to by others.
    #[arg(long)]
    pub only_named: bool,
    /// Open the drives, taps and sockets that the snapshot names, whoever can have written it.
    #[arg(long, conflicts_with = "only_named")]
    pub trust_paths: bool,
    /// What happens if a drive's file is not what it was when the snapshot was taken.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub changed_drives: ChangedDrives,
    /// What becomes of the guest's time of day, which is that of the snapshot.
    #[arg(long, value_name = "WHAT", default_value = "step")]
    pub clock: Clock,
    /// Keep the machine from its peers until its guest knows who it is: no link and no connections of the guest's before the stage identity, no
    /// connections to the guest before the stage service. PARTS are `link` and `vsock` (both if neither is named), agents=N, timeout=30s,
    /// and on-timeout=keep|kill|open: what happens to a machine whose guest has not adapted in time.
    #[arg(long, value_name = "PARTS", num_args = 0..=1, require_equals = true, default_missing_value = "link,vsock", value_parser = parse_gate)]
    pub gate: Option<Gate>,
    /// What a reboot in the guest does: `exit`, the process ends with status 0. What the machine was booted from is not in a snapshot, so that it
    /// cannot boot again.
    #[arg(long, value_name = "WHAT", default_value = "exit", value_parser = RebootOfRestored)]
    pub on_reboot: OnReboot,
}

/// What becomes of the guest's time of day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// The guest's driver sets it to the host's.
    #[default]
    Step,
    /// It is late by the time that the snapshot has lain there.
    Keep,
}

/// What happens if a drive's file is not what it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ChangedDrives {
    /// Nothing is restored.
    #[default]
    Refuse,
    /// The guest goes on with it, which damages its file system unless the file belongs to the snapshot.
    Allow,
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

/// What a restored machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Generation {
    /// Another machine than the one that was snapshotted, or the same one set back in time.
    New,
    /// The very machine that was snapshotted, which ran nowhere else since.
    Keep,
}

impl From<Generation> for GenerationChoice {
    fn from(choice: Generation) -> Self {
        match choice {
            Generation::New => Self::New,
            Generation::Keep => Self::Keep,
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
