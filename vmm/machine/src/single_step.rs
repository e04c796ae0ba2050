//! For tests alone: `VMGENIE_SINGLE_STEP=N:FILE` in the environment has the vCPUs of a restored machine execute one instruction at a time, until
//! the guest's driver says that the random number generator was reseeded, or N instructions have been executed in all. The file then has a
//! line: how many were executed, how many of them at CPL 3, and whether the generator was reseeded.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use kvm_ioctls::VcpuFd;
use vmgenie_devices::sgen::DriverReport;

static STEPS: AtomicU64 = AtomicU64::new(0);
static USER_STEPS: AtomicU64 = AtomicU64::new(0);
static RESEEDED: AtomicBool = AtomicBool::new(false);
static OVER: AtomicBool = AtomicBool::new(false);

/// Has a vCPU of a restored machine step, if that is asked for.
pub(crate) fn begin(vcpu: &VcpuFd) {
    if wanted().is_some() {
        control(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
    }
}

/// How many instructions, and the file.
fn wanted() -> Option<(u64, String)> {
    let wanted = std::env::var("VMGENIE_SINGLE_STEP").ok()?;
    let (limit, file) = wanted.split_once(':')?;
    Some((limit.parse().ok()?, file.to_owned()))
}

fn control(vcpu: &VcpuFd, control: u32) {
    let debug = kvm_guest_debug {
        control,
        ..kvm_guest_debug::default()
    };
    if let Err(error) = vcpu.set_guest_debug(&debug) {
        tracing::error!(%error, "a vCPU does not step");
    }
}

/// The guest's driver has told something, or a generation begins.
pub(crate) fn reported(report: &DriverReport) {
    RESEEDED.store(report.reseeded, Relaxed);
}

/// A vCPU has executed an instruction.
pub(crate) fn stepped(vcpu: &VcpuFd) {
    if OVER.load(Relaxed) {
        return control(vcpu, 0);
    }
    let user = vcpu.get_sregs().is_ok_and(|sregs| sregs.ss.dpl == 3);
    let users = USER_STEPS.fetch_add(u64::from(user), Relaxed) + u64::from(user);
    let steps = STEPS.fetch_add(1, Relaxed) + 1;
    let reseeded = RESEEDED.load(Relaxed);
    // Read once in a while only: it is a copy of the environment.
    let is_over = |(limit, _): &(u64, String)| reseeded || steps >= *limit;
    if (reseeded || steps.is_multiple_of(64))
        && let Some((_, file)) = wanted().filter(is_over)
        && !OVER.swap(true, Relaxed)
    {
        control(vcpu, 0);
        let told = std::fs::write(&file, format!("{steps} {users} {reseeded}\n"));
        if let Err(error) = told {
            tracing::error!(%error, file, "what was single-stepped is not told");
        }
    }
}
