//! Whether this machine's own KVM can run Linux guests.

use std::fs::{self, File};

use anyhow::{Context, Result, bail};

/// The variable that overrides the detection: `native` or `emulated`.
const VARIABLE: &str = "VMGENIE_KVM";

/// Which KVM guests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// The machine's own.
    Native,
    /// That of a host that QEMU emulates.
    Emulated,
}

/// Decides, and says why where the answer is the emulated host.
pub(crate) fn detect() -> Result<Kvm> {
    let wish = std::env::var(VARIABLE).ok();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("could not read /proc/cpuinfo")?;
    let (kvm, reason) = decide(wish.as_deref(), &cpuinfo, kvm_opens())?;
    if let Some(reason) = reason {
        eprintln!("{reason}: using the emulated KVM host");
    }
    Ok(kvm)
}

/// Whether `/dev/kvm` is there and may be used.
pub(crate) fn kvm_opens() -> bool {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// A `/dev/kvm` alone proves nothing: there are KVMs in software that cannot boot Linux.
fn decide(
    wish: Option<&str>,
    cpuinfo: &str,
    kvm_opens: bool,
) -> Result<(Kvm, Option<&'static str>)> {
    Ok(match wish {
        Some("native") => (Kvm::Native, None),
        Some("emulated") => (Kvm::Emulated, Some("VMGENIE_KVM=emulated")),
        Some(other) => bail!("{VARIABLE} is {other:?}; it may be native or emulated"),
        None if !has_virtualization(cpuinfo) => (Kvm::Emulated, Some("no svm/vmx on this CPU")),
        None if !kvm_opens => (Kvm::Emulated, Some("/dev/kvm does not open")),
        None => (Kvm::Native, None),
    })
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
        .any(|flag| flag == "svm" || flag == "vmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH: &str = "model name\t: X\nflags\t\t: fpu svm sse\n";
    const WITHOUT: &str = "model name\t: vmx svm\nflags\t\t: fpu sse vmx_not\nvmx flags\t: svm\n";

    fn kvm(wish: Option<&str>, cpuinfo: &str, opens: bool) -> Kvm {
        decide(wish, cpuinfo, opens).unwrap().0
    }

    #[test]
    fn a_kvm_counts_only_with_virtualization_behind_it() {
        assert_eq!(kvm(None, WITH, true), Kvm::Native);
        assert_eq!(kvm(None, WITH, false), Kvm::Emulated);
        assert_eq!(kvm(None, WITHOUT, true), Kvm::Emulated);
    }

    #[test]
    fn a_wish_decides_and_an_unknown_one_is_refused() {
        assert_eq!(kvm(Some("native"), WITHOUT, false), Kvm::Native);
        assert_eq!(kvm(Some("emulated"), WITH, true), Kvm::Emulated);
        assert!(decide(Some("fast"), WITH, true).is_err());
    }

    #[test]
    fn the_reason_is_given_in_one_line() {
        let (_, reason) = decide(None, WITHOUT, true).unwrap();
        assert_eq!(reason, Some("no svm/vmx on this CPU"));
    }
}
