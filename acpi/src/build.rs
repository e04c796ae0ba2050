//! Lays the tables out one behind the other and links them with their addresses.

use acpi_tables::{Aml, facs::FACS, rsdp::Rsdp, xsdt::XSDT};

use crate::{
    GpeNotify, MAX_CPUS, MachineDescription, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PmPorts, dsdt,
    fadt, madt,
};

/// Section 5.2.5.1 asks for the RSDP on a 16-byte boundary; the others profit from it.
const TABLE_ALIGNMENT: u64 = 16;
/// Section 5.2.10.
const FACS_ALIGNMENT: u64 = 64;
/// Section 5.2.10: the version of ACPI 4.0 and later.
const FACS_VERSION: u8 = 2;
/// A generic address structure counts a register block's bits in one byte (section 5.2.3.2).
const GPE0_MAX_LEN: u8 = 30;

/// Why no tables could be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// The number of vCPUs is out of range.
    #[error("could not describe {cpus} vCPUs in the ACPI tables: 1 to {MAX_CPUS} are possible")]
    Cpus {
        /// What was asked for.
        cpus: u8,
    },
    /// The SCI is not an ISA interrupt.
    #[error("could not describe GSI {gsi} as the SCI: 1 to 15 are possible")]
    Sci {
        /// What was asked for.
        gsi: u8,
    },
    /// The sleep type does not fit into SLP_TYP.
    #[error("could not describe S5 with sleep type {sleep_type}: 0 to 7 are possible")]
    SleepType {
        /// What was asked for.
        sleep_type: u8,
    },
    /// The general-purpose event block has an impossible length.
    #[error(
        "could not describe a general-purpose event block of {len} bytes: \
         even lengths from 2 to {GPE0_MAX_LEN} are possible"
    )]
    GpeBlock {
        /// What was asked for, in bytes.
        len: u8,
    },
    /// A register block runs over the end of the I/O port space.
    #[error("could not place {len} bytes of {block} registers at I/O port {port:#x}")]
    Ports {
        /// Which block.
        block: &'static str,
        /// Its first port.
        port: u16,
        /// Its length in bytes.
        len: u8,
    },
    /// A general-purpose event is not in the block.
    #[error("could not notify {device} of general-purpose event {gpe}: the block has {count}")]
    Gpe {
        /// Number of the event.
        gpe: u8,
        /// The device that was to be notified.
        device: String,
        /// How many events the block has.
        count: u8,
    },
    /// A device path is not one.
    #[error(
        "could not notify {path:?}: not an absolute ACPI path of four-character names, \
         such as \\_SB_.VGEN"
    )]
    DevicePath {
        /// What was given.
        path: String,
    },
    /// The tables do not fit.
    #[error("could not place {needed} bytes of ACPI tables at gpa {base:#x}: room for {available}")]
    NoRoom {
        /// Where they were to be, a guest physical address.
        base: u64,
        /// What they take, in bytes.
        needed: usize,
        /// What there is, in bytes.
        available: usize,
    },
    /// The tables would run over the end of the address space.
    #[error("could not place ACPI tables at gpa {base:#x}: too close to the end of the addresses")]
    Address {
        /// Where they were to be, a guest physical address.
        base: u64,
    },
}

/// Finished tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// What belongs into guest memory at the `base_gpa` given to [`build()`].
    ///
    /// Contains the FACS, which section 5.2.10 wants in memory that the OS keeps for the firmware:
    /// report the range in e820 as reserved (or as ACPI NVS).
    pub bytes: Vec<u8>,
    /// Guest physical address of the RSDP, for the boot protocol.
    pub rsdp: u64,
}

/// Builds RSDP, FACS, DSDT, FADT, MADT and XSDT for `machine`, to be copied to `base_gpa`.
///
/// Any `base_gpa` does: tables are aligned by their own addresses. The result has at most `max_len`
/// bytes. The same input gives the same bytes.
///
/// # Errors
/// [`BuildError`], if the description is impossible or the tables take more than `max_len` bytes.
pub fn build(
    machine: &MachineDescription<'_>,
    base_gpa: u64,
    max_len: usize,
) -> Result<Tables, BuildError> {
    validate(machine)?;
    // No table set comes near this size, so no address below overflows.
    if base_gpa > u64::MAX - u64::from(u32::MAX) {
        return Err(BuildError::Address { base: base_gpa });
    }
    let mut area = Area {
        base: base_gpa,
        bytes: Vec::new(),
    };

    // The RSDP comes first and is filled in last, when the XSDT has its address.
    let rsdp = area.reserve(Rsdp::len(), TABLE_ALIGNMENT);
    let mut facs = FACS::new();
    facs.version = FACS_VERSION;
    let facs = area.append(&facs, FACS_ALIGNMENT);
    let dsdt = area.append(&dsdt::dsdt(machine), TABLE_ALIGNMENT);
    let fadt = area.append(&fadt::fadt(machine, facs, dsdt), TABLE_ALIGNMENT);
    let madt = area.append(&madt::madt(machine), TABLE_ALIGNMENT);

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.append(&xsdt, TABLE_ALIGNMENT);
    area.fill(rsdp, &Rsdp::new(OEM_ID, xsdt));

    if area.bytes.len() > max_len {
        return Err(BuildError::NoRoom {
            base: base_gpa,
            needed: area.bytes.len(),
            available: max_len,
        });
    }
    Ok(Tables {
        bytes: area.bytes,
        rsdp,
    })
}

/// Bytes that will lie at `base` in guest memory.
struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Adds `len` zero bytes; returns their guest physical address, a multiple of `alignment`.
    fn reserve(&mut self, len: usize, alignment: u64) -> u64 {
        let gpa = (self.base + self.bytes.len() as u64).next_multiple_of(alignment);
        self.bytes.resize((gpa - self.base) as usize + len, 0);
        gpa
    }

    /// Adds a table; returns its guest physical address, a multiple of `alignment`.
    fn append(&mut self, table: &dyn Aml, alignment: u64) -> u64 {
        let gpa = self.reserve(0, alignment);
        table.to_aml_bytes(&mut self.bytes);
        gpa
    }

    /// Overwrites what was reserved at `gpa`.
    fn fill(&mut self, gpa: u64, table: &dyn Aml) {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let start = (gpa - self.base) as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
    }
}

fn validate(machine: &MachineDescription<'_>) -> Result<(), BuildError> {
    if !(1..=MAX_CPUS).contains(&machine.cpus) {
        return Err(BuildError::Cpus { cpus: machine.cpus });
    }
    if !(1..=15).contains(&machine.sci_gsi) {
        return Err(BuildError::Sci {
            gsi: machine.sci_gsi,
        });
    }
    if machine.s5_sleep_type > 7 {
        return Err(BuildError::SleepType {
            sleep_type: machine.s5_sleep_type,
        });
    }
    validate_ports(&machine.pm)?;
    machine
        .gpe_notifies
        .iter()
        .try_for_each(|notify| validate_notify(notify, &machine.pm))
}

fn validate_ports(pm: &PmPorts) -> Result<(), BuildError> {
    if !(2..=GPE0_MAX_LEN).contains(&pm.gpe0_len) || !pm.gpe0_len.is_multiple_of(2) {
        return Err(BuildError::GpeBlock { len: pm.gpe0_len });
    }
    let blocks = [
        ("PM1a event", pm.pm1a_evt, fadt::PM1_EVT_LEN),
        ("PM1a control", pm.pm1a_cnt, fadt::PM1_CNT_LEN),
        ("PM timer", pm.pm_timer, fadt::PM_TMR_LEN),
        ("GPE0", pm.gpe0, pm.gpe0_len),
    ];
    for (block, port, len) in blocks {
        // Port 0 says "no such block" in the FADT.
        if port == 0 || port.checked_add(u16::from(len) - 1).is_none() {
            return Err(BuildError::Ports { block, port, len });
        }
    }
    Ok(())
}

fn validate_notify(notify: &GpeNotify<'_>, pm: &PmPorts) -> Result<(), BuildError> {
    // Half of the block's bytes are status bytes, with eight events each.
    let count = pm.gpe0_len / 2 * 8;
    if notify.gpe >= count {
        return Err(BuildError::Gpe {
            gpe: notify.gpe,
            device: notify.device.to_owned(),
            count,
        });
    }
    let valid = notify
        .device
        .strip_prefix('\\')
        .is_some_and(|path| path.split('.').all(is_name));
    // One byte counts the names of a path.
    if !valid || notify.device.len() > 5 * usize::from(u8::MAX) {
        return Err(BuildError::DevicePath {
            path: notify.device.to_owned(),
        });
    }
    Ok(())
}

/// Section 20.2.2: a letter or `_`, then letters, digits and `_`.
fn is_name(name: &str) -> bool {
    let lead = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    let bytes = name.as_bytes();
    bytes.len() == 4
        && lead(bytes[0])
        && bytes
            .iter()
            .all(|&byte| lead(byte) || byte.is_ascii_digit())
}
