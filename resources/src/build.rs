//! Programs of this workspace, built static so that they run in the emulated host
//! and in guests.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use vm_agent::TestBinary;

use crate::lifetime;

/// Naming the target keeps the flags below away from build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// The package with the integration tests, the demo and the benchmarks.
pub(crate) const TESTS_PACKAGE: &str = "vmgenie-tests";

/// The guests' programs: package and name.
const GUEST_PROGRAMS: &[(&str, &str)] = &[
    ("guest-load", "guest-load"),
    ("sysgenid-aws-lc", "sysgenid-aws-lc"),
    ("sysgenid-test", "sysgenid-test"),
    ("sysgenctl", "sysgenctl"),
];

/// A function for Amazon's runtime client: package and name.
const FUNCTION: &str = "guest-lambda";

/// The package whose examples run in guests, and their names.
const EXAMPLES_PACKAGE: &str = "sysgenid";
const EXAMPLES: &[&str] = &[
    "watchdog",
    "event_loop",
    "mapped",
    "orchestrator",
    "participant",
];

/// How programs are optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For tests: quick to build.
    VmTest,
    /// As shipped.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::VmTest => "vmtest",
            Self::Release => "release",
        }
    }
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(args).current_dir(workspace());
    command
}

/// The directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// How many processes a build runs at once.
pub(crate) fn jobs() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// The static executables of one build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Built {
    /// The agent.
    pub(crate) agent: PathBuf,
    /// The `vmgenie` program, if it was wanted.
    pub(crate) vmgenie: Option<PathBuf>,
    /// The program of the tests package that was wanted.
    pub(crate) program: Option<PathBuf>,
    /// The binaries of the integration tests, if they were wanted.
    pub(crate) tests: Vec<TestBinary>,
}

/// What to build besides the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// Nothing else.
    Agent,
    /// The `vmgenie` program.
    Vmgenie,
    /// It, and a program of the tests package.
    Program(&'a str),
    /// It, and the integration tests.
    Tests,
}

/// Builds all that is wanted in one run of cargo, so that packages that several of them use are
/// built once, with one set of features.
pub(crate) fn build(profile: Profile, wanted: Wanted) -> Result<Built> {
    let mut command = static_build(profile);
    command.args(["-p", "vm-agent", "--bin", "vm-agent"]);
    if wanted != Wanted::Agent {
        command.args(["-p", "vmgenie", "--bin", "vmgenie"]);
    }
    match wanted {
        Wanted::Agent | Wanted::Vmgenie => {}
        Wanted::Program(name) => {
            command.args(["-p", TESTS_PACKAGE, "--bin", name]);
        }
        Wanted::Tests => {
            command.args(["-p", TESTS_PACKAGE, "--test", "*"]);
            // Tests kill the program at each step of writing a snapshot.
            command.args(["--features", "vmgenie/fault-injection"]);
        }
    }
    eprintln!("building ({} profile)", profile.name());
    sort(&messages(&mut command)?, wanted)
}

/// A program of this workspace for the guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestProgram {
    /// Its name.
    pub(crate) name: &'static str,
    /// The static executable.
    pub(crate) contents: Vec<u8>,
}

/// Builds the guests' programs. Nearly free when nothing of theirs has changed.
pub(crate) fn guest_programs() -> Result<Vec<GuestProgram>> {
    let mut command = static_build(Profile::VmTest);
    for (package, name) in GUEST_PROGRAMS {
        command.args(["-p", package, "--bin", name]);
    }
    eprintln!("building the guests' programs");
    let names = GUEST_PROGRAMS.iter().map(|(_, name)| *name);
    read_programs(&mut command, "bin", names)
}

/// Builds the function for Amazon's runtime client, alone: what it makes of shared crates is no guest program's.
pub(crate) fn function() -> Result<GuestProgram> {
    let mut command = static_build(Profile::VmTest);
    command.args(["-p", FUNCTION, "--bin", FUNCTION]);
    let mut found = read_programs(&mut command, "bin", std::iter::once(FUNCTION))?;
    found.pop().context("cargo built no function")
}

/// Builds the examples of the crate `sysgenid` for guests, as the guests' programs.
pub(crate) fn guest_examples() -> Result<Vec<GuestProgram>> {
    let mut command = static_build(Profile::VmTest);
    command.args(["-p", EXAMPLES_PACKAGE, "--examples"]);
    read_programs(&mut command, "example", EXAMPLES.iter().copied())
}

/// Builds the example of a package that writes its manual pages. For the guests' setup, which goes on
/// beside the unit tests: with another profile nobody waits for them.
pub(crate) fn manual(package: &str) -> Result<PathBuf> {
    let mut command = static_build(Profile::VmTest);
    command.args(["-p", package, "--example", "manual"]);
    let found = executables(&messages(&mut command)?);
    program_of(&found, "example", "manual")
        .with_context(|| format!("cargo built no manual of {package}"))
}

/// Runs a build and reads the programs of that kind that it has built.
fn read_programs(
    command: &mut Command,
    kind: &str,
    names: impl Iterator<Item = &'static str>,
) -> Result<Vec<GuestProgram>> {
    let found = executables(&messages(command)?);
    names
        .map(|name| {
            let path =
                program_of(&found, kind, name).with_context(|| format!("cargo built no {name}"))?;
            let contents = std::fs::read(&path)
                .with_context(|| format!("could not read {}", path.display()))?;
            Ok(GuestProgram { name, contents })
        })
        .collect()
}

/// A build of static programs that says what it has built.
fn static_build(profile: Profile) -> Command {
    let mut command = cargo(&[
        "build",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ]);
    command
        .args(["--profile", profile.name(), "--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", STATIC)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

/// Runs a build and returns cargo's messages.
fn messages(command: &mut Command) -> Result<String> {
    let output = lifetime::bind(command)
        .output()
        .context("could not run cargo")?;
    if !output.status.success() {
        bail!("cargo could not build what is to run");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Finds what was wanted in cargo's messages.
fn sort(messages: &str, wanted: Wanted) -> Result<Built> {
    let found = executables(messages);
    Ok(Built {
        agent: program(&found, "vm-agent").context("cargo built no vm-agent")?,
        vmgenie: program(&found, "vmgenie"),
        program: match wanted {
            Wanted::Program(name) => {
                Some(program(&found, name).with_context(|| format!("cargo built no {name}"))?)
            }
            _ => None,
        },
        tests: found
            .iter()
            .filter(|(kind, _)| kind == "test")
            .map(|(_, binary)| binary.clone())
            .collect(),
    })
}

/// The executable of the program `name`.
fn program(found: &[(String, TestBinary)], name: &str) -> Option<PathBuf> {
    program_of(found, "bin", name)
}

/// The executable of the program `name` of that kind of target.
fn program_of(found: &[(String, TestBinary)], wanted: &str, name: &str) -> Option<PathBuf> {
    found
        .iter()
        .find(|(kind, binary)| kind == wanted && binary.name == name)
        .map(|(_, binary)| PathBuf::from(&binary.path))
}

/// The kind of target and the executable of each message that has one. Of integration tests only those of [`TESTS_PACKAGE`]: others, which cargo
/// builds as well when it is asked for all, need no KVM, and tools that its host does not have.
fn executables(messages: &str) -> Vec<(String, TestBinary)> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| {
            let target = &message["target"];
            let kind = target["kind"][0].as_str()?;
            if kind == "test" && !message["package_id"].as_str()?.contains(TESTS_PACKAGE) {
                return None;
            }
            let binary = TestBinary {
                name: target["name"].as_str()?.to_owned(),
                path: message["executable"].as_str()?.to_owned(),
            };
            Some((kind.to_owned(), binary))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"x"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"vm-agent"},"executable":"/t/vm-agent"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"demo"},"executable":"/t/demo"}
{"reason":"compiler-artifact","package_id":"path+file:///w/tests#vmgenie-tests@0.1.0","target":{"kind":["test"],"name":"host"},"executable":"/t/host-1"}
{"reason":"compiler-artifact","package_id":"path+file:///w/vmm#vmgenie@0.1.0","target":{"kind":["test"],"name":"reader"},"executable":"/t/reader-1"}
{"reason":"build-finished","success":true}
not json"#;

    #[test]
    fn programs_and_tests_are_told_apart_in_cargo_s_messages() {
        let built = sort(MESSAGES, Wanted::Tests).unwrap();
        assert_eq!(built.agent, Path::new("/t/vm-agent"));
        assert_eq!(built.vmgenie, None);
        assert_eq!(built.tests.len(), 1);
        assert_eq!(built.tests[0].name, "host");
    }

    #[test]
    fn a_wanted_program_that_was_not_built_is_an_error() {
        assert!(sort(MESSAGES, Wanted::Program("demo")).is_ok());
        assert!(sort(MESSAGES, Wanted::Program("bench")).is_err());
        assert!(sort("", Wanted::Agent).is_err());
    }
}
