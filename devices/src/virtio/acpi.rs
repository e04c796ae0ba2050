//! Where a device's registers lie, and how the guest's ACPI tables say so.

use acpi_tables::{
    Aml, AmlSink,
    aml::{Device, Interrupt, Memory32Fixed, Name, ONE, Path, ResourceTemplate},
};

/// The place of one virtio device: `\_SB.Vxxx` with `_HID` "LNRO0005", which Linux's virtio_mmio driver looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// The number of the slot, at most 0xfff; `_UID`.
    pub index: u16,
    /// Guest physical address of the registers.
    pub gpa: u32,
    /// The interrupt: edge-triggered, active high.
    pub gsi: u32,
}

impl MmioSlot {
    /// How many bytes the registers take.
    pub const LEN: u32 = 0x1000;
}

impl Aml for MmioSlot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &self.index);
        // The device sees the caches of the CPUs (section 6.2.17).
        let cca = Name::new("_CCA".into(), &ONE);
        let registers = Memory32Fixed::new(true, self.gpa, Self::LEN);
        let interrupt = Interrupt::new(true, true, false, false, self.gsi);
        let resources = Name::new(
            "_CRS".into(),
            &ResourceTemplate::new(vec![&registers, &interrupt]),
        );
        let name = Path::new(&format!("V{:03X}", self.index & 0xfff));
        Device::new(name, vec![&hid, &uid, &cca, &resources]).to_aml_bytes(sink);
    }
}
