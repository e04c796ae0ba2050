//! Interrupt controllers, kvm-clock and the PIT: what KVM has once for each VM.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_irqchip, kvm_pit_config,
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

/// Saves everything. No vCPU runs.
pub(super) fn save(vm: &VmFd, pit: bool) -> Result<PlatformState, PlatformError> {
    let mut irqchips = [kvm_irqchip::default(); 3];
    for (chip, id) in irqchips.iter_mut().zip(CHIPS) {
        chip.chip_id = id;
        vm.get_irqchip(chip)
            .map_err(at("get the state of an interrupt controller"))?;
    }
    let clock = vm.get_clock().map_err(at("get the clock"))?;
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

/// Lets the guest's clock go on from where it was saved.
pub(super) fn restore_clock(vm: &VmFd, state: &PlatformState) -> Result<(), PlatformError> {
    let clock = kvm_clock_data {
        clock: state.clock.clock,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(at("set the clock"))
}
