//! The MADT (section 5.2.12): local APICs, the I/O APIC and how the SCI reaches it.

use acpi_tables::{
    Aml,
    madt::{EnabledStatus, IoApic, ProcessorLocalApic},
    sdt::Sdt,
};

use crate::{MachineDescription, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Section 5.2.12: the revision that goes with FADT 6.5.
const MADT_REVISION: u8 = 6;
/// Header, local APIC address and flags, in bytes.
const FIXED_LEN: u32 = 44;
const LOCAL_APIC_ADDRESS_OFFSET: usize = 36;
const FLAGS_OFFSET: usize = 40;
/// Table 5.20: there are 8259 interrupt controllers as well (KVM's irqchip brings a pair of them),
/// which the OS has to mask.
const PCAT_COMPAT: u32 = 1;

/// Table 5.21: structure types that acpi_tables lacks.
const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const ISA_BUS: u8 = 0;
/// Table 5.26: active high (0b01) and level-triggered (0b11 << 2).
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// Table 5.26: what the bus says, edge and active high for ISA.
const CONFORMS_TO_BUS: u16 = 0;
const ALL_PROCESSORS: u8 = 0xff;
const LINT1: u8 = 1;

/// Builds the MADT.
pub(crate) fn madt(machine: &MachineDescription<'_>) -> Sdt {
    let mut structures = Vec::new();
    for cpu in 0..machine.cpus {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut structures);
    }
    IoApic::new(machine.io_apic.id, machine.io_apic.address, 0).to_aml_bytes(&mut structures);
    structures.extend(source_override(machine.sci_gsi));
    structures.extend(local_apic_nmi());

    let mut madt = Sdt::new(
        *b"APIC",
        FIXED_LEN,
        MADT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    madt.write_u32(LOCAL_APIC_ADDRESS_OFFSET, machine.local_apic_address);
    madt.write_u32(FLAGS_OFFSET, PCAT_COMPAT);
    madt.append_slice(&structures);
    madt
}

/// Section 5.2.12.5: the SCI is level-triggered and active high, unlike other ISA interrupts.
fn source_override(sci: u8) -> [u8; 10] {
    let [flags_low, flags_high] = ACTIVE_HIGH_LEVEL.to_le_bytes();
    [
        INTERRUPT_SOURCE_OVERRIDE,
        10,
        ISA_BUS,
        sci,
        sci,
        0,
        0,
        0,
        flags_low,
        flags_high,
    ]
}

/// Section 5.2.12.7: non-maskable interrupts come in through LINT1 of each local APIC.
fn local_apic_nmi() -> [u8; 6] {
    let [flags_low, flags_high] = CONFORMS_TO_BUS.to_le_bytes();
    [
        LOCAL_APIC_NMI,
        6,
        ALL_PROCESSORS,
        flags_low,
        flags_high,
        LINT1,
    ]
}
