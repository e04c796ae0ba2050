//! The floor of a restore: the bare ioctls, without a process, files, checks, devices, threads or an API around them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, ptr};

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, Msrs, Xsave, kvm_clock_data, kvm_msr_entry, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmgenie_machine::layout;
use vmgenie_machine::state::{MachineState, PlatformState, VcpuState};
use vmgenie_snapshot::StateReader;

use crate::monitor::Files;

/// A snapshot of ours, decoded and in the form that the ioctls take.
#[derive(Debug)]
pub(crate) struct Floor {
    kvm: Kvm,
    memory: File,
    memory_bytes: u64,
    platform: PlatformState,
    vcpus: Vec<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    state: VcpuState,
    cpuid: CpuId,
    msrs: Msrs,
    xsave: Xsave,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FloorTimes {
    /// `KVM_CREATE_VM` and all that follows.
    pub(crate) whole: Duration,
    /// What follows: what remains when the VM was made ahead of time.
    pub(crate) without_create_vm: Duration,
}

impl Floor {
    /// Reads a snapshot. MSRs that this KVM refuses to set are left out.
    pub(crate) fn of(files: &Files) -> Result<Self> {
        let kvm = Kvm::new().context("could not open /dev/kvm")?;
        let mut reader = open_state(&files.state)?;
        let machine: MachineState = reader.take()?;
        let states: Vec<VcpuState> = reader.take_all()?;
        let platform: PlatformState = reader.take()?;
        let memory = File::open(&files.memory).context("could not open the memory file")?;
        let vcpus = states
            .into_iter()
            .map(|state| Prepared::new(&kvm, state))
            .collect::<Result<_>>()?;
        let mut floor = Self {
            kvm,
            memory,
            memory_bytes: machine.memory_mib << 20,
            platform,
            vcpus,
        };
        floor.leave_out_refused_msrs()?;
        Ok(floor)
    }

    /// Restores once, with fresh descriptors, and takes it down again, which is not timed.
    pub(crate) fn measure(&self) -> Result<FloorTimes> {
        let begun = Instant::now();
        let vm = self.kvm.create_vm().context("KVM_CREATE_VM")?;
        let created = Instant::now();
        let memory = self.map_memory(&vm)?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        for chip in &self.platform.irqchips {
            vm.set_irqchip(chip).context("KVM_SET_IRQCHIP")?;
        }
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for (index, prepared) in (0..).zip(&self.vcpus) {
            let vcpu = vm.create_vcpu(index).context("KVM_CREATE_VCPU")?;
            prepared.restore(&vcpu)?;
            vcpus.push(vcpu);
        }
        let clock = kvm_clock_data {
            clock: self.platform.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).context("KVM_SET_CLOCK")?;
        let times = FloorTimes {
            whole: begun.elapsed(),
            without_create_vm: created.elapsed(),
        };
        drop(vcpus);
        drop(vm);
        drop(memory);
        Ok(times)
    }

    fn map_memory(&self, vm: &VmFd) -> Result<Vec<Mapping>> {
        let mut offset = 0;
        let mut mappings = Vec::new();
        for (slot, range) in (0..).zip(layout::ram_ranges(self.memory_bytes)) {
            let mapping = Mapping::new(&self.memory, offset, range.len)?;
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: range.start.0,
                memory_size: range.len,
                userspace_addr: mapping.address.addr() as u64,
                flags: 0,
            };
            // SAFETY: the range was just mapped, and `measure` drops the VM before the mapping.
            unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
            offset += range.len;
            mappings.push(mapping);
        }
        Ok(mappings)
    }

    fn leave_out_refused_msrs(&mut self) -> Result<()> {
        let vm = self.kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        for (index, prepared) in (0..).zip(&mut self.vcpus) {
            let vcpu = vm.create_vcpu(index).context("KVM_CREATE_VCPU")?;
            vcpu.set_cpuid2(&prepared.cpuid).context("KVM_SET_CPUID2")?;
            let taken: Vec<kvm_msr_entry> = prepared
                .state
                .msrs
                .iter()
                .filter(|msr| {
                    Msrs::from_entries(&[**msr]).is_ok_and(|one| vcpu.set_msrs(&one) == Ok(1))
                })
                .copied()
                .collect();
            prepared.msrs = Msrs::from_entries(&taken)?;
        }
        Ok(())
    }
}

impl Prepared {
    fn new(kvm: &Kvm, state: VcpuState) -> Result<Self> {
        Ok(Self {
            cpuid: CpuId::from_entries(&state.cpuid)?,
            msrs: Msrs::new(0)?,
            xsave: xsave(kvm, &state.xsave)?,
            state,
        })
    }

    fn restore(&self, vcpu: &VcpuFd) -> Result<()> {
        let state = &self.state;
        vcpu.set_cpuid2(&self.cpuid).context("KVM_SET_CPUID2")?;
        vcpu.set_sregs(&state.sregs).context("KVM_SET_SREGS")?;
        vcpu.set_regs(&state.regs).context("KVM_SET_REGS")?;
        vcpu.set_xcrs(&state.xcrs).context("KVM_SET_XCRS")?;
        // SAFETY: the area is as large as this KVM says.
        unsafe { vcpu.set_xsave2(&self.xsave) }.context("KVM_SET_XSAVE")?;
        vcpu.set_debug_regs(&state.debug_regs)
            .context("KVM_SET_DEBUGREGS")?;
        vcpu.set_lapic(&state.lapic).context("KVM_SET_LAPIC")?;
        let set = vcpu.set_msrs(&self.msrs).context("KVM_SET_MSRS")?;
        ensure!(
            set == self.msrs.as_slice().len(),
            "KVM_SET_MSRS took {set} MSRs"
        );
        vcpu.set_vcpu_events(&state.events)
            .context("KVM_SET_VCPU_EVENTS")?;
        vcpu.set_mp_state(state.mp_state)
            .context("KVM_SET_MP_STATE")
    }
}

fn open_state(path: &Path) -> Result<StateReader> {
    StateReader::open(path).with_context(|| format!("could not read {}", path.display()))
}

/// The bytes of a state file as `KVM_SET_XSAVE` takes them.
fn xsave(kvm: &Kvm, bytes: &[u8]) -> Result<Xsave> {
    let len = usize::try_from(kvm.check_extension_int(Cap::Xsave2))
        .unwrap_or(0)
        .max(size_of::<kvm_xsave>());
    let mut xsave = Xsave::new((len - size_of::<kvm_xsave>()).div_ceil(4))?;
    let words: Vec<u32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|chunk| u32::from_le_bytes(*chunk))
        .collect();
    let mut region = [0; 1024];
    for (slot, word) in region.iter_mut().chain(xsave.as_mut_slice()).zip(words) {
        *slot = word;
    }
    // SAFETY: only the fixed part is changed, not the length of the flexible one.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = region;
    Ok(xsave)
}

/// A private mapping.
struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn new(file: &File, offset: u64, len: u64) -> Result<Self> {
        let len = usize::try_from(len)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                i64::try_from(offset)?,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("could not map the memory file");
        }
        Ok(Self { address, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.address, self.len) };
    }
}
