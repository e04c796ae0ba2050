//! The demo and the benchmarks: programs of the tests package that run on a KVM.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use vm_agent::{Report, Work};

use crate::build::{self, Profile, Wanted};
use crate::detect::{self, Kvm};
use crate::host::{self, HostDied, Request, SharedFile};
use crate::package::Installed;
use crate::progress::Progress;
use crate::setup::{self, Guests};
use crate::small::Flavor;

/// The program runs on the KVM, where it takes a while to be asked.
pub(crate) const DEMO_HELP: &str = "\
What the program takes:
  --guest debian|small   what boots [default: debian]
  --full                 a whole Debian from a disk instead: it serves over a tap, is snapshotted at
                         work, and its clones become machines of their own
  --fork                 `vmgenie fork` of such a Debian under load, on a bridge
  --packaged             vmgenie is the one that its Debian package installs in a fresh Debian; that
                         of --full has the driver from its package anyway
  --json                 the result as JSON
  --verbose              if something fails, also what the guest's console said

Examples:
  cargo xtask demo
  cargo xtask demo --guest small --json
  cargo xtask demo --full
  cargo xtask demo --full --packaged
  cargo xtask demo --fork";

pub(crate) const BENCH_HELP: &str = "\
What the program takes:
  restore|create|boot|net|vsock|block|image|notify|fork|unaware
                         what is measured; first
  --json                 the result as JSON
  --runs N               how often [default: 100 restores, 20 creates, 5 boots and images,
                         10 of all else]
  --tiny                 with fork: the tiny guest alone, on any KVM
  --firecracker PATH     measure this Firecracker too, in turn, and print ratios; not with notify
                         and unaware, which measure a QEMU of their own, nor with fork

Examples:
  cargo xtask bench restore
  cargo xtask bench create --runs 50 --json
  cargo xtask bench notify
  cargo xtask bench fork --runs 20";

/// What a program is given.
#[derive(Debug, Args)]
pub(crate) struct Passed {
    /// Arguments for the program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}

/// How the program is run.
struct Run<'a> {
    name: &'a str,
    arguments: Vec<String>,
    kvm: Kvm,
    guests: Guests,
    /// With the Debian image.
    image: bool,
    /// With the vmgenie that a package has installed.
    packaged: bool,
}

/// Runs the demo, as it would be shipped.
pub(crate) fn demo(passed: Passed) -> Result<i32> {
    let (packaged, arguments): (Vec<_>, Vec<_>) = passed
        .arguments
        .into_iter()
        .partition(|argument| argument == "--packaged");
    Run {
        name: "demo",
        kvm: detect::detect()?,
        guests: demo_guests(&arguments),
        image: demo_image(&arguments),
        packaged: !packaged.is_empty(),
        arguments,
    }
    .run()
}

/// Runs a benchmark.
pub(crate) fn bench(passed: Passed) -> Result<i32> {
    let arguments = passed.arguments;
    Run {
        name: "bench",
        kvm: bench_kvm(&arguments)?,
        guests: Guests::All(Flavor::Plain),
        image: arguments.first().is_some_and(|name| name == "image"),
        packaged: false,
        arguments,
    }
    .run()
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

/// Whether the demo boots the Debian image.
fn demo_image(arguments: &[String]) -> bool {
    arguments
        .iter()
        .any(|argument| argument == "--full" || argument == "--fork")
}

impl Run<'_> {
    fn run(self) -> Result<i32> {
        let resources = setup::setup(self.guests, self.image, &Progress::default())?;
        let built = build::build(Profile::Release, Wanted::Program(self.name))?;
        let program = built.program.context("cargo built no program")?;
        let vmgenie = built.vmgenie.context("cargo built no vmgenie")?;
        // Its directory goes at the end.
        let installed = match self.packaged {
            true => Some(Installed::new(&vmgenie)?),
            false => None,
        };
        let mut argv = vec![program.to_string_lossy().into_owned()];
        let (arguments, files) = moved(self.kvm, self.arguments)?;
        argv.extend(arguments);
        let request = Request {
            work: Work::Command { argv },
            files,
            agent: built.agent,
            vmgenie: Some(installed.as_ref().map_or(vmgenie, Installed::program)),
            timeout_secs: None,
            lane: None,
        };
        let report = patiently(self.name, || host::run(self.kvm, &resources, &request))?;
        Ok(report.status)
    }
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
    use anyhow::bail;

    use super::*;

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
    fn a_program_begins_anew_when_its_host_has_crashed_and_not_for_ever() {
        let mut runs = 0;
        let report = patiently("demo", || {
            runs += 1;
            match runs {
                1 => Err(HostDied::after(vm_agent::Cut::default()).into()),
                _ => Ok(Report::of_status(7)),
            }
        });
        assert_eq!((report.unwrap().status, runs), (7, 2));
        let mut runs = 0;
        let report = patiently("demo", || {
            runs += 1;
            Err(HostDied::after(vm_agent::Cut::default()).into())
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
