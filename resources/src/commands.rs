//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use vm_agent::{GUEST_DIR, QEMU_DIR, Report, WORK_DIR, Work};

use crate::build::{self, Profile, Wanted};
use crate::detect::{self, Kvm};
use crate::driver_patch;
use crate::fuzz;
use crate::host::{self, HostDied, Request, SharedFile};
use crate::man;
use crate::package;
use crate::progress::Progress;
use crate::setup::{self, Guests};
use crate::small::Flavor;
use crate::testing::{self, Part};

/// Makes what a VM needs, and runs programs on a KVM that can boot Linux.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Get and build everything that VMs need: tools, toolchain, kernels, initramfs. Does only
    /// what is missing.
    Setup,
    /// Run a static program on a KVM: this machine's own if it can boot Linux, else in an
    /// emulated host. Its output and exit status are passed on; its input is empty.
    ///
    /// The status is 125 if the host itself failed and 127 if the program could not be started.
    KvmHost(KvmHost),
    /// Run all tests: format, clippy, unit and doc tests, then real guests on a KVM.
    Test(Test),
    /// Boot a stock Debian kernel, snapshot it, and wake it up three times.
    #[command(after_help = DEMO_HELP)]
    Demo(Passed),
    /// Measure: `restore`, `create`, `boot`, `net`, `vsock`, `block`, `image` or `notify`.
    #[command(after_help = BENCH_HELP)]
    Bench(Passed),
    /// Write the guest driver as a patch series for the kernel's tree, check that it applies, and show what the kernel's
    /// style checker says of it.
    #[command(after_help = DRIVER_PATCH_HELP)]
    DriverPatch(driver_patch::Options),
    /// Write the manual pages of vmgenie and sysgenctl.
    Man(man::Options),
    /// Make Debian packages: `vmgenie` for hosts, and `vmgenie-guest` with the driver for Debian's kernel.
    #[command(after_help = PACKAGE_HELP)]
    Package(package::Options),
    /// Feed the parsers of hostile input with what a fuzzer makes up: virtio queues, registers, state files, bodies of
    /// requests. Needs a nightly toolchain.
    Fuzz(Fuzz),
}

/// The program runs on the KVM, where it takes a while to be asked.
const DEMO_HELP: &str = "\
What the program takes:
  --guest debian|small   what boots [default: debian]
  --full                 a whole Debian from a disk instead: it serves over a tap, is snapshotted at
                         work, and its clones become machines of their own
  --json                 the result as JSON
  --verbose              if something fails, also what the guest's console said

Examples:
  cargo xtask demo
  cargo xtask demo --guest small --json
  cargo xtask demo --full";

const BENCH_HELP: &str = "\
What the program takes:
  restore|create|boot|net|vsock|block|image|notify|fork
                         what is measured; first
  --json                 the result as JSON
  --runs N               how often [default: 100 restores, 20 creates, 5 boots and images,
                         10 of all else]
  --tiny                 with fork: the tiny guest alone, on any KVM
  --firecracker PATH     measure this Firecracker too, in turn, and print ratios; not with notify,
                         which measures a QEMU of its own, nor with fork

Examples:
  cargo xtask bench restore
  cargo xtask bench create --runs 50 --json
  cargo xtask bench notify
  cargo xtask bench fork --runs 20";

const DRIVER_PATCH_HELP: &str = "\
Examples:
  cargo xtask driver-patch
  cargo xtask driver-patch --build --json
  cargo xtask driver-patch --signoff --output ~/sysgenid-v1";

const PACKAGE_HELP: &str = "\
Examples:
  cargo xtask package
  cargo xtask package --output /srv/packages --json";

#[derive(Debug, Args)]
struct KvmHost {
    /// A file to have in the emulated host, by default at the same path.
    #[arg(long = "file", value_name = "HOST_PATH[:GUEST_PATH]")]
    files: Vec<String>,
    /// End the command after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Put the command, by default a shell, on a terminal of its own.
    #[arg(long)]
    shell: bool,
    /// Have the Debian image there too, in the file that VMGENIE_IMAGE names; in the emulated host a copy that may be written to.
    #[arg(long)]
    image: bool,
    /// Do not build the vmgenie program for VMGENIE_BIN.
    #[arg(long)]
    no_vmgenie: bool,
    /// The program, a static one, and its arguments.
    #[arg(last = true, required_unless_present = "shell")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct Test {
    /// Run only the tests on a KVM whose `binary::name` contains this text.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Run only one part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How many tests on a KVM run at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// End a test on a KVM after so many seconds, as on a quiet machine: a busy one has more.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    limit: u64,
    /// Boot the small guests with a kernel that looks for mistakes of drivers (KASAN, lockdep, sleeping in
    /// atomic context), and run the tests of the guest driver, or those of --filter. The kernel is built first.
    #[arg(long)]
    debug_kernel: bool,
}

#[derive(Debug, Args)]
struct Fuzz {
    /// `queues`, `registers`, `state` or `api`; all, one after the other, when none is given.
    target: Option<String>,
    /// How long each one runs.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct Passed {
    /// Arguments for the program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the command and returns the exit status.
pub(crate) fn run(arguments: Arguments) -> Result<i32> {
    match arguments.command {
        Subcommands::Setup => {
            let resources = setup::setup(Guests::All(Flavor::Plain), true, &Progress::default())?;
            println!("guests: {}", resources.guests.display());
            if let Some(image) = &resources.image {
                println!("image: {}", image.display());
            }
            Ok(0)
        }
        Subcommands::KvmHost(options) => kvm_host(options),
        Subcommands::Test(options) => test(options),
        Subcommands::Demo(passed) => {
            let guests = demo_guests(&passed.arguments);
            let full = passed.arguments.iter().any(|argument| argument == "--full");
            program("demo", passed.arguments, detect::detect()?, guests, full)
        }
        Subcommands::Bench(passed) => {
            let kvm = bench_kvm(&passed.arguments)?;
            let guests = Guests::All(Flavor::Plain);
            let image = passed.arguments.first().is_some_and(|name| name == "image");
            program("bench", passed.arguments, kvm, guests, image)
        }
        Subcommands::DriverPatch(options) => driver_patch::run(&options),
        Subcommands::Man(options) => man::run(&options),
        Subcommands::Package(options) => package::run(&options),
        Subcommands::Fuzz(options) => fuzz::fuzz(options.target.as_deref(), options.seconds),
    }
}

fn test(options: Test) -> Result<i32> {
    let driver = || "driver::".to_owned();
    testing::run(testing::Options {
        filter: match options.debug_kernel {
            true => Some(options.filter.unwrap_or_else(driver)),
            false => options.filter,
        },
        only: options.only,
        jobs: options.jobs,
        limit_secs: options.limit,
        kernel: match options.debug_kernel {
            true => Flavor::Debug,
            false => Flavor::Plain,
        },
    })
}

fn kvm_host(options: KvmHost) -> Result<i32> {
    let kvm = detect::detect()?;
    let resources = setup::setup(
        Guests::All(Flavor::Plain),
        options.image,
        &Progress::default(),
    )?;
    let work = match options.shell {
        true => {
            let (rows, columns) = host::terminal_size();
            let argv = match options.command.is_empty() {
                true => vec!["sh".to_owned()],
                false => options.command,
            };
            Work::Terminal {
                argv,
                rows,
                columns,
            }
        }
        false => Work::Command {
            argv: options.command,
        },
    };
    let files: Result<Vec<_>> = options.files.iter().map(|file| shared_file(file)).collect();
    let files = files?;
    if kvm == Kvm::Emulated {
        check_visible(&files, options.image)?;
    }
    let wanted = match options.no_vmgenie {
        true => Wanted::Agent,
        false => Wanted::Vmgenie,
    };
    let built = build::build(Profile::VmTest, wanted)?;
    let request = Request {
        work,
        files,
        agent: built.agent,
        vmgenie: built.vmgenie,
        timeout_secs: options.timeout,
    };
    Ok(host::run(kvm, &resources, &request)?.status)
}

/// Reads `HOST_PATH[:GUEST_PATH]`.
fn shared_file(text: &str) -> Result<SharedFile> {
    let (from, to) = match text.split_once(':') {
        Some((from, to)) => (from, Some(to)),
        None => (text, None),
    };
    let from = PathBuf::from(from)
        .canonicalize()
        .with_context(|| format!("could not find {from}"))?;
    let to = match to {
        Some(to) => to.to_owned(),
        None => from.to_string_lossy().into_owned(),
    };
    Ok(SharedFile { from, to })
}

/// Where the emulated host mounts something over the files that it is given.
const HIDDEN: [&str; 6] = ["/tmp", "/dev", "/proc", "/sys", GUEST_DIR, QEMU_DIR];

/// Whether the files can be seen in a host, with the Debian image or without.
fn check_visible(files: &[SharedFile], image: bool) -> Result<()> {
    let mut hidden = HIDDEN.to_vec();
    hidden.extend(image.then_some(WORK_DIR));
    for SharedFile { from, to } in files {
        if let Some(hidden) = hidden.iter().find(|dir| Path::new(to).starts_with(dir)) {
            let from = from.display();
            bail!(
                "{to} would be hidden in the emulated host, which mounts something at {hidden}: give the file another place, --file {from}:/PLACE"
            );
        }
    }
    Ok(())
}

/// What a restore or a snapshot costs on the host side can be measured on any KVM; a boot cannot.
fn bench_kvm(arguments: &[String]) -> Result<Kvm> {
    let tiny = arguments.iter().any(|argument| argument == "--tiny");
    let host_side = arguments
        .first()
        .is_some_and(|name| name == "restore" || name == "create" || name == "fork" && tiny);
    if host_side && std::env::var_os("VMGENIE_KVM").is_none() && detect::kvm_opens() {
        return Ok(Kvm::Native);
    }
    detect::detect()
}

/// The demo shows the stock kernel unless it is told otherwise; then nobody waits for a kernel build.
fn demo_guests(arguments: &[String]) -> Guests {
    let small = arguments
        .iter()
        .any(|argument| argument == "small" || argument == "--guest=small");
    match small {
        true => Guests::All(Flavor::Plain),
        false => Guests::Stock,
    }
}

/// Runs a program of the tests package, as it would be shipped.
fn program(
    name: &str,
    arguments: Vec<String>,
    kvm: Kvm,
    guests: Guests,
    image: bool,
) -> Result<i32> {
    let resources = setup::setup(guests, image, &Progress::default())?;
    let built = build::build(Profile::Release, Wanted::Program(name))?;
    let program = built.program.context("cargo built no program")?;
    let mut argv = vec![program.to_string_lossy().into_owned()];
    let (arguments, files) = moved(kvm, arguments)?;
    argv.extend(arguments);
    let request = Request {
        work: Work::Command { argv },
        files,
        agent: built.agent,
        vmgenie: built.vmgenie,
        timeout_secs: None,
    };
    let report = patiently(name, || host::run(kvm, &resources, &request))?;
    Ok(report.status)
}

/// How often a program is begun whose emulated host crashes.
const HOST_ATTEMPTS: u32 = 3;

/// Begins anew when the emulated host has crashed: that is nothing of the program's doing.
fn patiently(name: &str, mut run: impl FnMut() -> Result<Report>) -> Result<Report> {
    for _ in 1..HOST_ATTEMPTS {
        match run() {
            Err(error) if error.is::<HostDied>() => {
                eprintln!(
                    "NOTE: the emulated host has crashed, as it does now and then; the {name} begins anew"
                );
            }
            result => return result,
        }
    }
    run()
}

/// Where the peer of a benchmark is in the emulated host.
const PEER: &str = "/peer/firecracker";

/// The arguments as they are right on the KVM's side, and the files that must be there: of all paths, that of `bench --firecracker PATH`.
fn moved(kvm: Kvm, arguments: Vec<String>) -> Result<(Vec<String>, Vec<SharedFile>)> {
    if kvm == Kvm::Native {
        return Ok((arguments, Vec::new()));
    }
    let mut moved = Vec::new();
    let mut files = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let path = match argument.strip_prefix("--firecracker=") {
            Some(path) => Some(path.to_owned()),
            None if argument == "--firecracker" => arguments.next(),
            None => None,
        };
        let Some(path) = path else {
            moved.push(argument);
            continue;
        };
        let from = PathBuf::from(&path);
        let from = from.canonicalize();
        let from = from.with_context(|| format!("could not find {path}"))?;
        files.push(SharedFile {
            from,
            to: PEER.to_owned(),
        });
        moved.extend(["--firecracker".to_owned(), PEER.to_owned()]);
    }
    Ok((moved, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_command_s_own_options_reach_it() {
        let words = ["xtask", "kvm-host", "--timeout", "5", "--", "ls", "--all"];
        let Subcommands::KvmHost(options) = Arguments::parse_from(words).command else {
            panic!("another command");
        };
        assert_eq!(options.command, ["ls", "--all"]);
        let words = ["xtask", "bench", "restore", "--json"];
        let Subcommands::Bench(passed) = Arguments::parse_from(words).command else {
            panic!("another command");
        };
        assert_eq!(passed.arguments, ["restore", "--json"]);
    }

    #[test]
    fn the_demo_waits_for_the_small_kernel_only_where_it_is_asked_for() {
        let guests = |words: &[&str]| {
            demo_guests(
                &words
                    .iter()
                    .map(|word| word.to_string())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(guests(&["--json"]), Guests::Stock);
        assert_eq!(guests(&["--guest", "debian"]), Guests::Stock);
        assert_eq!(guests(&["--guest", "small"]), Guests::All(Flavor::Plain));
        assert_eq!(guests(&["--guest=small"]), Guests::All(Flavor::Plain));
    }

    #[test]
    fn a_shared_file_may_have_another_place_in_the_host() {
        let file = shared_file("/proc/self/exe:/bin/x").unwrap();
        assert_eq!(file.to, "/bin/x");
        assert!(shared_file("/nowhere").is_err());
        let visible = |place: &str| {
            let file = shared_file(&format!("/proc/self/exe:{place}")).unwrap();
            check_visible(&[file], false)
        };
        let hidden = visible("/tmp/x").unwrap_err();
        assert!(hidden.to_string().contains("at /tmp"), "{hidden}");
        visible("/tmpx").unwrap();
    }

    #[test]
    fn a_program_begins_anew_when_its_host_has_crashed_and_not_for_ever() {
        let mut runs = 0;
        let report = patiently("demo", || {
            runs += 1;
            match runs {
                1 => Err(HostDied::after(Vec::new()).into()),
                _ => Ok(Report::of_status(7)),
            }
        });
        assert_eq!((report.unwrap().status, runs), (7, 2));
        let mut runs = 0;
        let report = patiently("demo", || {
            runs += 1;
            Err(HostDied::after(Vec::new()).into())
        });
        assert!(report.unwrap_err().is::<HostDied>());
        assert_eq!(runs, HOST_ATTEMPTS);
        let other = patiently("demo", || bail!("another reason"));
        assert!(!other.unwrap_err().is::<HostDied>());
    }

    #[test]
    fn the_peer_of_a_benchmark_moves_into_the_emulated_host() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for form in [
            "--firecracker /proc/self/exe",
            "--firecracker=/proc/self/exe",
        ] {
            let given = words(&format!("net {form} --runs 3"));
            let (there, files) = moved(Kvm::Emulated, given.clone()).unwrap();
            assert_eq!(there, words(&format!("net --firecracker {PEER} --runs 3")));
            assert_eq!(files.len(), 1);
            assert_eq!(files[0].to, PEER);
            assert!(files[0].from.is_absolute());
            assert_eq!(
                moved(Kvm::Native, given.clone()).unwrap(),
                (given, Vec::new())
            );
        }
        let missing = moved(Kvm::Emulated, words("net --firecracker /nowhere"));
        assert!(missing.unwrap_err().to_string().contains("/nowhere"));
    }
}
