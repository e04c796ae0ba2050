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
/// AMD: extended performance counters.
const EXT1_ECX_PERFCTR: u32 = (1 << 23) | (1 << 24) | (1 << 28);

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
        shape(entry, index, topology, tsc_deadline);
    }
    entries.extend(extended_topology(index, topology));
    CpuId::from_entries(&entries).map_err(|_| TooManyEntries)
}

/// Leaves that describe the topology of the host.
fn is_replaced(entry: &kvm_cpuid_entry2) -> bool {
    matches!(entry.function, 0xb | 0x1f | 0x8000_0026)
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
        // No performance counters: their state is not part of a snapshot.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !EXT1_ECX_PERFCTR;
            set(&mut entry.ecx, EXT1_ECX_CMP_LEGACY, vcpus > 1);
        }
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
        0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
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
    fn a_pit_is_needed_without_a_deadline_timer_that_always_runs() {
        let mut six = leaf(6, 0);
        assert!(!runs_without_pit(&[six], true));
        six.eax = LEAF6_EAX_ARAT;
        assert!(runs_without_pit(&[six], true));
        assert!(!runs_without_pit(&[six], false));
    }
}
