//! What may be said on the command line.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::contract_args::ContractArgs;

const AFTER_HELP: &str = "\
Exit status:
  0  success
  1  failure
  2  the command line is wrong
  3  the time given with --timeout is over
  4  of fork-self: this machine is a clone

Examples:
  sysgenctl status --json
  sysgenctl watch
  sysgenctl wait --timeout 5s
  sysgenctl agent --directory /etc/sysgenid";

const WATCH_HELP: &str = "\
Examples:
  sysgenctl watch
  sysgenctl watch --count 1 --timeout 1m && echo 'a new generation'
  sysgenctl watch --json | jq .generation";

const WAIT_HELP: &str = "\
Only watchers that are tracked are waited for. A generation that begins meanwhile is waited for too.

Examples:
  sysgenctl wait
  sysgenctl wait --timeout 5s || echo 'somebody has not adapted'";

const TRIGGER_HELP: &str = "\
Needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace.

Examples:
  sysgenctl trigger
  sysgenctl trigger --min 100 --json";

const DATA_HELP: &str = "\
A hook of the agent learns by it which clone it is in.

Example:
  hostname \"$(sysgenctl data)\"";

const AGENT_HELP: &str = "\
Hooks are the executable files of four directories below --directory:
  quiesce.d         before the host snapshots the running machine, the LAST name first
  adapt.d/identity  in a new generation: whatever makes this machine another one to its neighbours
  adapt.d/service   then: whatever needs running programs, such as DHCP, reloads and restarts
  resume.d          after quiesce.d, when programs may go on
Each may be missing. Names are ordered by their bytes. Those that start with a dot or end in ~, .bak,
.disabled, .sample or .dpkg-* are left out. Environment of a hook:
  SYSGENID_STAGE    quiesce, identity, service or resume
  SYSGENID_OLD      the counter that was acknowledged last
  SYSGENID_NEW      the counter now
  SYSGENID_OUTCOME  of resume: original, clone or called-off
Refused are hooks that are symbolic links, that belong to anyone but root or the agent's user, that
group or others may write to, or that lie below a directory of which that is true.

When the host asks for a snapshot (a cooperative one), the agent runs quiesce.d, waits for programs that
park, freezes all others (--freeze) and has the CPUs stand still. The original is thawed and runs
resume.d. A clone runs adapt.d/identity FROZEN: these hooks must not wait for another program, systemd
and journald excepted. Then it is thawed, runs adapt.d/service and, when all watchers have adapted,
resume.d. A hook of quiesce.d that fails or hangs is a refusal: resume.d is run, nothing was taken.
If a hook of resume.d fails, all of them are run again every --retry. Until they succeed, a clone is not
ready and snapshots are refused. An agent that ends before that leaves a mark in --run; the next one
runs resume.d.

Hooks of the directory given with --hooks, and of hooks.d below --directory, are run in the stage of
adapt.d/service: that was the only stage once. With --hooks, adapt.d is not looked at.

The agent is a tracked watcher: `sysgenctl wait` waits until it has run the hooks. It acknowledges when
all hooks have ended, whether they failed or not, unless --require-success is given. To the host it
says that it is ready, and only when all hooks have succeeded: a host that expects an agent waits for
that. When a generation begins while hooks run, the one that runs is ended, and another round comes
before it acknowledges. A hook may leave a daemon behind, but one that reaches the limit is ended with
its whole process group. One for which no time is left is not started, and has failed. One that cannot
be killed is left behind.

To the driver a watcher is up to date from open on. So a generation that began while no agent ran is
found with --state only, and `sysgenctl wait` does not wait for the hooks that are then run at start.
The agent tells the service manager that it is ready (Type=notify) when they have been run; with
--require-success, when they have succeeded. To the host it is ready at start only if it knows that
nothing was missed: by its state file, or because no generation has begun since boot.

The contracts are for programs that have hooks of another kind already. None is kept unless it is asked
for. They come before quiesce.d, the last one first, and after adapt.d/service or resume.d, the first one
first. One that fails or hangs is as a hook that does, and has the same --limit. --system-sleep and then
--fsfreeze-hooks are the last before a snapshot, and the first after it: in a clone before adapt.d/identity.

Examples:
  sysgenctl agent
  sysgenctl agent --hooks ./hooks --limit 10s --require-success --json
  sysgenctl agent --freeze required --keep system.slice/watchdog.service
  sysgenctl agent --require-success --lambda 127.0.0.1:9001
  sysgenctl agent --microvm-hooks http://127.0.0.1:9000 --microvm-enable ready,suspend,run,resume
  sysgenctl agent --fsfreeze-hooks /etc/qemu/fsfreeze-hook.d --system-sleep /etc/systemd/system-sleep";

const THAW_HELP: &str = "\
An agent that was killed cannot thaw what it has frozen; its unit does so by ExecStopPost=. What somebody
else has frozen stays frozen.

Example:
  sysgenctl thaw --json";

const PARTICIPATE_HELP: &str = "\
The program starts this command with pipes as its standard input and output, and reads JSON, one object
for each line:
  {\"event\":\"ready\",\"generation\":N,\"parks\":BOOL}    at start; false: the driver does not ask
  {\"event\":\"pending\",\"request\":N}                  the host asks: come to rest
  {\"event\":\"called-off\",\"request\":N}               it is over; this program did not park. In a clone
                                               \"generation\" comes before it
  {\"event\":\"forked\",\"role\":ROLE,\"generation\":N}  this program was parked; original or clone
  {\"event\":\"generation\",\"generation\":N}            restored, and nobody has asked
Its answers are lines, too:
  parked REQUEST      at rest: this command parks. The program must do nothing until the next line comes
  adapted GENERATION  after \"forked\" of a clone and \"generation\": this command acknowledges
A program that does not answer is not parked, and the host's limit decides. An original that was
parked hears \"forked\" also if nothing came of the snapshot. The command ends with its standard input.

Example:
  sysgenctl participate";

const FORK_SELF_HELP: &str = "\
This is no fork(2) of a process: every other program of the machine is cloned as well. The command ends
in the original with status 0 and prints \"original\". In each clone that somebody makes of the snapshot
it ends once more, with status 4, and prints \"clone\".

The host says whether a guest may ask, where snapshots go and how many there may be (vmgenie run
--self-snapshot). No hooks are run, nothing is frozen, and the agent is not asked. Needs
CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace.

Examples:
  sysgenctl fork-self
  sysgenctl fork-self --tag 7 --timeout 5s --json";

const COMPLETIONS_HELP: &str = "\
Example:
  sysgenctl completions bash > ~/.local/share/bash-completion/completions/sysgenctl";

/// The default of --run.
const RUN: &str = "/run/sysgenid";

/// Shows, waits for and reacts to the generations of this machine.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// The device.
    #[arg(long, global = true, env = "SYSGENID_DEVICE", default_value = sysgenid::DEVICE)]
    pub(crate) device: PathBuf,
    /// The numbering of the device's calls, instead of finding it out.
    #[arg(long, global = true)]
    pub(crate) abi: Option<Numbering>,
    /// Print JSON: one object, or one for each line of a stream.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The two numberings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Numbering {
    /// The default of the driver.
    #[value(name = "5")]
    Seed,
    /// Versions 6 to 8 of the original patches; the driver with abi=8.
    #[value(name = "8")]
    Deployed,
}

impl From<Numbering> for sysgenid::Abi {
    fn from(numbering: Numbering) -> Self {
        match numbering {
            Numbering::Seed => Self::Seed,
            Numbering::Deployed => Self::Deployed,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the generation counter and what the driver tells of its watchers.
    Status,
    /// Print every new generation.
    #[command(after_help = WATCH_HELP)]
    Watch(WatchArgs),
    /// Wait until no watcher is outdated: everyone has adapted.
    #[command(after_help = WAIT_HELP)]
    Wait(WaitArgs),
    /// Begin a new generation.
    #[command(after_help = TRIGGER_HELP)]
    Trigger(TriggerArgs),
    /// Print the string by which this machine knows who it is, which vmgenie has given it; root only.
    #[command(after_help = DATA_HELP)]
    Data,
    /// Run hooks in every new generation, then acknowledge it; and before and after snapshots that the
    /// host asks for.
    #[command(after_help = AGENT_HELP)]
    Agent(Box<AgentArgs>),
    /// Take part in snapshots for a program whose language has no ioctl(2), by lines over pipes.
    #[command(after_help = PARTICIPATE_HELP)]
    Participate,
    /// Thaw all programs that an agent has frozen.
    #[command(after_help = THAW_HELP)]
    Thaw(ThawArgs),
    /// Ask the host for a snapshot of this machine, and say whether this is the original or a clone.
    #[command(after_help = FORK_SELF_HELP)]
    ForkSelf(ForkSelfArgs),
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// End after so many generations.
    #[arg(long, short = 'n')]
    pub(crate) count: Option<u64>,
    /// End with status 3 when no generation has begun for so long (such as 500ms, 5s, 1m).
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// End with status 3 after so long (such as 500ms, 5s, 1m).
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct TriggerArgs {
    /// The least new counter; it becomes the present one plus one if that is more.
    #[arg(long, default_value_t = 0)]
    pub(crate) min: u32,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Where the directories of the hooks are.
    #[arg(long, default_value = "/etc/sysgenid")]
    pub(crate) directory: PathBuf,
    /// One directory of hooks, for a new generation, instead of adapt.d.
    #[arg(long)]
    pub(crate) hooks: Option<PathBuf>,
    /// How long one hook may take.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) limit: Duration,
    /// How long all hooks of a generation may take together.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) round_limit: Duration,
    /// Do not acknowledge a generation while a hook fails; run them again every --retry.
    #[arg(long)]
    pub(crate) require_success: bool,
    /// The pause between two attempts: at resume.d, and at the other hooks with --require-success.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) retry: Duration,
    /// Keep in this file the counter of the last generation whose hooks have succeeded: one that begins
    /// while no agent runs is then not missed. It has to be lost at a reboot (such as in /run).
    #[arg(long)]
    pub(crate) state: Option<PathBuf>,
    /// Whether programs are frozen before the host's snapshot: a snapshot without it is refused, or taken.
    #[arg(long, default_value = "best-effort")]
    pub(crate) freeze: Freeze,
    /// How long the freezing may take.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) freeze_limit: Duration,
    /// How long programs of a clone stay frozen for adapt.d/identity, from its beginning on. A hook that
    /// takes longer is ended.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) frozen_limit: Duration,
    /// How long the CPUs may stand still for the host: 10s at most.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) standstill_limit: Duration,
    /// How long a clone waits for other watchers before resume.d.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) watchers_limit: Duration,
    /// A control group that is not frozen, below the root of the hierarchy; may be repeated. Those of systemd,
    /// journald, D-Bus and the agent's slice never are.
    #[arg(long, value_name = "CGROUP")]
    pub(crate) keep: Vec<PathBuf>,
    /// Where marks are kept for the next agent and for `sysgenctl thaw`. They have to be lost at a reboot.
    #[arg(long, default_value = RUN)]
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) contracts: ContractArgs,
}

/// What becomes of a snapshot if programs cannot be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Freeze {
    /// It is refused.
    Required,
    /// It is taken: what can be frozen is, and the host is told that not all was.
    BestEffort,
    /// They are never frozen.
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct ThawArgs {
    /// The --run of the agent.
    #[arg(long, default_value = RUN)]
    pub(crate) run: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ForkSelfArgs {
    /// A number for those who read the host's log; not 0.
    #[arg(long, default_value = "1")]
    pub(crate) tag: NonZeroU32,
    /// How long the host may take to agree, and then to take the snapshot: 10s at most. Then the status is 3.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_agent_has_a_limit_unless_told_otherwise() {
        let Command::Agent(args) = parse("sysgenctl agent").unwrap().command else {
            panic!("not an agent");
        };
        assert_eq!(args.limit, Duration::from_secs(30));
        assert!(!args.require_success);
    }

    #[test]
    fn options_of_all_commands_may_follow_the_command() {
        let cli = parse("sysgenctl status --json --abi 8 --device /dev/other").unwrap();
        assert!(cli.json);
        assert_eq!(cli.abi, Some(Numbering::Deployed));
        assert_eq!(cli.device, PathBuf::from("/dev/other"));
    }

    #[test]
    fn what_is_no_duration_or_counter_is_refused() {
        for line in [
            "sysgenctl wait --timeout 5",
            "sysgenctl wait --timeout -1s",
            "sysgenctl trigger --min 4294967296",
            "sysgenctl trigger --min -1",
            "sysgenctl status --abi 6",
            "sysgenctl fork-self --tag 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_command_but_status_and_completions_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let shown = command.get_after_help().map(ToString::to_string);
            let example = shown.is_some_and(|help| help.contains("Example"));
            assert!(
                example || command.get_name() == "status",
                "{}",
                command.get_name()
            );
        }
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let pages = manual_pages::pages(Cli::command()).unwrap();
        let visible = Cli::command().get_subcommands().count();
        assert_eq!(
            (pages.len(), pages[0].file.as_str()),
            (visible + 1, "sysgenctl.1")
        );
        assert!(
            pages[0].text.contains("\n.SH \"EXIT STATUS\"\n"),
            "{}",
            pages[0].text
        );
    }
}
