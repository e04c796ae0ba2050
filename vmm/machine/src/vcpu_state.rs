//! Saving and restoring one vCPU.

use kvm_bindings::{
    CpuId, KVM_MAX_MSR_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_msr_entry, kvm_sregs,
    kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use super::host::Host;
use super::state::VcpuState;

const KVMIO: u32 = 0xae;
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);

pub(super) const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_DEBUGCTL: u32 = 0x1d9;
/// AMD's oldest performance counters, `PERF_CTL0` to `PERF_CTR3`.
const MSR_K7_COUNTERS: std::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// `KVM_X86_REG_KVM(KVM_REG_GUEST_SSP)`: x86, 64 bits, type KVM (3), register 0.
const REG_GUEST_SSP: u64 = 0x2030_0003_0000_0000;
/// `CPUID.7.0:ECX`: shadow stacks.
const LEAF7_ECX_SHADOW_STACK: u32 = 1 << 7;
/// `CPUID.1:ECX`: there is `IA32_PERF_CAPABILITIES`.
const LEAF1_ECX_PDCM: u32 = 1 << 15;
/// The local APIC's timer register and its TSC-deadline mode, unmasked.
const APIC_LVTT: usize = 0x320;
const APIC_LVTT_MODE_AND_MASK: u32 = 0b111 << 16;
const APIC_LVTT_DEADLINE: u32 = 0b100 << 16;
/// A TSC frequency that differs by less than this fraction (1/4,000: 250 ppm) is the same one, measured twice.
const TSC_TOLERANCE: u32 = 4000;

/// Why a vCPU's state could not be saved or restored.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// KVM refused.
    #[error("KVM could not {verb} the {what}")]
    Kvm {
        /// Get or set.
        verb: &'static str,
        /// Which part of the state.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refuses an MSR.
    #[error(
        "this host's KVM refuses the value {value:#x} of MSR {index:#x}, which the snapshot has (its own value is {own})"
    )]
    Msr {
        /// The number of the MSR.
        index: u32,
        /// The value in the snapshot.
        value: u64,
        /// What the MSR has on this host.
        own: String,
    },
    /// Too many entries.
    #[error("the state has {0} {1}, which is more than KVM takes")]
    TooMany(usize, &'static str),
    /// The XSAVE area is larger than the host's.
    #[error("the snapshot's XSAVE area has {found} bytes; this host's CPU has one of {host} bytes")]
    Xsave {
        /// In the snapshot.
        found: usize,
        /// Of this host.
        host: usize,
    },
    /// The TSC runs at another speed.
    #[error(
        "the snapshot's TSC runs at {wanted} kHz, this host's at {host} kHz, and this CPU cannot scale it"
    )]
    TscFrequency {
        /// In the snapshot.
        wanted: u32,
        /// Of this host.
        host: u32,
    },
}

fn get(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm {
        verb: "get",
        what,
        source,
    }
}

fn set(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm {
        verb: "set",
        what,
        source,
    }
}

/// Saves a vCPU that stands still and has no access to a device under way.
///
/// `KVM_GET_MP_STATE` comes first, because it makes KVM take in pending INIT and SIPI, which change everything else; events come
/// last, because the other calls may change them.
pub(super) fn save(host: &Host, fd: &VcpuFd, cpuid: &CpuId) -> Result<VcpuState, VcpuStateError> {
    let mp_state = fd.get_mp_state().map_err(get("run state"))?;
    let regs = fd.get_regs().map_err(get("registers"))?;
    let (sregs, pdptrs) = get_sregs(host, fd)?;
    let xsave = get_xsave(host, fd)?;
    let xcrs = fd.get_xcrs().map_err(get("extended control registers"))?;
    let debug_regs = fd.get_debug_regs().map_err(get("debug registers"))?;
    let lapic = fd.get_lapic().map_err(get("local APIC"))?;
    let msrs = get_msrs(host, fd)?;
    let shadow_stack_pointer = get_shadow_stack_pointer(fd, cpuid.as_slice())?;
    let events = fd.get_vcpu_events().map_err(get("pending events"))?;
    Ok(VcpuState {
        cpuid: cpuid.as_slice().to_vec(),
        msrs,
        regs,
        sregs,
        pdptrs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        events,
        mp_state,
        // Not every KVM knows it, and it is compared only where both do.
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        shadow_stack_pointer,
    })
}

/// Restores a vCPU whose CPUID and TSC frequency have been set; with `has_tsc`, its TSC as well.
pub(super) fn restore(
    host: &Host,
    fd: &VcpuFd,
    state: &VcpuState,
    has_tsc: bool,
) -> Result<(), VcpuStateError> {
    set_sregs(host, fd, state)?;
    fd.set_regs(&state.regs).map_err(set("registers"))?;
    fd.set_xcrs(&state.xcrs)
        .map_err(set("extended control registers"))?;
    set_xsave(host, fd, &state.xsave)?;
    fd.set_debug_regs(&state.debug_regs)
        .map_err(set("debug registers"))?;
    // The timer's mode is in the local APIC; its deadline, an MSR, means something only afterwards.
    fd.set_lapic(&state.lapic).map_err(set("local APIC"))?;
    set_msrs(fd, &ordered_msrs(state, has_tsc))?;
    if let Some(pointer) = state.shadow_stack_pointer {
        fd.set_one_reg(REG_GUEST_SSP, &pointer.to_le_bytes())
            .map_err(set("shadow stack pointer"))?;
    }
    fd.set_vcpu_events(&state.events)
        .map_err(set("pending events"))?;
    fd.set_mp_state(state.mp_state).map_err(set("run state"))
}

fn get_sregs(host: &Host, fd: &VcpuFd) -> Result<(kvm_sregs, Option<[u64; 4]>), VcpuStateError> {
    let at = get("segments and control registers");
    if !host.sregs2 {
        return Ok((fd.get_sregs().map_err(at)?, None));
    }
    let mut all = kvm_sregs2::default();
    // SAFETY: the ioctl writes one kvm_sregs2.
    if unsafe { ioctl_with_mut_ref(fd, KVM_GET_SREGS2(), &mut all) } != 0 {
        return Err(at(kvm_ioctls::Error::last()));
    }
    let sregs = kvm_sregs {
        cs: all.cs,
        ds: all.ds,
        es: all.es,
        fs: all.fs,
        gs: all.gs,
        ss: all.ss,
        tr: all.tr,
        ldt: all.ldt,
        gdt: all.gdt,
        idt: all.idt,
        cr0: all.cr0,
        cr2: all.cr2,
        cr3: all.cr3,
        cr4: all.cr4,
        cr8: all.cr8,
        efer: all.efer,
        apic_base: all.apic_base,
        ..Default::default()
    };
    let valid = all.flags & u64::from(kvm_bindings::KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    Ok((sregs, valid.then_some(all.pdptrs)))
}

fn set_sregs(host: &Host, fd: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
    let at = set("segments and control registers");
    let s = &state.sregs;
    let Some(pdptrs) = state.pdptrs.filter(|_| host.sregs2) else {
        // Without PDPTEs KVM reads them from guest memory, which is there already.
        return fd.set_sregs(s).map_err(at);
    };
    let all = kvm_sregs2 {
        cs: s.cs,
        ds: s.ds,
        es: s.es,
        fs: s.fs,
        gs: s.gs,
        ss: s.ss,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        flags: u64::from(kvm_bindings::KVM_SREGS2_FLAGS_PDPTRS_VALID),
        pdptrs,
    };
    // SAFETY: the ioctl reads one kvm_sregs2.
    if unsafe { ioctl_with_ref(fd, KVM_SET_SREGS2(), &all) } != 0 {
        return Err(at(kvm_ioctls::Error::last()));
    }
    Ok(())
}

/// An XSAVE area as large as this host's.
fn host_xsave(host: &Host) -> Result<Xsave, VcpuStateError> {
    let extra = (host.xsave_len - size_of::<kvm_xsave>()).div_ceil(size_of::<u32>());
    Xsave::new(extra).map_err(|_| VcpuStateError::TooMany(extra, "words of XSAVE area"))
}

fn get_xsave(host: &Host, fd: &VcpuFd) -> Result<Vec<u8>, VcpuStateError> {
    let at = get("FPU state");
    if !host.xsave2 {
        let xsave = fd.get_xsave().map_err(at)?;
        return Ok(xsave
            .region
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect());
    }
    let mut xsave = host_xsave(host)?;
    // SAFETY: the area is as large as this KVM says, and nothing enlarges it later (no arch_prctl in this process).
    unsafe { fd.get_xsave2(&mut xsave) }.map_err(at)?;
    let base = xsave.as_fam_struct_ref().xsave.region;
    Ok(base
        .iter()
        .chain(xsave.as_slice())
        .flat_map(|word| word.to_le_bytes())
        .collect())
}

fn set_xsave(host: &Host, fd: &VcpuFd, bytes: &[u8]) -> Result<(), VcpuStateError> {
    let mut xsave = host_xsave(host)?;
    let mut base = [0u32; 1024];
    let room = size_of_val(&base) + size_of_val(xsave.as_slice());
    if bytes.len() > room || !bytes.len().is_multiple_of(4) {
        return Err(VcpuStateError::Xsave {
            found: bytes.len(),
            host: room,
        });
    }
    let words = bytes
        .as_chunks()
        .0
        .iter()
        .map(|chunk| u32::from_le_bytes(*chunk));
    for (slot, word) in base.iter_mut().chain(xsave.as_mut_slice()).zip(words) {
        *slot = word;
    }
    // SAFETY: only the fixed part is changed, not the length of the flexible one.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = base;
    // SAFETY: the area is as large as this KVM's.
    unsafe { fd.set_xsave2(&xsave) }.map_err(set("FPU state"))
}

/// Reads all MSRs that the KVM lists, but those that it then does not let be read.
fn get_msrs(host: &Host, fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut saved = Vec::with_capacity(host.msrs.len());
    let mut left = &host.msrs[..];
    while !left.is_empty() {
        let chunk = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let wanted: Vec<_> = chunk
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = from_entries(&wanted)?;
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(get("MSRs"))?
            .min(chunk.len());
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first one that it does not let be read.
        left = &left[(read + usize::from(read < chunk.len()))..];
    }
    Ok(saved)
}

/// Whether the guest knows of performance counters, or has used those that no bit of CPUID tells of.
pub(super) fn counts_events(state: &VcpuState) -> bool {
    let told = |e: &kvm_cpuid_entry2| e.function == 1 && e.ecx & LEAF1_ECX_PDCM != 0;
    let used = |msr: &kvm_msr_entry| msr.data != 0 && MSR_K7_COUNTERS.contains(&msr.index);
    state.cpuid.iter().any(told) || state.msrs.iter().any(used)
}

/// The snapshot's MSRs with the TSC before its deadline, and without those that the vCPU has: the TSC if `has_tsc`, and a `DEBUGCTL` of
/// nothing. A KVM may list that one and not implement it; it ignores the write, and complains of it in the host's log.
fn ordered_msrs(state: &VcpuState, has_tsc: bool) -> Vec<kvm_msr_entry> {
    let mut msrs: Vec<_> = state.msrs.clone();
    msrs.sort_by_key(|msr| msr.index == MSR_IA32_TSC_DEADLINE);
    let tsc = msrs
        .iter()
        .find(|msr| msr.index == MSR_IA32_TSC)
        .map_or(1, |msr| msr.data.max(1));
    if let Some(last) = msrs.last_mut()
        && last.index == MSR_IA32_TSC_DEADLINE
        && last.data == 0
        && deadline_mode(state)
    {
        // Disarmed, or expired with its interrupt still on the way: one tick too many is harmless, one too few is not.
        last.data = tsc;
    }
    msrs.retain(|msr| match msr.index {
        MSR_IA32_TSC => !has_tsc,
        MSR_IA32_DEBUGCTL => msr.data != 0,
        _ => true,
    });
    msrs
}

fn deadline_mode(state: &VcpuState) -> bool {
    let mut register = [0; 4];
    for (byte, raw) in register.iter_mut().zip(&state.lapic.regs[APIC_LVTT..]) {
        *byte = raw.cast_unsigned();
    }
    u32::from_le_bytes(register) & APIC_LVTT_MODE_AND_MASK == APIC_LVTT_DEADLINE
}

/// Sets all MSRs. One that KVM refuses is no harm when it has the wanted value already.
fn set_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), VcpuStateError> {
    let mut left = msrs;
    while !left.is_empty() {
        let chunk = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let done = fd
            .set_msrs(&from_entries(chunk)?)
            .map_err(set("MSRs"))?
            .min(chunk.len());
        left = &left[done..];
        if done < chunk.len()
            && let Some((refused, rest)) = left.split_first()
        {
            check_refused(fd, refused)?;
            left = rest;
        }
    }
    Ok(())
}

fn check_refused(fd: &VcpuFd, refused: &kvm_msr_entry) -> Result<(), VcpuStateError> {
    let mut own = from_entries(&[kvm_msr_entry {
        index: refused.index,
        ..Default::default()
    }])?;
    let read = fd.get_msrs(&mut own).map_err(get("MSRs"))?;
    let own = own
        .as_slice()
        .first()
        .filter(|_| read == 1)
        .map(|msr| msr.data);
    if own == Some(refused.data) {
        return Ok(());
    }
    Err(VcpuStateError::Msr {
        index: refused.index,
        value: refused.data,
        own: own.map_or_else(|| "unknown".to_owned(), |value| format!("{value:#x}")),
    })
}

fn from_entries(entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuStateError> {
    Msrs::from_entries(entries).map_err(|_| VcpuStateError::TooMany(entries.len(), "MSRs"))
}

fn get_shadow_stack_pointer(
    fd: &VcpuFd,
    cpuid: &[kvm_cpuid_entry2],
) -> Result<Option<u64>, VcpuStateError> {
    let has_shadow_stack = cpuid
        .iter()
        .any(|e| e.function == 7 && e.index == 0 && e.ecx & LEAF7_ECX_SHADOW_STACK != 0);
    if !has_shadow_stack {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    fd.get_one_reg(REG_GUEST_SSP, &mut bytes)
        .map_err(get("shadow stack pointer"))?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

/// Makes the TSC run at `wanted` kHz, where it does not already.
pub(super) fn set_tsc_khz(host: &Host, fd: &VcpuFd, wanted: u32) -> Result<(), VcpuStateError> {
    let own = fd.get_tsc_khz().unwrap_or(0);
    if wanted == 0 || own == 0 || own.abs_diff(wanted) <= own / TSC_TOLERANCE {
        return Ok(());
    }
    if !host.tsc_control {
        return Err(VcpuStateError::TscFrequency { wanted, host: own });
    }
    fd.set_tsc_khz(wanted).map_err(set("TSC frequency"))
}

#[cfg(test)]
#[path = "vcpu_state_test.rs"]
mod tests;
