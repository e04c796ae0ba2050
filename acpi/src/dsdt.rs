//! The DSDT: `\_S5`, the processors, the machine's devices and what general-purpose events do.

use std::collections::BTreeMap;

use acpi_tables::{
    Aml,
    aml::{Device, Method, Name, Notify, Package, Path, ZERO},
    sdt::Sdt,
};

use crate::{MachineDescription, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Section 5.2.11.1: from revision 2 on integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// Length of a table's header in bytes (section 5.2.6).
const HEADER_LEN: u32 = 36;

/// Builds the DSDT. The description has been validated.
pub(crate) fn dsdt(machine: &MachineDescription<'_>) -> Sdt {
    let mut aml = Vec::new();
    sleep_state(machine.s5_sleep_type, &mut aml);
    system_bus(machine, &mut aml);
    general_purpose_events(machine, &mut aml);

    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&aml);
    dsdt
}

/// `\_S5`: SLP_TYP for PM1a, for PM1b (there is none), two reserved values (section 7.4.2).
fn sleep_state(sleep_type: u8, aml: &mut Vec<u8>) {
    let package = Package::new(vec![&sleep_type, &sleep_type, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &package).to_aml_bytes(aml);
}

/// `\_SB_`: processors first, so that devices may refer to them.
fn system_bus(machine: &MachineDescription<'_>, aml: &mut Vec<u8>) {
    let mut children = Vec::new();
    for cpu in 0..machine.cpus {
        processor(cpu, &mut children);
    }
    for device in &machine.devices {
        device.to_aml_bytes(&mut children);
    }
    Scope {
        path: "\\_SB_",
        children: &children,
    }
    .to_aml_bytes(aml);
}

/// A processor device (section 8.4); the MADT has a local APIC with the same UID.
fn processor(cpu: u8, aml: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &cpu);
    Device::new(Path::new(&format!("C{cpu:03X}")), vec![&hid, &uid]).to_aml_bytes(aml);
}

/// `\_GPE._Exx` (section 5.6.4.1): an edge method, whose status bit the OS clears before it runs.
fn general_purpose_events(machine: &MachineDescription<'_>, aml: &mut Vec<u8>) {
    let mut by_event = BTreeMap::<u8, Vec<(Path, u8)>>::new();
    for notify in &machine.gpe_notifies {
        by_event
            .entry(notify.gpe)
            .or_default()
            .push((Path::new(notify.device), notify.value));
    }
    if by_event.is_empty() {
        return;
    }
    let mut children = Vec::new();
    for (gpe, targets) in &by_event {
        let notifies: Vec<Notify<'_>> = targets
            .iter()
            .map(|(path, value)| Notify::new(path, value))
            .collect();
        let body = notifies.iter().map(|notify| notify as &dyn Aml).collect();
        Method::new(Path::new(&format!("_E{gpe:02X}")), 0, true, body).to_aml_bytes(&mut children);
    }
    Scope {
        path: "\\_GPE",
        children: &children,
    }
    .to_aml_bytes(aml);
}

/// A scope whose content has been encoded already.
struct Scope<'a> {
    path: &'static str,
    children: &'a [u8],
}

impl Aml for Scope<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&acpi_tables::aml::Scope::raw(
            Path::new(self.path),
            self.children.to_vec(),
        ));
    }
}
