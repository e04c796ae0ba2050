//! Does a snapshot fit this host's CPU and KVM? Checked before anything is built, and told by the name of the feature.

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;

use crate::cpuid::{self, HIDDEN, Register};
use crate::cpuid_names;
use crate::host::Host;
use crate::state::VcpuState;

/// Why a snapshot cannot be restored on this host.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HostFitError {
    /// Another maker's CPU.
    #[error(
        "the snapshot was made on a CPU of {snapshot}, this host's is of {host}: a snapshot does not cross makers"
    )]
    Vendor {
        /// In the snapshot.
        snapshot: String,
        /// Of this host.
        host: String,
    },
    /// CPU features are missing.
    #[error("this host's CPU or KVM lacks what the snapshot's guest was told it has: {}", .0.join(", "))]
    Features(Vec<String>),
    /// The guest was told of features whose state no snapshot holds.
    #[error(
        "the snapshot's guest was told that it has features whose state no snapshot holds, and may use them: {}; boot it anew with this vmgenie",
        .0.join(", ")
    )]
    Unsaved(Vec<String>),
    /// More MSRs than there are.
    #[error("the snapshot holds {0} MSRs, which is more than this host's KVM knows")]
    TooManyMsrs(usize),
    /// Addresses are wider.
    #[error(
        "the snapshot's guest was told of {snapshot} bits of physical address, this host's CPU has {host}"
    )]
    AddressBits {
        /// In the snapshot.
        snapshot: u32,
        /// Of this host.
        host: u32,
    },
    /// An MSR is unknown.
    #[error("this host's KVM does not know MSR {0:#x}, which the snapshot holds")]
    Msr(u32),
}

/// A register of one CPUID leaf whose bits are features.
struct FeatureWord {
    leaf: u32,
    index: u32,
    register: Register,
    /// Bits that we set ourselves or that follow the guest's own registers.
    ignore: u32,
}

const fn word(leaf: u32, index: u32, register: Register, ignore: u32) -> FeatureWord {
    FeatureWord {
        leaf,
        index,
        register,
        ignore,
    }
}

/// `CPUID.1:ECX`: follows `CR4.OSXSAVE`.
const OSXSAVE: u32 = 1 << 27;
/// `CPUID.7.0:ECX`: follows `CR4.PKE`.
const OSPKE: u32 = 1 << 4;

/// The words in which a guest may have found a feature that it now relies on.
const WORDS: [FeatureWord; 16] = [
    word(
        1,
        0,
        Register::Ecx,
        cpuid::LEAF1_ECX_HYPERVISOR | cpuid::LEAF1_ECX_TSC_DEADLINE | OSXSAVE,
    ),
    word(1, 0, Register::Edx, cpuid::LEAF1_EDX_HTT),
    word(7, 0, Register::Ebx, 0),
    word(7, 0, Register::Ecx, OSPKE),
    word(7, 0, Register::Edx, 0),
    word(7, 1, Register::Eax, 0),
    word(7, 1, Register::Edx, 0),
    word(0xd, 0, Register::Eax, 0),
    word(0xd, 0, Register::Edx, 0),
    word(0xd, 1, Register::Eax, 0),
    word(0x4000_0001, 0, Register::Eax, 0),
    word(0x8000_0001, 0, Register::Ecx, cpuid::EXT1_ECX_CMP_LEGACY),
    word(0x8000_0001, 0, Register::Edx, 0),
    word(0x8000_0007, 0, Register::Edx, 0),
    word(0x8000_0008, 0, Register::Ebx, 0),
    word(0x8000_0021, 0, Register::Eax, 0),
];

/// Checks one vCPU's state against the host.
pub(super) fn check(host: &Host, state: &VcpuState) -> Result<(), HostFitError> {
    check_cpuid(&host.cpuid, host.tsc_deadline, &state.cpuid)?;
    if state.msrs.len() > host.msrs.len() {
        return Err(HostFitError::TooManyMsrs(state.msrs.len()));
    }
    match state
        .msrs
        .iter()
        .find(|msr| !host.msrs.contains(&msr.index))
    {
        Some(unknown) => Err(HostFitError::Msr(unknown.index)),
        None => Ok(()),
    }
}

fn check_cpuid(
    host: &[kvm_cpuid_entry2],
    tsc_deadline: bool,
    snapshot: &[kvm_cpuid_entry2],
) -> Result<(), HostFitError> {
    let (theirs, ours) = (vendor(snapshot), vendor(host));
    if theirs != ours {
        return Err(HostFitError::Vendor {
            snapshot: theirs,
            host: ours,
        });
    }
    let unsaved = unsaved(snapshot);
    if !unsaved.is_empty() {
        return Err(HostFitError::Unsaved(unsaved));
    }
    let bits = word(0x8000_0008, 0, Register::Eax, 0);
    let (theirs, ours) = (value(snapshot, &bits) & 0xff, value(host, &bits) & 0xff);
    if theirs > ours {
        return Err(HostFitError::AddressBits {
            snapshot: theirs,
            host: ours,
        });
    }
    let mut missing = Vec::new();
    for word in &WORDS {
        let lacking = value(snapshot, word) & !value(host, word) & !word.ignore;
        missing.extend(names(word, lacking));
    }
    let leaf1 = word(1, 0, Register::Ecx, 0);
    if value(snapshot, &leaf1) & cpuid::LEAF1_ECX_TSC_DEADLINE != 0 && !tsc_deadline {
        missing.push("tsc_deadline_timer".to_owned());
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(HostFitError::Features(missing))
    }
}

/// Features that a guest was told of although their state is not part of a snapshot.
fn unsaved(snapshot: &[kvm_cpuid_entry2]) -> Vec<String> {
    let refused = HIDDEN.iter().filter(|hidden| hidden.refused);
    refused
        .flat_map(|hidden| {
            let word = word(hidden.leaf, hidden.index, hidden.register, 0);
            let told = value(snapshot, &word) & hidden.bits;
            names(&word, told).collect::<Vec<_>>()
        })
        .collect()
}

fn find(cpuid: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    cpuid
        .iter()
        .find(|entry| entry.function == leaf && entry.index == index)
}

fn value(cpuid: &[kvm_cpuid_entry2], word: &FeatureWord) -> u32 {
    find(cpuid, word.leaf, word.index).map_or(0, |entry| word.register.of(entry))
}

fn vendor(cpuid: &[kvm_cpuid_entry2]) -> String {
    let Some(entry) = find(cpuid, 0, 0) else {
        return "an unknown maker".to_owned();
    };
    let bytes: Vec<u8> = [entry.ebx, entry.edx, entry.ecx]
        .iter()
        .flat_map(|r| r.to_le_bytes())
        .collect();
    bytes.escape_ascii().to_string()
}

fn names(word: &FeatureWord, bits: u32) -> impl Iterator<Item = String> {
    (0..32)
        .filter(move |bit| bits & (1 << bit) != 0)
        .map(|bit| name(word, bit))
}

fn name(word: &FeatureWord, bit: u32) -> String {
    let FeatureWord {
        leaf,
        index,
        register,
        ..
    } = *word;
    let known = cpuid_names::name(leaf, index, register, bit).map(|name| format!("{name} "));
    let letter = match register {
        Register::Eax => "EAX",
        Register::Ebx => "EBX",
        Register::Ecx => "ECX",
        Register::Edx => "EDX",
    };
    format!(
        "{}(CPUID {leaf:#x}.{index} {letter} bit {bit})",
        known.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vendor: &[u8; 12], leaf7_ebx: u32) -> Vec<kvm_cpuid_entry2> {
        let register = |n: usize| u32::from_le_bytes(vendor[n..n + 4].try_into().unwrap());
        vec![
            kvm_cpuid_entry2 {
                ebx: register(0),
                edx: register(4),
                ecx: register(8),
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: 7,
                ebx: leaf7_ebx,
                ..Default::default()
            },
        ]
    }

    #[test]
    fn a_snapshot_fits_the_host_that_made_it() {
        let cpu = cpu(b"GenuineIntel", !((1 << 2) | (1 << 25)));
        assert_eq!(check_cpuid(&cpu, true, &cpu), Ok(()));
    }

    #[test]
    fn a_host_with_more_features_fits() {
        let (host, snapshot) = (cpu(b"AuthenticAMD", 0x21), cpu(b"AuthenticAMD", 0x20));
        assert_eq!(check_cpuid(&host, true, &snapshot), Ok(()));
    }

    #[test]
    fn another_vendor_is_named() {
        let (host, snapshot) = (cpu(b"AuthenticAMD", 0), cpu(b"GenuineIntel", 0));
        let error = check_cpuid(&host, true, &snapshot).unwrap_err().to_string();
        assert!(
            error.contains("GenuineIntel") && error.contains("AuthenticAMD"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_feature_is_named() {
        let (host, snapshot) = (
            cpu(b"GenuineIntel", 0),
            cpu(b"GenuineIntel", (1 << 5) | (1 << 22)),
        );
        let error = check_cpuid(&host, true, &snapshot).unwrap_err().to_string();
        assert!(error.contains("avx2 (CPUID 0x7.0 EBX bit 5)"), "{error}");
        assert!(error.contains("(CPUID 0x7.0 EBX bit 22)"), "{error}");
    }

    #[test]
    fn a_snapshot_of_a_guest_with_nested_virtualization_is_refused_by_its_name() {
        let mut snapshot = cpu(b"AuthenticAMD", 0);
        snapshot.push(kvm_cpuid_entry2 {
            function: 0x8000_0001,
            ecx: 1 << 2,
            ..Default::default()
        });
        let error = check_cpuid(&snapshot, true, &snapshot).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("svm (CPUID 0x80000001.0 ECX bit 2)"),
            "{error}"
        );

        let mut snapshot = cpu(b"GenuineIntel", 1 << 2);
        snapshot.push(kvm_cpuid_entry2 {
            function: 1,
            ecx: 1 << 5,
            ..Default::default()
        });
        let error = check_cpuid(&snapshot, true, &snapshot)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("vmx (CPUID") && error.contains("sgx (CPUID"),
            "{error}"
        );
    }
}
