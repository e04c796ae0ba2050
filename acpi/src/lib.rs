//! The ACPI tables that a guest sees, built from a description of the machine.
//!
//! Nothing here knows KVM or guest memory: [`build()`] takes a [`MachineDescription`] and gives back the
//! bytes that belong at a guest physical address. The platform is *fixed hardware* (ACPI 6.5 section
//! 4.8.3), not hardware-reduced: a PM1a block, a PM timer, one general-purpose event block, an SCI
//! and a reset register. Sections named in this crate are those of the ACPI specification 6.5.

mod build;
mod description;
mod dsdt;
mod fadt;
mod madt;

pub use acpi_tables::Aml;
pub use build::{BuildError, Tables, build};
pub use description::{GpeNotify, IoApic, MAX_CPUS, MachineDescription, PmPorts};

/// Six bytes that name the maker in each table's header (section 5.2.6, OEMID).
const OEM_ID: [u8; 6] = *b"VMGENI";
/// Eight bytes that name the machine in each table's header (section 5.2.6, OEM Table ID).
const OEM_TABLE_ID: [u8; 8] = *b"VMGENIE ";
/// The revision of our tables' content (section 5.2.6, OEM Revision).
const OEM_REVISION: u32 = 1;

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
