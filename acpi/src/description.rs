//! What a caller says about the machine.

use acpi_tables::Aml;

/// The most vCPUs that a machine can have.
pub const MAX_CPUS: u8 = 32;

/// Where the fixed hardware's registers lie in the I/O port space (section 4.8.3).
///
/// The lengths that are not fields are fixed: PM1a events 4 bytes, PM1a control 2 bytes, PM timer 4
/// bytes (a 32-bit counter), reset register 1 byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmPorts {
    /// PM1a event block: status word, then enable word.
    pub pm1a_evt: u16,
    /// PM1a control word.
    pub pm1a_cnt: u16,
    /// PM timer, 32 bits.
    pub pm_timer: u16,
    /// General-purpose event block 0: the status bytes, then as many enable bytes.
    pub gpe0: u16,
    /// Length of the general-purpose event block in bytes, status and enable together: even, 2 to 30.
    pub gpe0_len: u8,
    /// The reset register, one byte.
    pub reset_port: u16,
    /// The value that resets the machine when it is written to the reset register.
    pub reset_value: u8,
}

/// A device that is notified when a general-purpose event fires (section 5.6.4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpeNotify<'a> {
    /// Number of the event, less than the number of events in the block (4 for each byte of
    /// [`PmPorts::gpe0_len`]).
    pub gpe: u8,
    /// Absolute path of the device in the namespace, each name with its four characters:
    /// `\_SB_.VGEN`.
    pub device: &'a str,
    /// What the device's driver is told; device-specific values start at 0x80 (section 5.6.6).
    pub value: u8,
}

/// The I/O APIC, whose first input is GSI 0 (section 5.2.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC ID.
    pub id: u8,
    /// Guest physical address of its registers.
    pub address: u32,
}

/// A machine, as far as its firmware tables tell of it.
#[derive(Clone)]
pub struct MachineDescription<'a> {
    /// Number of vCPUs, 1 to [`MAX_CPUS`]. vCPU *n* has APIC ID *n* and processor UID *n*.
    pub cpus: u8,
    /// GSI of the system control interrupt (level-triggered, active high), 1 to 15. The tables
    /// override the ISA interrupt of the same number.
    pub sci_gsi: u8,
    /// The fixed hardware's registers.
    pub pm: PmPorts,
    /// SLP_TYP value that switches the machine off, 0 to 7 (section 7.4.2, `\_S5`).
    pub s5_sleep_type: u8,
    /// Devices, placed in `\_SB_` in this order.
    pub devices: Vec<&'a dyn Aml>,
    /// What general-purpose events do. Several entries with one event become one method.
    pub gpe_notifies: Vec<GpeNotify<'a>>,
    /// The I/O APIC.
    pub io_apic: IoApic,
    /// Guest physical address of the local APICs' registers.
    pub local_apic_address: u32,
}
