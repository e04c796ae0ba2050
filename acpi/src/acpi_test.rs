//! Tests that read the tables as a guest does: from the RSDP on, by addresses.
//!
//! That iasl understands every table is tested in `devices/`, where there are real devices to put
//! into them.

use acpi_tables::{
    Aml,
    aml::{Device, Name},
};
use proptest::prelude::*;

use super::*;

const PM: PmPorts = PmPorts {
    pm1a_evt: 0x600,
    pm1a_cnt: 0x604,
    pm_timer: 0x608,
    gpe0: 0x620,
    gpe0_len: 4,
    reset_port: 0x630,
    reset_value: 1,
};
const BASE: u64 = 0xe_0000;
const ROOM: usize = 0x1_0000;

fn machine(cpus: u8) -> MachineDescription<'static> {
    MachineDescription {
        cpus,
        sci_gsi: 9,
        pm: PM,
        s5_sleep_type: 5,
        devices: Vec::new(),
        gpe_notifies: Vec::new(),
        io_apic: IoApic {
            id: 0x21,
            address: 0xfec0_0000,
        },
        local_apic_address: 0xfee0_0000,
    }
}

/// Guest memory that has nothing but the tables.
struct Guest {
    base: u64,
    tables: Tables,
}

impl Guest {
    fn new(machine: &MachineDescription<'_>, base: u64) -> Self {
        Self {
            base,
            tables: build(machine, base, ROOM).unwrap(),
        }
    }

    fn read(&self, gpa: u64, len: usize) -> &[u8] {
        let start = usize::try_from(gpa.checked_sub(self.base).expect("below the tables")).unwrap();
        &self.tables.bytes[start..start + len]
    }

    /// A table with the usual header, its length and checksum verified.
    fn table(&self, gpa: u64, signature: &[u8; 4]) -> &[u8] {
        let len = u32_at(self.read(gpa, 36), 4) as usize;
        let table = self.read(gpa, len);
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "checksum of {signature:?}");
        table
    }

    fn rsdp(&self) -> &[u8] {
        self.read(self.tables.rsdp, 36)
    }

    /// Addresses of all that the XSDT names.
    fn xsdt(&self) -> Vec<u64> {
        let xsdt = self.table(u64_at(self.rsdp(), 24), b"XSDT");
        (36..xsdt.len())
            .step_by(8)
            .map(|offset| u64_at(xsdt, offset))
            .collect()
    }

    fn fadt(&self) -> &[u8] {
        self.table(self.xsdt()[0], b"FACP")
    }

    fn madt(&self) -> &[u8] {
        self.table(self.xsdt()[1], b"APIC")
    }

    fn dsdt(&self) -> &[u8] {
        self.table(u64_at(self.fadt(), 140), b"DSDT")
    }

    fn facs(&self) -> &[u8] {
        self.read(u64_at(self.fadt(), 132), 64)
    }

    /// The MADT's structures.
    fn madt_structures(&self) -> Vec<&[u8]> {
        let mut rest = &self.madt()[44..];
        let mut structures = Vec::new();
        while !rest.is_empty() {
            let (structure, tail) = rest.split_at(rest[1].into());
            structures.push(structure);
            rest = tail;
        }
        structures
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack
        .windows(needle.len())
        .filter(|window| window == &needle)
        .count()
}

proptest! {
    #[test]
    fn every_table_is_found_aligned_and_whole(
        cpus in 1..=MAX_CPUS,
        base in prop_oneof![0..=0xf_ffffu64, any::<u32>().prop_map(u64::from), 0..u64::MAX >> 1],
    ) {
        let guest = Guest::new(&machine(cpus), base);
        let rsdp = guest.tables.rsdp;
        prop_assert!(rsdp.is_multiple_of(16));
        prop_assert_eq!(&guest.rsdp()[..8], b"RSD PTR ");
        prop_assert_eq!(guest.rsdp()[15], 2);
        prop_assert_eq!(sum(&guest.rsdp()[..20]), 0);
        prop_assert_eq!(sum(guest.rsdp()), 0);
        // Each of these verifies signature, bounds and checksum.
        guest.madt();
        guest.dsdt();
        prop_assert!(u64_at(guest.fadt(), 132).is_multiple_of(64));
        prop_assert_eq!(&guest.facs()[..4], b"FACS");
        prop_assert_eq!(u32_at(guest.facs(), 4), 64);
    }

    #[test]
    fn a_scan_of_the_bios_area_finds_the_rsdp(offset in 0u64..0x1000) {
        let guest = Guest::new(&machine(1), BASE + offset);
        let found = (BASE..BASE + 0x1010)
            .step_by(16)
            .filter(|gpa| *gpa >= BASE + offset)
            .find(|gpa| guest.read(*gpa, 8) == b"RSD PTR ");
        prop_assert_eq!(found, Some(guest.tables.rsdp));
    }

    #[test]
    fn any_description_is_described_or_refused_without_a_panic(
        numbers in any::<(u8, u8, u8, u8, u8)>(),
        ports in any::<[u16; 5]>(),
        path in "\\PC{0,12}",
        base in any::<u64>(),
        room in 0..ROOM,
    ) {
        let (cpus, sci_gsi, s5_sleep_type, gpe0_len, gpe) = numbers;
        let [pm1a_evt, pm1a_cnt, pm_timer, gpe0, reset_port] = ports;
        let pm =
            PmPorts { pm1a_evt, pm1a_cnt, pm_timer, gpe0, gpe0_len, reset_port, reset_value: 0 };
        let gpe_notifies = vec![GpeNotify { gpe, device: &path, value: 0x80 }];
        let machine = MachineDescription {
            cpus, sci_gsi, pm, s5_sleep_type, gpe_notifies, ..machine(1)
        };
        if let Ok(tables) = build(&machine, base, room) {
            prop_assert!(tables.bytes.len() <= room);
        }
    }
}

#[test]
fn the_same_machine_has_the_same_tables() {
    assert_eq!(
        build(&machine(4), BASE, ROOM),
        build(&machine(4), BASE, ROOM)
    );
}

#[test]
fn the_fadts_64_bit_fields_agree_with_the_legacy_ones() {
    let guest = Guest::new(&machine(1), BASE);
    let fadt = guest.fadt();
    // Legacy address, legacy length, 64-bit field, port, bytes.
    for (address, len, extended, port, bytes) in [
        (56, 88, 148, 0x600, 4),
        (64, 89, 172, 0x604, 2),
        (76, 91, 208, 0x608, 4),
        (80, 92, 220, 0x620, 4),
    ] {
        assert_eq!(u32_at(fadt, address), port);
        assert_eq!(fadt[len], bytes);
        assert_eq!(fadt[extended], 1, "in the I/O port space");
        assert_eq!(fadt[extended + 1], bytes * 8);
        assert_eq!(u64_at(fadt, extended + 4), port.into());
    }
}

#[test]
fn the_fadt_says_fixed_hardware_without_firmware_or_legacy_clock() {
    let guest = Guest::new(&machine(1), BASE);
    let fadt = guest.fadt();
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "FADT 6.5");
    assert_eq!(u16_at(fadt, 46), 9, "SCI_INT");
    assert_eq!(
        (u32_at(fadt, 48), fadt[52], fadt[53]),
        (0, 0, 0),
        "SMI_CMD, ACPI_ENABLE"
    );
    assert!(
        u16_at(fadt, 96) > 100 && u16_at(fadt, 98) > 1000,
        "no C2, no C3"
    );
    assert_eq!(u16_at(fadt, 109), 0b10_0101, "IAPC_BOOT_ARCH");
    let flags = u32_at(fadt, 112);
    for (bit, set) in [
        (0, true),
        (4, false),
        (5, true),
        (8, true),
        (10, true),
        (20, false),
    ] {
        assert_eq!(flags >> bit & 1 == 1, set, "flag {bit}");
    }
    assert_eq!(
        (fadt[116], fadt[117], u64_at(fadt, 120), fadt[128]),
        (1, 8, 0x630, 1),
        "RESET_REG"
    );
}

#[test]
fn each_vcpu_has_a_local_apic_and_a_processor_device_with_its_number() {
    let guest = Guest::new(&machine(32), BASE);
    let apics: Vec<_> = guest
        .madt_structures()
        .into_iter()
        .filter(|s| s[0] == 0)
        .collect();
    assert_eq!(apics.len(), 32);
    for (cpu, apic) in (0..).zip(apics) {
        assert_eq!(apic, [0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    assert_eq!(count(guest.dsdt(), b"ACPI0007"), 32);
}

#[test]
fn the_madt_overrides_the_sci_and_has_the_io_apic_and_nmi() {
    let guest = Guest::new(&machine(1), BASE);
    let madt = guest.madt();
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    assert_eq!(
        guest.madt_structures()[1..],
        [
            [1, 12, 0x21, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0].as_slice(),
            &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0],
            &[4, 6, 0xff, 0, 0, 1],
        ]
    );
}

#[test]
fn the_dsdt_has_the_sleep_state_the_devices_and_one_method_for_each_event() {
    let uid = Name::new("_UID".into(), &7u8);
    let device = Device::new("DEVX".into(), vec![&uid]);
    let mut aml = Vec::new();
    device.to_aml_bytes(&mut aml);
    let notify = |gpe, value| GpeNotify {
        gpe,
        device: "\\_SB_.DEVX",
        value,
    };
    let machine = MachineDescription {
        devices: vec![&device],
        gpe_notifies: vec![notify(5, 0x80), notify(15, 0x81), notify(5, 0x82)],
        ..machine(1)
    };
    let guest = Guest::new(&machine, BASE);
    let dsdt = guest.dsdt();
    assert_eq!(count(dsdt, b"\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\0\0"), 1);
    assert_eq!(count(dsdt, &aml), 1);
    assert_eq!((count(dsdt, b"_E05"), count(dsdt, b"_E0F")), (1, 1));
    for value in [0x80, 0x81, 0x82] {
        let mut call = b"\x86\\\x2e_SB_DEVX\x0a".to_vec();
        call.push(value);
        assert_eq!(count(dsdt, &call), 1, "Notify with {value:#x}");
    }
}

#[test]
fn tables_that_do_not_fit_are_refused_and_tables_that_just_fit_are_not() {
    let needed = Guest::new(&machine(2), BASE).tables.bytes.len();
    assert!(build(&machine(2), BASE, needed).is_ok());
    assert_eq!(
        build(&machine(2), BASE, needed - 1),
        Err(BuildError::NoRoom {
            base: BASE,
            needed,
            available: needed - 1
        })
    );
    let base = u64::MAX - 64;
    assert_eq!(
        build(&machine(2), base, ROOM),
        Err(BuildError::Address { base })
    );
}

#[test]
fn what_no_machine_can_be_is_refused() {
    let refused = |machine| build(&machine, BASE, ROOM).unwrap_err();
    for cpus in [0, 33, 255] {
        assert_eq!(refused(machine(cpus)), BuildError::Cpus { cpus });
    }
    for gsi in [0, 16] {
        let machine = MachineDescription {
            sci_gsi: gsi,
            ..machine(1)
        };
        assert_eq!(refused(machine), BuildError::Sci { gsi });
    }
    let asleep = MachineDescription {
        s5_sleep_type: 8,
        ..machine(1)
    };
    assert_eq!(refused(asleep), BuildError::SleepType { sleep_type: 8 });
    for len in [0, 1, 3, 31, 32, 255] {
        let pm = PmPorts {
            gpe0_len: len,
            ..PM
        };
        assert_eq!(
            refused(MachineDescription { pm, ..machine(1) }),
            BuildError::GpeBlock { len }
        );
    }
    for port in [0, 0xffff] {
        let pm = PmPorts {
            pm1a_cnt: port,
            ..PM
        };
        let error = BuildError::Ports {
            block: "PM1a control",
            port,
            len: 2,
        };
        assert_eq!(refused(MachineDescription { pm, ..machine(1) }), error);
    }
}

#[test]
fn impossible_event_targets_are_refused() {
    let refused = |gpe, device| {
        let gpe_notifies = vec![GpeNotify {
            gpe,
            device,
            value: 0x80,
        }];
        build(
            &MachineDescription {
                gpe_notifies,
                ..machine(1)
            },
            BASE,
            ROOM,
        )
        .unwrap_err()
    };
    let device = "\\_SB_.VGEN";
    assert_eq!(
        refused(16, device),
        BuildError::Gpe {
            gpe: 16,
            device: device.into(),
            count: 16
        }
    );
    for path in [
        "",
        "\\",
        "_SB_.VGEN",
        "\\_SB.VGEN",
        "\\_SB_.",
        "\\_SB_.vgen",
        "\\1SB_",
        "\\äää",
    ] {
        assert_eq!(
            refused(5, path),
            BuildError::DevicePath { path: path.into() }
        );
    }
    let long = "\\".to_owned() + &vec!["AAAA"; 256].join(".");
    assert_eq!(
        refused(5, &long),
        BuildError::DevicePath { path: long.clone() }
    );
}
