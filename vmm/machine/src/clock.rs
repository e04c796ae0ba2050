//! The guest's time. It stands still with the machine: its TSC, kvm-clock and the PM timer go on from where they were when the vCPUs
//! stopped, in the machine itself and in each one that is restored from its snapshot.
//!
//! All vCPUs have one TSC. KVM's *offset* states that outright (`KVM_VCPU_TSC_OFFSET`, Linux 5.16): a vCPU's TSC is the host's plus that.
//! Writing `IA32_TSC` of one vCPU after the other would say another instant for each. Differences that a guest made itself are in its
//! `IA32_TSC_ADJUST`.

use std::time::Instant;

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_clock_data,
    kvm_device_attr, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::state::VcpuState;
use super::vcpu::Vcpu;
use super::vcpu_state::MSR_IA32_TSC;
use super::vcpus::Standstill;

const KVMIO: u32 = 0xae;
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

const MSR_IA32_TSC_ADJUST: u32 = 0x3b;

/// Why the guest's time could not be read or set.
#[derive(Debug, Error)]
#[error("KVM could not {0}")]
pub struct ClockError(&'static str, #[source] kvm_ioctls::Error);

/// The guest's time at an instant at which no vCPU runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestTime {
    /// kvm-clock, and the host's wall clock where the KVM tells it.
    pub(super) clock: kvm_clock_data,
    /// The TSC of vCPU 0.
    pub(super) tsc: u64,
    /// When that was, by the host's clock; none for a time out of a snapshot.
    pub(super) since: Option<Instant>,
    /// As much time has passed in the guest as on the host when it goes on, where the KVM that read the clock told the host's.
    pub(super) follow_host: bool,
}

impl GuestTime {
    /// The time of a machine whose vCPUs have just stopped.
    pub(super) fn read(vm: &VmFd, standstill: Standstill<'_>) -> Result<Self, ClockError> {
        let first = standstill.vcpus().next();
        Ok(Self {
            tsc: first.map_or(Ok(0), |vcpu| tsc(&vcpu.fd))?,
            clock: vm.get_clock().map_err(at("get the clock"))?,
            since: Some(Instant::now()),
            follow_host: false,
        })
    }

    /// Has the machine go on from this time.
    pub(super) fn set(&self, vm: &VmFd, standstill: Standstill<'_>) -> Result<(), ClockError> {
        self.set_tscs(standstill)?;
        // After the TSCs, by which KVM tells the guest of it.
        let clock = self.clock_to_set();
        vm.set_clock(&clock).map_err(at("set the clock"))
    }

    /// With the host's time KVM adds what has passed on the host since. The other flags are what KVM tells, not what it takes.
    fn clock_to_set(&self) -> kvm_clock_data {
        let wanted = if self.follow_host {
            KVM_CLOCK_REALTIME
        } else {
            0
        };
        kvm_clock_data {
            clock: self.clock.clock,
            realtime: self.clock.realtime,
            flags: self.clock.flags & wanted,
            ..Default::default()
        }
    }

    /// Moves the TSCs of all vCPUs by the same, so that the first one has this time.
    fn set_tscs(&self, standstill: Standstill<'_>) -> Result<(), ClockError> {
        let mut by = None;
        for vcpu in standstill.vcpus() {
            let fd = &vcpu.fd;
            let by = match by {
                Some(by) => by,
                None => *by.insert(self.tsc.wrapping_sub(tsc(fd)?)),
            };
            match tsc_offset(fd) {
                Some(offset) => set_tsc_offset(fd, offset.wrapping_add(by))?,
                // KVM takes values that differ by less than a second for one instant.
                None => set_tsc(fd, tsc(fd)?.wrapping_add(by))?,
            }
        }
        Ok(())
    }

    /// The time that a snapshot has; a guest with `follow_host` finds that as much time has passed as on the host, where the host that
    /// made the snapshot told its own.
    pub(super) fn saved(clock: &kvm_clock_data, vcpus: &[VcpuState], follow_host: bool) -> Self {
        Self {
            clock: *clock,
            tsc: saved_tsc(vcpus).unwrap_or(0),
            since: None,
            follow_host,
        }
    }

    /// What vCPUs' states say of the time becomes this one; each was read at an instant of its own, later.
    pub(super) fn put_into(&self, vcpus: &mut [VcpuState]) {
        let first = vcpus.first().map_or(0, tsc_adjust);
        for vcpu in vcpus {
            let tsc = self.tsc.wrapping_add(tsc_adjust(vcpu).wrapping_sub(first));
            let mut msrs = vcpu.msrs.iter_mut();
            if let Some(msr) = msrs.find(|msr| msr.index == MSR_IA32_TSC) {
                msr.data = tsc;
            }
        }
    }
}

/// Gives all vCPUs, which have been made and have their frequency, the TSC of a snapshot. False where this KVM cannot say so: then
/// `IA32_TSC` has to be written.
///
/// It comes before the other MSRs: a deadline means something only afterwards.
pub(super) fn restore_tscs(vcpus: &[Vcpu], states: &[VcpuState]) -> Result<bool, ClockError> {
    let (Some(first), Some(saved)) = (vcpus.first(), saved_tsc(states)) else {
        return Ok(false);
    };
    let Some(offset) = tsc_offset(&first.fd) else {
        return Ok(false);
    };
    let by = saved.wrapping_sub(tsc(&first.fd)?);
    let first = states.first().map_or(0, tsc_adjust);
    for (vcpu, state) in vcpus.iter().zip(states) {
        let own = tsc_adjust(state).wrapping_sub(first);
        set_tsc_offset(&vcpu.fd, offset.wrapping_add(by).wrapping_add(own))?;
    }
    Ok(true)
}

/// The TSC of vCPU 0 in a snapshot. Earlier versions saved each vCPU's at another instant; the latest one is not before any time that
/// the guest has seen.
fn saved_tsc(states: &[VcpuState]) -> Option<u64> {
    let first = states.first()?;
    let mut latest = msr(first, MSR_IA32_TSC)?;
    for state in states {
        let own = tsc_adjust(state).wrapping_sub(tsc_adjust(first));
        let tsc = msr(state, MSR_IA32_TSC)?.wrapping_sub(own);
        if tsc.wrapping_sub(latest).cast_signed() > 0 {
            latest = tsc;
        }
    }
    Some(latest)
}

fn tsc_adjust(state: &VcpuState) -> u64 {
    msr(state, MSR_IA32_TSC_ADJUST).unwrap_or(0)
}

fn msr(state: &VcpuState, index: u32) -> Option<u64> {
    let mut msrs = state.msrs.iter();
    Some(msrs.find(|msr| msr.index == index)?.data)
}

fn at(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> ClockError {
    move |source| ClockError(what, source)
}

fn tsc(fd: &VcpuFd) -> Result<u64, ClockError> {
    let failed = at("get the TSC");
    let mut msrs = only_tsc(0).map_err(&failed)?;
    match fd.get_msrs(&mut msrs).map_err(&failed)? {
        0 => Err(failed(kvm_ioctls::Error::new(libc::ENOENT))),
        _ => Ok(msrs.as_slice().first().map_or(0, |msr| msr.data)),
    }
}

fn set_tsc(fd: &VcpuFd, value: u64) -> Result<(), ClockError> {
    let failed = at("set the TSC");
    match fd.set_msrs(&only_tsc(value).map_err(&failed)?) {
        Ok(0) => Err(failed(kvm_ioctls::Error::new(libc::EINVAL))),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn only_tsc(data: u64) -> Result<Msrs, kvm_ioctls::Error> {
    let entry = kvm_msr_entry {
        index: MSR_IA32_TSC,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

fn tsc_offset_at(value: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value as u64,
        flags: 0,
    }
}

/// What a vCPU's TSC is ahead of the host's; none where this KVM does not tell.
fn tsc_offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0;
    let attribute = tsc_offset_at(&raw mut offset);
    // SAFETY: the ioctl reads the attribute, and writes a u64 to its address, which is that of `offset`.
    let result = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    (result == 0).then_some(offset)
}

fn set_tsc_offset(fd: &VcpuFd, offset: u64) -> Result<(), ClockError> {
    let attribute = tsc_offset_at(&raw const offset);
    // SAFETY: the ioctl reads the attribute, and a u64 from its address, which is that of `offset`.
    match unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(at("set the offset of the TSC")(kvm_ioctls::Error::last())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(tsc: u64, adjust: u64) -> VcpuState {
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        VcpuState {
            cpuid: Vec::new(),
            msrs: vec![msr(MSR_IA32_TSC_ADJUST, adjust), msr(MSR_IA32_TSC, tsc)],
            regs: Default::default(),
            sregs: Default::default(),
            pdptrs: None,
            xsave: Vec::new(),
            xcrs: Default::default(),
            debug_regs: Default::default(),
            lapic: Default::default(),
            events: Default::default(),
            mp_state: Default::default(),
            tsc_khz: 0,
            shadow_stack_pointer: None,
        }
    }

    fn tscs(vcpus: &[VcpuState]) -> Vec<u64> {
        vcpus
            .iter()
            .map(|vcpu| msr(vcpu, MSR_IA32_TSC).unwrap())
            .collect()
    }

    #[test]
    fn all_vcpus_are_saved_at_the_instant_at_which_they_stopped() {
        let mut vcpus = [vcpu(5_000, 0), vcpu(7_000, 0), vcpu(9_000, 0)];
        let time = GuestTime {
            clock: kvm_clock_data::default(),
            tsc: 4_000,
            since: None,
            follow_host: false,
        };
        time.put_into(&mut vcpus);
        assert_eq!(tscs(&vcpus), [4_000; 3]);
        assert_eq!(saved_tsc(&vcpus), Some(4_000));
    }

    #[test]
    fn what_a_guest_has_made_of_its_tscs_itself_stays() {
        let back = 100_u64.wrapping_neg();
        let mut vcpus = [vcpu(5_000, 10), vcpu(7_000, 20), vcpu(9_000, back)];
        let time = GuestTime {
            clock: kvm_clock_data::default(),
            tsc: 4_000,
            since: None,
            follow_host: false,
        };
        time.put_into(&mut vcpus);
        assert_eq!(tscs(&vcpus), [4_000, 4_010, 3_890]);
        assert_eq!(saved_tsc(&vcpus), Some(4_000));
    }

    #[test]
    fn an_older_snapshot_goes_on_from_its_latest_tsc() {
        let vcpus = [vcpu(5_000, 0), vcpu(7_000, 0), vcpu(6_000, 0)];
        assert_eq!(saved_tsc(&vcpus), Some(7_000));
        // Of any two numbers one is the later one.
        assert_eq!(saved_tsc(&[vcpu(u64::MAX, 0), vcpu(3, 0)]), Some(3));
        let mut without = vcpu(0, 0);
        without.msrs.clear();
        assert_eq!(saved_tsc(&[without]), None);
        assert_eq!(saved_tsc(&[]), None);
    }

    #[test]
    fn the_guest_follows_the_host_only_when_it_shall_and_the_snapshot_can_tell() {
        let told = kvm_clock_data {
            clock: 7,
            realtime: 9,
            flags: KVM_CLOCK_REALTIME,
            ..Default::default()
        };
        let set = |follow_host| {
            let time = GuestTime::saved(&told, &[], follow_host);
            // A snapshot of a machine that has not run yet can still tell.
            assert_eq!((time.clock.flags, time.clock.realtime), (told.flags, 9));
            time.clock_to_set().flags
        };
        assert_eq!((set(true), set(false)), (told.flags, 0));
    }
}
