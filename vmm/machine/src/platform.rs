//! Interrupt controllers and the PIT: what KVM has once for each VM.

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_clock_data, kvm_enable_cap, kvm_irqchip,
    kvm_pit_config,
};
use kvm_ioctls::VmFd;
use thiserror::Error;

use super::state::PlatformState;

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What KVM refused.
#[derive(Debug, Error)]
#[error("KVM could not {0}")]
pub struct PlatformError(&'static str, #[source] kvm_ioctls::Error);

fn at(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> PlatformError {
    move |source| PlatformError(what, source)
}

/// Makes PIC, IOAPIC and (with the vCPUs that follow) local APICs, and a PIT for a guest that needs one.
pub(super) fn create(vm: &VmFd, pit: bool) -> Result<(), PlatformError> {
    vm.create_irq_chip()
        .map_err(at("create the interrupt controllers"))?;
    if pit {
        let config = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(config).map_err(at("create the PIT"))?;
    }
    Ok(())
}

/// Has the vCPUs that will be made have performance counters, or none. A KVM that cannot take them away (before Linux 5.18) leaves
/// AMD's oldest ones, which no bit of CPUID tells of.
pub(super) fn have_counters(vm: &VmFd, have: bool) {
    let disable = if have { 0 } else { KVM_PMU_CAP_DISABLE };
    let cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [disable.into(), 0, 0, 0],
        ..Default::default()
    };
    // Refused where there are none at all, too.
    let _ = vm.enable_cap(&cap);
}

/// Saves everything; `clock` is what kvm-clock was when the vCPUs stopped.
pub(super) fn save(
    vm: &VmFd,
    pit: bool,
    clock: kvm_clock_data,
) -> Result<PlatformState, PlatformError> {
    let mut irqchips = [kvm_irqchip::default(); 3];
    for (chip, id) in irqchips.iter_mut().zip(CHIPS) {
        chip.chip_id = id;
        vm.get_irqchip(chip)
            .map_err(at("get the state of an interrupt controller"))?;
    }
    let pit = if pit {
        Some(vm.get_pit2().map_err(at("get the state of the PIT"))?)
    } else {
        None
    };
    Ok(PlatformState {
        irqchips,
        clock,
        pit,
    })
}

/// Restores the interrupt controllers and the PIT.
pub(super) fn restore(vm: &VmFd, state: &PlatformState) -> Result<(), PlatformError> {
    for (chip, id) in state.irqchips.iter().zip(CHIPS) {
        // The order in the file is ours, whatever the file says.
        let chip = kvm_irqchip {
            chip_id: id,
            ..*chip
        };
        vm.set_irqchip(&chip)
            .map_err(at("set the state of an interrupt controller"))?;
    }
    if let Some(pit) = &state.pit {
        vm.set_pit2(pit).map_err(at("set the state of the PIT"))?;
    }
    Ok(())
}
