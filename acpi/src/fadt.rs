//! The FADT (section 5.2.9): where the fixed hardware is and what it can do.

use acpi_tables::{
    fadt::{FADT, FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
};

use crate::{MachineDescription, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Length of the PM1a event block in bytes.
pub(crate) const PM1_EVT_LEN: u8 = 4;
/// Length of the PM1a control block in bytes.
pub(crate) const PM1_CNT_LEN: u8 = 2;
/// Length of the PM timer in bytes.
pub(crate) const PM_TMR_LEN: u8 = 4;

/// Table 5.11: there are devices on the ISA bus (the serial port) ...
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1 << 0;
/// ... but no VGA (no bit stands for the keyboard controller: there is none) ...
const BOOT_ARCH_VGA_NOT_PRESENT: u16 = 1 << 2;
/// ... and no CMOS clock.
const BOOT_ARCH_CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Latencies above 100 and 1000 microseconds say that there is neither C2 nor C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// Names the hypervisor (table 5.9, Hypervisor Vendor Identity); without a version, as asked there.
const HYPERVISOR: u64 = u64::from_le_bytes(*b"VMGENIE\0");

/// Builds the FADT. `facs` and `dsdt` are guest physical addresses.
pub(crate) fn fadt(machine: &MachineDescription<'_>, facs: u64, dsdt: u64) -> FADT {
    let pm = &machine.pm;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_64(facs)
        .dsdt_64(dsdt)
        // WBINVD works; HLT is C1.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Buttons and clock are *not* fixed hardware: set means absent (table 5.10).
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .gpe_info(pm.gpe0.into(), 0, pm.gpe0_len, 0, 0);

    // SMI_CMD stays 0: the machine is always in ACPI mode and SCI_EN always set (section 5.2.9).
    fadt.sci_int = u16::from(machine.sci_gsi).into();
    fadt.pm1a_evt_blk = u32::from(pm.pm1a_evt).into();
    fadt.pm1_evt_len = PM1_EVT_LEN;
    fadt.pm1a_cnt_blk = u32::from(pm.pm1a_cnt).into();
    fadt.pm1_cnt_len = PM1_CNT_LEN;
    fadt.pm_tmr_blk = u32::from(pm.pm_timer).into();
    fadt.pm_tmr_len = PM_TMR_LEN;

    // Readers warn when the 64-bit fields differ from the legacy ones.
    fadt.x_pm1a_evt_blk = port(pm.pm1a_evt, PM1_EVT_LEN, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(pm.pm1a_cnt, PM1_CNT_LEN, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(pm.pm_timer, PM_TMR_LEN, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = port(pm.gpe0, pm.gpe0_len, AccessSize::ByteAccess);

    fadt.reset_reg = port(pm.reset_port, 1, AccessSize::ByteAccess);
    fadt.reset_value = pm.reset_value;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch =
        (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_VGA_NOT_PRESENT | BOOT_ARCH_CMOS_RTC_NOT_PRESENT)
            .into();
    fadt.hypervisor_vendor_identity = HYPERVISOR.into();
    fadt.finalize()
}

/// A register block of `len` bytes, at most 31.
fn port(address: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, address.into())
}
