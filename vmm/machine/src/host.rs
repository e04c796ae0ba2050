//! The host's KVM: opened once, asked once for what it offers.

use kvm_bindings::{KVM_CAP_SREGS2, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

use super::{cpuid, layout, platform, vcpu};

/// The only KVM API version there is.
const KVM_API_VERSION: i32 = 12;

/// What vmgenie cannot do without.
const NEEDED: [(Cap, &str); 13] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
];

/// Why this host cannot run a microVM.
#[derive(Debug, Error)]
pub enum HostError {
    /// `/dev/kvm` could not be opened.
    #[error(
        "could not open /dev/kvm: is KVM loaded (modprobe kvm_intel or kvm_amd) and may this user open it (group kvm)?"
    )]
    Open(#[source] kvm_ioctls::Error),
    /// Some other device.
    #[error("/dev/kvm is not KVM: it does not tell the version of KVM's API")]
    NotKvm,
    /// Not the KVM that we know.
    #[error("the host's KVM has API version {0}; vmgenie needs version {KVM_API_VERSION}")]
    Version(i32),
    /// Something is missing.
    #[error("the host's KVM lacks {0}, which vmgenie needs; a newer kernel has it")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("KVM could not {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// The signal that stops vCPUs could not be set up.
    #[error("could not install the signal handler that stops vCPUs")]
    Signal(#[source] vmm_sys_util::errno::Error),
}

/// The host's KVM and what it offers.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    /// `KVM_GET_MSR_INDEX_LIST`: the MSRs that make up a vCPU's state.
    pub(super) msrs: Vec<u32>,
    /// The local APIC has a TSC-deadline mode.
    pub(super) tsc_deadline: bool,
    /// `KVM_GET_SREGS2` is there.
    pub(super) sregs2: bool,
    /// The size of the XSAVE area in bytes, at least 4,096.
    pub(super) xsave_len: usize,
    /// `KVM_GET_XSAVE2` is there.
    pub(super) xsave2: bool,
    /// `KVM_SET_TSC_KHZ` can slow down or speed up a guest's TSC.
    pub(super) tsc_control: bool,
    /// `KVM_KVMCLOCK_CTRL` is there.
    pub(super) kvmclock_ctrl: bool,
}

impl Host {
    /// Opens `/dev/kvm` and checks it.
    pub fn open() -> Result<Self, HostError> {
        vcpu::install_kick_handler().map_err(HostError::Signal)?;
        let kvm = Kvm::new().map_err(HostError::Open)?;
        let version = kvm.get_api_version();
        if version < 0 {
            return Err(HostError::NotKvm);
        }
        if version != KVM_API_VERSION {
            return Err(HostError::Version(version));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HostError::Missing(name));
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| HostError::Kvm("tell its supported CPUID", e))?;
        let msrs = kvm
            .get_msr_index_list()
            .map_err(|e| HostError::Kvm("list the MSRs of a vCPU", e))?;
        let xsave2 = kvm.check_extension_int(Cap::Xsave2);
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            msrs: with_mtrrs(msrs.as_slice()),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            sregs2: kvm.check_extension_raw(u64::from(KVM_CAP_SREGS2)) > 0,
            xsave_len: usize::try_from(xsave2)
                .unwrap_or(0)
                .max(size_of::<kvm_xsave>()),
            xsave2: xsave2 > 0,
            tsc_control: kvm.check_extension(Cap::TscControl),
            kvmclock_ctrl: kvm.check_extension(Cap::KvmclockCtrl),
            kvm,
        })
    }

    /// Must a guest of this host have a PIT?
    pub(super) fn needs_pit(&self) -> bool {
        !cpuid::runs_without_pit(&self.cpuid, self.tsc_deadline)
    }

    /// How many bits a guest's physical addresses may have (`CPUID.8000_0008:EAX`).
    pub(super) fn physical_address_bits(&self) -> u32 {
        self.cpuid
            .iter()
            .find(|entry| entry.function == 0x8000_0008)
            .map_or(36, |entry| entry.eax & 0xff)
    }

    /// Makes a VM that has nothing yet: what does not depend on its configuration or snapshot is done here, ahead of time.
    pub fn empty_vm(&self) -> Result<VmFd, HostError> {
        let vm = self
            .kvm
            .create_vm()
            .map_err(|e| HostError::Kvm("create a VM", e))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(|e| HostError::Kvm("set the address of the identity map", e))?;
        vm.set_tss_address(layout::KVM_TSS)
            .map_err(|e| HostError::Kvm("set the address of the TSS", e))?;
        // They would not be part of a snapshot.
        platform::have_counters(&vm, false);
        Ok(vm)
    }
}

/// The KVM's own list, and the MTRRs, which are a vCPU's state as well and which the list leaves out.
fn with_mtrrs(listed: &[u32]) -> Vec<u32> {
    // Variable ranges, fixed ranges, default type.
    let mtrrs = (0x200..0x210)
        .chain([0x250, 0x258, 0x259])
        .chain(0x268..0x270)
        .chain([0x2ff]);
    let mut all = listed.to_vec();
    all.extend(mtrrs.filter(|index| !listed.contains(index)));
    all
}
