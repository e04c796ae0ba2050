//! vCPUs of this host's KVM, whose guests never run.

use vmgenie_snapshot::not_looked_at::not_looked_at;

use super::*;
use crate::platform;
use crate::vcpu::Vcpu;

const K7_EVNTSEL0: u32 = 0xc001_0000;
/// Counts instructions in user and kernel mode.
const EVENTS: u64 = 0x4300c0;

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn vcpu(host: &Host, counters: bool) -> (kvm_ioctls::VmFd, Vcpu) {
    let vm = host.empty_vm().unwrap();
    if counters {
        platform::have_counters(&vm, true);
    }
    platform::create(&vm, false).unwrap();
    let cpuid = CpuId::from_entries(&host.cpuid).unwrap();
    let vcpu = Vcpu::new(&vm, 0, cpuid).unwrap();
    (vm, vcpu)
}

/// Writes an MSR; what it has then, or none if KVM refuses.
fn written(vcpu: &Vcpu, index: u32, data: u64) -> Option<u64> {
    let mut msrs = from_entries(&[entry(index, data)]).unwrap();
    if vcpu.fd.set_msrs(&msrs).unwrap() != 1 || vcpu.fd.get_msrs(&mut msrs).unwrap() != 1 {
        return None;
    }
    Some(msrs.as_slice()[0].data)
}

#[test]
fn a_debugctl_of_nothing_is_not_written_and_any_other_is() {
    let host = Host::open().unwrap();
    let (_vm, vcpu) = vcpu(&host, false);
    let mut state = save(&host, &vcpu.fd, &vcpu.cpuid).unwrap();
    for (value, is_written) in [(0, false), (1, true)] {
        state.msrs = vec![entry(MSR_IA32_DEBUGCTL, value), entry(MSR_IA32_TSC, 5)];
        let written = ordered_msrs(&state, false);
        assert_eq!(
            written.iter().any(|msr| msr.index == MSR_IA32_DEBUGCTL),
            is_written
        );
        assert!(written.iter().any(|msr| msr.index == MSR_IA32_TSC));
    }
    // A vCPU that was just made has nothing in it, so that nothing is lost.
    if host.msrs.contains(&MSR_IA32_DEBUGCTL) {
        let own = get_msrs(&host, &vcpu.fd).unwrap();
        let own = own.iter().find(|msr| msr.index == MSR_IA32_DEBUGCTL);
        assert_eq!(own.map_or(0, |msr| msr.data), 0);
    } else {
        not_looked_at("this KVM does not list DEBUGCTL");
    }
}

/// AMD's oldest counters have no bit of CPUID that could be taken away.
#[test]
fn a_vcpu_has_no_counters_that_no_snapshot_holds() {
    let host = Host::open().unwrap();
    let (_vm, with) = vcpu(&host, true);
    if written(&with, K7_EVNTSEL0, EVENTS) != Some(EVENTS) {
        not_looked_at("this KVM has no such counters to give");
    }
    let (_vm, without) = vcpu(&host, false);
    let left = written(&without, K7_EVNTSEL0, EVENTS);
    assert!(matches!(left, None | Some(0)), "{left:x?}");
}
