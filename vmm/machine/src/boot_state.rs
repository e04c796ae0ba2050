//! The state in which the vCPUs of a machine that boots first enter the guest.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use super::layout;
use crate::boot::Entry;

/// Why the first state could not be set.
#[derive(Debug, Error)]
pub enum BootStateError {
    /// KVM refused.
    #[error("KVM refused the {0} in which a vCPU starts")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM refused an MSR.
    #[error("KVM refused MSR {0:#x}, in which a vCPU starts")]
    Msr(u32),
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, write-back everywhere: what firmware leaves behind on a machine without holes.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// Local vector table: LINT0 and LINT1.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4;
const APIC_MODE_EXTINT: u32 = 7;

/// Sets the state that all vCPUs start with: MTRRs, and the virtual wire of the local interrupts.
pub(super) fn set_common(vcpu: &VcpuFd) -> Result<(), BootStateError> {
    let entry = kvm_msr_entry {
        index: MSR_MTRR_DEF_TYPE,
        data: MTRR_WRITE_BACK,
        ..Default::default()
    };
    // One entry is far below the limit, so from_entries cannot fail; the error is passed on all the same.
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| BootStateError::Msr(MSR_MTRR_DEF_TYPE))?;
    if vcpu
        .set_msrs(&msrs)
        .map_err(|e| BootStateError::Kvm("MSRs", e))?
        != 1
    {
        return Err(BootStateError::Msr(MSR_MTRR_DEF_TYPE));
    }
    let mut lapic = vcpu
        .get_lapic()
        .map_err(|e| BootStateError::Kvm("local APIC", e))?;
    for (register, mode) in [(APIC_LVT0, APIC_MODE_EXTINT), (APIC_LVT1, APIC_MODE_NMI)] {
        let value = mode << 8;
        for (byte, new) in lapic.regs[register..register + 4]
            .iter_mut()
            .zip(value.to_le_bytes())
        {
            // KVM's registers are plain C chars.
            *byte = new.cast_signed();
        }
    }
    vcpu.set_lapic(&lapic)
        .map_err(|e| BootStateError::Kvm("local APIC", e))
}

/// Sets the registers with which the first vCPU enters the kernel.
pub(super) fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), BootStateError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| BootStateError::Kvm("segments", e))?;
    let (long_mode, code_selector) = match entry {
        Entry::Pvh { .. } => (false, 0x8),
        Entry::Linux64 { .. } => (true, 0x10),
    };
    sregs.cs = code_segment(code_selector, long_mode);
    let data = data_segment(code_selector + 8);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_segment(code_selector + 16);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if long_mode {
        sregs.gdt.base = layout::GDT.0;
        sregs.gdt.limit = (size_of_val(&crate::boot::GDT) - 1) as u16;
        sregs.idt.base = layout::IDT.0;
        sregs.idt.limit = 7;
        sregs.cr3 = layout::PML4.0;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)
        .map_err(|e| BootStateError::Kvm("segments", e))?;
    let regs = match entry {
        // rflags: bit 1 is always set.
        Entry::Pvh { rip } => kvm_regs {
            rip,
            rbx: layout::PVH_INFO.0,
            rflags: 2,
            ..Default::default()
        },
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rsi: layout::ZERO_PAGE.0,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rflags: 2,
            ..Default::default()
        },
    };
    vcpu.set_regs(&regs)
        .map_err(|e| BootStateError::Kvm("registers", e))
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        ..Default::default()
    }
}

fn code_segment(selector: u16, long_mode: bool) -> kvm_segment {
    // Execute, read, accessed.
    let mut code = kvm_segment {
        s: 1,
        g: 1,
        ..segment(selector, 0xb)
    };
    (code.l, code.db) = if long_mode { (1, 0) } else { (0, 1) };
    code
}

fn data_segment(selector: u16) -> kvm_segment {
    // Read, write, accessed.
    kvm_segment {
        s: 1,
        g: 1,
        db: 1,
        ..segment(selector, 0x3)
    }
}

fn task_segment(selector: u16) -> kvm_segment {
    // Busy 32/64-bit TSS, as VM entry wants it.
    kvm_segment {
        limit: 0x67,
        ..segment(selector, 0xb)
    }
}
