//! iasl, the reference compiler, has to understand the ACPI tables of a machine with our devices: it
//! disassembles every table, compiles the result to the same bytes, and has nothing to complain of.

use std::{
    path::Path,
    process::{Command, Output},
};

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmgenie_acpi::{IoApic, MAX_CPUS, MachineDescription, Tables, build};

use crate::{
    FwCfg, SerialPort, SysGen, VmClock, VmGenId, pm, testing::TestLine, virtio::MmioSlot, vmclock,
    vmgenid,
};

const GENERATION_ID: u64 = 0x9_d000;
const COUNTER: u64 = 0x9_e000;
const CLOCK: u64 = 0x9_f000;

fn tables(cpus: u8, base: u64) -> Tables {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let vmgenid = VmGenId::new(&memory, GENERATION_ID).unwrap();
    let sysgen = SysGen::new(&memory, COUNTER, 0).unwrap();
    let vmclock = VmClock::new(&memory, CLOCK).unwrap();
    let serial = SerialPort::new(TestLine::default(), std::io::sink());
    let fw_cfg = FwCfg::default();
    let virtio = [0, 0xfff].map(|index| MmioSlot {
        index,
        gpa: 0xd000_0000 + u32::from(index) * MmioSlot::LEN,
        gsi: 16,
    });
    let machine = MachineDescription {
        cpus,
        sci_gsi: pm::SCI_GSI as u8,
        pm: pm::ports(),
        s5_sleep_type: pm::S5_SLEEP_TYPE,
        devices: vec![
            &serial, &vmgenid, &sysgen, &vmclock, &fw_cfg, &virtio[0], &virtio[1],
        ],
        gpe_notifies: vec![vmgenid::gpe_notify(), vmclock::gpe_notify()],
        io_apic: IoApic {
            id: 0,
            address: 0xfec0_0000,
        },
        local_apic_address: 0xfee0_0000,
    };
    build(&machine, base, 0x1_0000).unwrap()
}

/// Every table with its name, found by following addresses from the RSDP on. Not the RSDP itself: iasl
/// takes none from a file. The tests of `acpi/` verify it.
fn split(tables: &Tables, base: u64) -> Vec<(String, &[u8])> {
    let bytes = |gpa: u64| &tables.bytes[(gpa - base) as usize..];
    let u64_at = |table: &[u8], offset: usize| {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    };
    let table = |gpa: u64| {
        let rest = bytes(gpa);
        let len = u32::from_le_bytes(rest[4..8].try_into().unwrap());
        (
            String::from_utf8(rest[..4].to_vec()).unwrap(),
            &rest[..len as usize],
        )
    };
    let rsdp = &bytes(tables.rsdp)[..36];
    let xsdt = table(u64_at(rsdp, 24));
    let mut found = Vec::new();
    for offset in (36..xsdt.1.len()).step_by(8) {
        found.push(table(u64_at(xsdt.1, offset)));
    }
    let fadt = found[0].1;
    found.extend([table(u64_at(fadt, 132)), table(u64_at(fadt, 140)), xsdt]);
    found
}

fn iasl(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("iasl")
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| {
            panic!("could not run iasl ({error}): `cargo xtask setup` installs what tests need")
        })
}

/// Runs iasl; fails the test if iasl reports an error or a warning. Returns what it said.
fn run_clean(dir: &Path, arguments: &[&str]) -> String {
    let output = iasl(dir, arguments);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let complaint = |line: &str| {
        [
            "Error ",
            "Warning ",
            "ACPI Error",
            "ACPI Warning",
            "Firmware",
            "Invalid",
            "Incorrect",
        ]
        .iter()
        .any(|word| line.trim_start().starts_with(word))
    };
    let clean = output.status.success() && !said.lines().any(complaint);
    assert!(clean, "iasl {arguments:?}: {}\n{said}", output.status);
    said.into_owned()
}

/// Sends each table through iasl and back; returns the DSDT's source.
fn round_trip(cpus: u8, base: u64) -> String {
    let tables = tables(cpus, base);
    let dir = tempfile::tempdir().unwrap();
    let found = split(&tables, base);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["FACP", "APIC", "FACS", "DSDT", "XSDT"]);
    for (name, table) in &found {
        std::fs::write(dir.path().join(format!("{name}.dat")), table).unwrap();
        run_clean(dir.path(), &["-d", &format!("{name}.dat")]);
        run_clean(
            dir.path(),
            &[
                "-oa",
                "-p",
                &format!("{name}-again"),
                &format!("{name}.dsl"),
            ],
        );
        let again = std::fs::read(dir.path().join(format!("{name}-again.aml"))).unwrap();
        // In the header iasl signs with its own name, which changes the checksum too.
        let header = if name == "FACS" { 0 } else { 36 };
        assert_eq!(again[header..], table[header..], "{name} has changed");
    }
    std::fs::read_to_string(dir.path().join("DSDT.dsl")).unwrap()
}

#[test]
fn iasl_understands_every_table_of_a_small_machine() {
    let dsdt = round_trip(1, 0xe_0000);
    for part in [
        "\"VMGENCTR\"",
        "Name (_CID, \"VM_Gen_Counter\")",
        "Name (_DDN, \"VM_Gen_Counter\")",
        "Name (ADDR, Package (0x02)",
        "Method (_E05, 0, Serialized)",
        "Notify (\\_SB.VGEN, 0x80)",
        "Device (SGEN)",
        "Name (_HID, \"VMGE0001\")",
        "0x000000000009E000, // Range Minimum",
        "0x0640,             // Range Minimum",
        "Device (VCLK)",
        "Name (_HID, \"AMZNC10C\")",
        "Method (_E06, 0, Serialized)",
        "Notify (\\_SB.VCLK, 0x80)",
        "EisaId (\"PNP0501\")",
        "Name (_HID, \"QEMU0002\")",
        "0x0510,             // Range Minimum",
        "Name (\\_S5, Package (0x04)",
    ] {
        assert!(dsdt.contains(part), "no {part} in:\n{dsdt}");
    }
}

#[test]
fn iasl_understands_every_table_of_the_largest_machine_above_4_gib() {
    round_trip(MAX_CPUS, 0x1_2345_6780);
}
