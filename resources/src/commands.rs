//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use vm_agent::{GUEST_DIR, QEMU_DIR, WORK_DIR, Work};

use crate::build::{self, Profile, Wanted};
use crate::detect::{self, Kvm};
use crate::driver_patch;
use crate::fuzz;
use crate::host::{self, Request, SharedFile};
use crate::man;
use crate::package;
use crate::programs::{self, BENCH_HELP, DEMO_HELP, Passed};
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
        Subcommands::Demo(passed) => programs::demo(passed),
        Subcommands::Bench(passed) => programs::bench(passed),
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
        lane: None,
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
}
