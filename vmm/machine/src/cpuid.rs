//! CPUID: what the host offers, shaped into the topology of the guest: one socket, one thread a core, or two.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use thiserror::Error;

use crate::config::MachineConfig;

/// More entries than KVM takes.
#[derive(Debug, Error)]
#[error("the CPUID of the host has more entries than KVM takes")]
pub struct TooManyEntries;

/// `CPUID.1:ECX`: the local APIC has a TSC-deadline mode.
pub(super) const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
/// `CPUID.1:ECX`: there is a hypervisor.
pub(super) const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// `CPUID.1:EDX`: the number of logical processors in `EBX` is valid.
pub(super) const LEAF1_EDX_HTT: u32 = 1 << 28;
/// `CPUID.8000_0001:ECX`: a multi-core package without threads (AMD).
pub(super) const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
/// `CPUID.6:EAX`: the APIC timer runs in every power state.
const LEAF6_EAX_ARAT: u32 = 1 << 2;

/// A register of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// Its value in an entry.
    pub(super) fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// Features whose state is not part of a snapshot: no guest is told that it has them.
pub(super) struct Hidden {
    pub(super) leaf: u32,
    pub(super) index: u32,
    pub(super) register: Register,
    pub(super) bits: u32,
    /// Whether a snapshot of a guest that was told of them is refused. Earlier versions hid only some of the performance counters,
    /// and what they showed of AMX could not be used.
    pub(super) refused: bool,
}

const fn hidden(leaf: u32, index: u32, register: Register, bits: u32, refused: bool) -> Hidden {
    Hidden {
        leaf,
        index,
        register,
        bits,
        refused,
    }
}

/// What is hidden, bit by bit.
pub(super) const HIDDEN: [Hidden; 13] = [
    // Nested virtualization: a guest's guest would have to be saved as well.
    hidden(1, 0, Register::Ecx, 1 << 5, true),
    hidden(0x8000_0001, 0, Register::Ecx, 1 << 2, true),
    // SGX: enclaves lie in memory that nobody can read. With it its keys and its launch control.
    hidden(7, 0, Register::Ebx, 1 << 2, true),
    hidden(7, 0, Register::Ecx, 1 << 30, true),
    hidden(7, 0, Register::Edx, 1 << 1, true),
    // Processor trace writes to memory by itself.
    hidden(7, 0, Register::Ebx, 1 << 25, true),
    // Performance counters and what records with their help: DTES64, DS_CPL, PDCM; DS; architectural LBR; AMD's counters of all kinds
    // and IBS.
    hidden(1, 0, Register::Ecx, (1 << 2) | (1 << 4) | (1 << 15), false),
    hidden(1, 0, Register::Edx, 1 << 21, false),
    hidden(7, 0, Register::Edx, 1 << 19, false),
    hidden(
        0x8000_0001,
        0,
        Register::Ecx,
        (1 << 10) | (1 << 23) | (1 << 24) | (1 << 27) | (1 << 28),
        false,
    ),
    // Key Locker: its wrapping key can be written only.
    hidden(7, 0, Register::Ecx, 1 << 23, true),
    // AMX: BF16, TILE, INT8; FP16. Its registers are there only for a process that has asked for them, as we have not.
    hidden(
        7,
        0,
        Register::Edx,
        (1 << 22) | (1 << 24) | (1 << 25),
        false,
    ),
    hidden(7, 1, Register::Eax, 1 << 21, false),
];

/// Leaves that say more about features that are hidden: SGX, processor trace, LBR, AMX; performance counters; nested virtualization, IBS,
/// encrypted memory, AMD's performance counters.
const HIDDEN_LEAVES: [u32; 10] = [
    0xa,
    0x12,
    0x14,
    0x1c,
    0x1d,
    0x1e,
    0x8000_000a,
    0x8000_001b,
    0x8000_001f,
    0x8000_0022,
];

/// `CPUID.D.0:EAX`: the states of AMX.
const LEAF_D_EAX_AMX: u32 = (1 << 17) | (1 << 18);
/// `CPUID.D.1:ECX`: the states of processor trace and of LBR, which `XSAVES` would save.
const LEAF_D1_ECX_HIDDEN: u32 = (1 << 8) | (1 << 15);

/// How the vCPUs are arranged. The x2APIC id of a vCPU is its index; the lowest bit names the thread, where there are two.
#[derive(Clone, Copy)]
struct Topology {
    vcpus: u32,
    /// 1 or 2.
    threads: u32,
}

impl Topology {
    fn of(config: MachineConfig) -> Self {
        let vcpus = config.vcpus().into();
        Self {
            vcpus,
            // A single vCPU has no other to share its core with.
            threads: if config.smt() && vcpus > 1 { 2 } else { 1 },
        }
    }

    /// How many bits of the x2APIC id name a vCPU.
    fn id_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// How many of them name a thread.
    fn thread_bits(self) -> u32 {
        self.threads.trailing_zeros()
    }
}

/// The CPUID that vCPU `index` of a machine sees on a host that supports `supported`.
pub(super) fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    index: u8,
    config: MachineConfig,
    tsc_deadline: bool,
) -> Result<CpuId, TooManyEntries> {
    let topology = Topology::of(config);
    let mut entries: Vec<_> = supported
        .iter()
        .copied()
        .filter(|e| !is_replaced(e))
        .collect();
    for entry in &mut entries {
        hide(entry);
        shape(entry, index, topology, tsc_deadline);
    }
    entries.extend(extended_topology(index, topology));
    CpuId::from_entries(&entries).map_err(|_| TooManyEntries)
}

/// Leaves that describe the topology of the host, and states that are not there.
fn is_replaced(entry: &kvm_cpuid_entry2) -> bool {
    matches!(
        (entry.function, entry.index),
        (0xb | 0x1f | 0x8000_0026, _) | (0xd, 17 | 18)
    )
}

/// Takes away what is not part of a snapshot.
fn hide(entry: &mut kvm_cpuid_entry2) {
    if HIDDEN_LEAVES.contains(&entry.function) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
    for hidden in &HIDDEN {
        if (hidden.leaf, hidden.index) == (entry.function, entry.index) {
            *hidden.register.of_mut(entry) &= !hidden.bits;
        }
    }
    match (entry.function, entry.index) {
        (0xd, 0) => entry.eax &= !LEAF_D_EAX_AMX,
        (0xd, 1) => entry.ecx &= !LEAF_D1_ECX_HIDDEN,
        _ => {}
    }
}

fn shape(entry: &mut kvm_cpuid_entry2, index: u8, topology: Topology, tsc_deadline: bool) {
    let id = u32::from(index);
    let Topology { vcpus, threads } = topology;
    match entry.function {
        0 => entry.eax = entry.eax.max(0xb),
        1 => {
            let logical = vcpus.next_power_of_two();
            entry.ebx = (entry.ebx & 0xffff) | (logical << 16) | (id << 24);
            entry.ecx = (entry.ecx & !LEAF1_ECX_TSC_DEADLINE) | LEAF1_ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
            }
            set(&mut entry.edx, LEAF1_EDX_HTT, vcpus > 1);
        }
        // Intel: deterministic cache parameters. Type 0 ends the list.
        4 if entry.eax & 0x1f != 0 => {
            let ids = vcpus.next_power_of_two();
            let sharing = if cache_level(entry.eax) >= 3 {
                ids
            } else {
                threads
            };
            let cores = ids / threads;
            entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14) | ((cores - 1) << 26);
        }
        0x8000_0001 => set(&mut entry.ecx, EXT1_ECX_CMP_LEGACY, vcpus > 1),
        // Number of threads - 1, and how many bits of the APIC id name one in its package (AMD).
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff) | (vcpus - 1) | (topology.id_bits() << 12);
        }
        // AMD: cache properties.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if cache_level(entry.eax) >= 3 {
                vcpus
            } else {
                threads
            };
            entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14);
        }
        // AMD: extended APIC id; core id, and threads a core - 1; one node.
        0x8000_001e => {
            let core = (id >> topology.thread_bits()) | ((threads - 1) << 8);
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, core, 0, 0);
        }
        _ => {}
    }
}

fn cache_level(eax: u32) -> u32 {
    (eax >> 5) & 7
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

/// Leaf 0xb: level 0 threads, level 1 cores, level 2 none.
fn extended_topology(index: u8, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |n: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: n,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: n | (kind << 8),
        edx: u32::from(index),
        ..Default::default()
    };
    [
        level(0, 1, topology.thread_bits(), topology.threads),
        level(1, 2, topology.id_bits(), topology.vcpus),
        level(2, 0, 0, 0),
    ]
}

/// Can Linux do without a PIT? It can when the APIC timer has a TSC-deadline mode and never stops (see Linux's
/// `apic_needs_pit()`).
pub(super) fn runs_without_pit(supported: &[kvm_cpuid_entry2], tsc_deadline: bool) -> bool {
    tsc_deadline
        && supported
            .iter()
            .any(|entry| entry.function == 6 && entry.eax & LEAF6_EAX_ARAT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    fn machine(vcpus: u64) -> MachineConfig {
        MachineConfig::new(vcpus, 128).unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_all_leaves() {
        let supported = [leaf(0, 0), leaf(1, 0), leaf(0xb, 0), leaf(0x8000_001e, 0)];
        for index in 0..6 {
            let cpuid = for_vcpu(&supported, index, machine(6), true).unwrap();
            let id = u32::from(index);
            assert_eq!(find(&cpuid, 1, 0).ebx >> 24, id);
            assert_eq!(find(&cpuid, 0xb, 0).edx, id);
            assert_eq!(find(&cpuid, 0xb, 1).edx, id);
            assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn the_topology_is_one_socket_with_one_thread_a_core() {
        let supported = [leaf(0, 0), leaf(1, 0), leaf(0x8000_0008, 0)];
        let cpuid = for_vcpu(&supported, 0, machine(6), true).unwrap();
        let (threads, cores) = (find(&cpuid, 0xb, 0), find(&cpuid, 0xb, 1));
        assert_eq!((threads.eax, threads.ebx), (0, 1));
        assert_eq!((cores.eax, cores.ebx), (3, 6));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx & 0xff, 5);
        assert_eq!(
            cpuid
                .as_slice()
                .iter()
                .filter(|e| e.function == 0xb)
                .count(),
            3
        );
    }

    #[test]
    fn with_smt_two_vcpus_are_the_threads_of_each_core() {
        let mut caches = [
            leaf(4, 0),
            leaf(4, 3),
            leaf(0x8000_001d, 0),
            leaf(0x8000_001d, 3),
        ];
        for cache in &mut caches {
            // A data cache of the first level, or a unified one of the third.
            cache.eax = if cache.index == 0 { 0x21 } else { 0x63 };
        }
        let supported = [&[leaf(0, 0), leaf(1, 0), leaf(0x8000_001e, 0)][..], &caches].concat();
        let config = machine(6).with_smt(true).unwrap();
        let cpuid = for_vcpu(&supported, 5, config, true).unwrap();
        let (threads, cores) = (find(&cpuid, 0xb, 0), find(&cpuid, 0xb, 1));
        assert_eq!((threads.eax, threads.ebx, threads.edx), (1, 2, 5));
        assert_eq!((cores.eax, cores.ebx, cores.edx), (3, 6, 5));
        let amd = find(&cpuid, 0x8000_001e, 0);
        assert_eq!((amd.eax, amd.ebx), (5, 2 | 1 << 8));
        let shared_by = |leaf, index| ((find(&cpuid, leaf, index).eax >> 14) & 0xfff) + 1;
        assert_eq!((shared_by(4, 0), shared_by(4, 3)), (2, 8));
        assert_eq!(
            (shared_by(0x8000_001d, 0), shared_by(0x8000_001d, 3)),
            (2, 6)
        );
        assert_eq!(find(&cpuid, 4, 0).eax >> 26, 3);
        // One vCPU is not one of two threads.
        let alone = for_vcpu(&supported, 0, machine(1).with_smt(true).unwrap(), true).unwrap();
        assert_eq!(find(&alone, 0xb, 0).ebx, 1);
    }

    #[test]
    fn a_single_vcpu_is_not_multithreaded() {
        let mut one = leaf(1, 0);
        one.edx = LEAF1_EDX_HTT;
        let cpuid = for_vcpu(&[one], 0, machine(1), false).unwrap();
        assert_eq!(find(&cpuid, 1, 0).edx & LEAF1_EDX_HTT, 0);
        assert_eq!(find(&cpuid, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn features_whose_state_no_snapshot_holds_are_hidden() {
        let all = |function, index| kvm_cpuid_entry2 {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..leaf(function, index)
        };
        let mut supported = vec![all(1, 0), all(7, 0), all(7, 1), all(0x8000_0001, 0)];
        supported.extend((0..20).map(|index| all(0xd, index)));
        supported.extend(HIDDEN_LEAVES.map(|function| all(function, 0)));
        let cpuid = for_vcpu(&supported, 0, machine(1), true).unwrap();
        let (one, seven) = (find(&cpuid, 1, 0), find(&cpuid, 7, 0));
        assert_eq!(one.ecx & (1 << 5), 0, "VMX");
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & (1 << 2), 0, "SVM");
        assert_eq!(seven.ebx & ((1 << 2) | (1 << 25)), 0, "SGX, PT");
        assert_eq!(seven.edx & ((1 << 19) | (1 << 24)), 0, "LBR, AMX");
        assert_eq!(find(&cpuid, 0xd, 0).eax >> 17 & 3, 0, "AMX");
        assert!(
            !cpuid
                .as_slice()
                .iter()
                .any(|e| (e.function, e.index) == (0xd, 18))
        );
        for function in HIDDEN_LEAVES {
            let entry = find(&cpuid, function, 0);
            assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0));
        }
        // The rest stays.
        assert_ne!(one.ecx & (1 << 25), 0, "AES");
        assert_ne!(seven.ebx & (1 << 5), 0, "AVX2");
        assert_ne!(
            seven.ecx & (1 << 7),
            0,
            "shadow stacks have their state saved"
        );
    }

    #[test]
    fn a_pit_is_needed_without_a_deadline_timer_that_always_runs() {
        let mut six = leaf(6, 0);
        assert!(!runs_without_pit(&[six], true));
        six.eax = LEAF6_EAX_ARAT;
        assert!(runs_without_pit(&[six], true));
        assert!(!runs_without_pit(&[six], false));
    }
}
