//! Does a snapshot fit this host's CPU and KVM? Checked before anything is built, and told by the name of the feature.

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;

use super::cpuid;
use super::host::Host;
use super::state::VcpuState;

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

#[derive(Debug, Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
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

/// Names of features, as `/proc/cpuinfo` has them: leaf, index, register's letter, bit.
const NAMES: [(u32, u32, char, u32, &str); 46] = [
    (1, 0, 'c', 0, "sse3"),
    (1, 0, 'c', 1, "pclmulqdq"),
    (1, 0, 'c', 9, "ssse3"),
    (1, 0, 'c', 12, "fma"),
    (1, 0, 'c', 13, "cx16"),
    (1, 0, 'c', 17, "pcid"),
    (1, 0, 'c', 19, "sse4_1"),
    (1, 0, 'c', 20, "sse4_2"),
    (1, 0, 'c', 21, "x2apic"),
    (1, 0, 'c', 22, "movbe"),
    (1, 0, 'c', 23, "popcnt"),
    (1, 0, 'c', 25, "aes"),
    (1, 0, 'c', 26, "xsave"),
    (1, 0, 'c', 28, "avx"),
    (1, 0, 'c', 29, "f16c"),
    (1, 0, 'c', 30, "rdrand"),
    (7, 0, 'b', 0, "fsgsbase"),
    (7, 0, 'b', 1, "tsc_adjust"),
    (7, 0, 'b', 3, "bmi1"),
    (7, 0, 'b', 4, "hle"),
    (7, 0, 'b', 5, "avx2"),
    (7, 0, 'b', 7, "smep"),
    (7, 0, 'b', 8, "bmi2"),
    (7, 0, 'b', 9, "erms"),
    (7, 0, 'b', 10, "invpcid"),
    (7, 0, 'b', 11, "rtm"),
    (7, 0, 'b', 16, "avx512f"),
    (7, 0, 'b', 17, "avx512dq"),
    (7, 0, 'b', 18, "rdseed"),
    (7, 0, 'b', 19, "adx"),
    (7, 0, 'b', 20, "smap"),
    (7, 0, 'b', 23, "clflushopt"),
    (7, 0, 'b', 28, "avx512cd"),
    (7, 0, 'b', 29, "sha_ni"),
    (7, 0, 'b', 30, "avx512bw"),
    (7, 0, 'b', 31, "avx512vl"),
    (7, 0, 'c', 2, "umip"),
    (7, 0, 'c', 3, "pku"),
    (7, 0, 'c', 7, "shstk"),
    (7, 0, 'c', 22, "rdpid"),
    (7, 0, 'd', 4, "fsrm"),
    (7, 0, 'd', 26, "spec_ctrl"),
    (7, 0, 'd', 29, "arch_capabilities"),
    (0x8000_0001, 0, 'd', 20, "nx"),
    (0x8000_0001, 0, 'd', 26, "pdpe1gb"),
    (0x8000_0001, 0, 'd', 27, "rdtscp"),
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
        missing.extend(
            (0..32)
                .filter(|bit| lacking & (1 << bit) != 0)
                .map(|bit| name(word, bit)),
        );
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

fn name(word: &FeatureWord, bit: u32) -> String {
    let (letter, register) = match word.register {
        Register::Eax => ('a', "EAX"),
        Register::Ebx => ('b', "EBX"),
        Register::Ecx => ('c', "ECX"),
        Register::Edx => ('d', "EDX"),
    };
    let FeatureWord { leaf, index, .. } = word;
    let known = NAMES
        .iter()
        .find(|(l, i, r, b, _)| (l, i, *r, *b) == (leaf, index, letter, bit))
        .map(|(.., name)| format!("{name} "));
    format!(
        "{}(CPUID {leaf:#x}.{index} {register} bit {bit})",
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
        let cpu = cpu(b"GenuineIntel", 0xffff_ffff);
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
            cpu(b"GenuineIntel", (1 << 5) | (1 << 6)),
        );
        let error = check_cpuid(&host, true, &snapshot).unwrap_err().to_string();
        assert!(error.contains("avx2 (CPUID 0x7.0 EBX bit 5)"), "{error}");
        assert!(error.contains("(CPUID 0x7.0 EBX bit 6)"), "{error}");
    }
}
