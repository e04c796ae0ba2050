//! Running a job in the KVM host, be it this machine or an emulated one.

mod claims;
mod native;
mod overlay;
mod qemu;
mod terminal;

pub(crate) use claims::{Claims, Lane};
pub(crate) use terminal::size as terminal_size;

use std::path::PathBuf;

use anyhow::Result;
use vm_agent::{Cut, Report, Work};

use crate::detect::Kvm;
use crate::setup::Resources;

/// A job for the host and all that must be there for it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The work; paths in it are those of this machine.
    pub(crate) work: Work,
    /// Files to have in the host.
    pub(crate) files: Vec<SharedFile>,
    /// The static `vm-agent` binary.
    pub(crate) agent: PathBuf,
    /// The static `vmgenie` binary, if it was built.
    pub(crate) vmgenie: Option<PathBuf>,
    /// A job that takes longer than so many seconds is ended and has failed.
    pub(crate) timeout_secs: Option<u64>,
    /// What tests other emulated hosts have, if any run those of the same plan.
    pub(crate) lane: Option<Lane>,
}

/// A file of this machine and its place in the emulated host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedFile {
    /// The file here.
    pub(crate) from: PathBuf,
    /// Its absolute path there.
    pub(crate) to: String,
}

/// The emulated host crashed, ended in another way that none of its programs asked for, or hung.
#[derive(Debug)]
pub(crate) struct HostDied {
    /// What it had reported before.
    pub(crate) cut: Cut,
    /// It was there, but told nothing for so long that it was ended.
    hung: bool,
    console: String,
}

#[cfg(test)]
impl HostDied {
    /// A death for tests.
    pub(crate) fn after(cut: Cut) -> Self {
        Self {
            cut,
            hung: false,
            console: String::new(),
        }
    }
}

impl std::fmt::Display for HostDied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.hung {
            true => "hung and was ended",
            false => "ended without a report",
        };
        write!(f, "the emulated host {what}{}", self.console)
    }
}

impl std::error::Error for HostDied {}

/// Runs the job and returns its report. Its output goes to our own as it comes.
pub(crate) fn run(kvm: Kvm, resources: &Resources, request: &Request) -> Result<Report> {
    match kvm {
        Kvm::Native => native::run(resources, request),
        Kvm::Emulated => qemu::run(resources, request),
    }
}

/// The variables that a job finds in its environment.
fn environment(
    guests: &str,
    qemu: &str,
    vmgenie: Option<&str>,
    image: Option<&str>,
    runtimes: Option<&str>,
    kvm: &str,
) -> Vec<(String, String)> {
    let mut variables = vec![
        ("VMGENIE_GUEST_DIR".to_owned(), guests.to_owned()),
        ("VMGENIE_QEMU".to_owned(), qemu.to_owned()),
        ("VMGENIE_KVM".to_owned(), kvm.to_owned()),
    ];
    if let Some(path) = vmgenie {
        variables.push(("VMGENIE_BIN".to_owned(), path.to_owned()));
    }
    if let Some(path) = image {
        variables.push(("VMGENIE_IMAGE".to_owned(), path.to_owned()));
    }
    if let Some(path) = runtimes {
        variables.push(("VMGENIE_RUNTIMES".to_owned(), path.to_owned()));
    }
    variables
}
