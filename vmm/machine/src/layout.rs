//! The layout of guest physical addresses, in one table.
//!
//! | gpa | e820 | what |
//! |---|---|---|
//! | `0x0000_0000` | usable | boot data: GDT, start info or zero page, page tables, command line |
//! | `0x0009_fc00` | reserved | where a PC has its EBDA, video memory and option ROMs |
//! | `0x000e_0000` | reserved | ACPI tables, at most 128 KiB |
//! | `0x0010_0000` | usable | kernel; initrd as high as it fits below the system area |
//! | end of low memory - 64 KiB | reserved | system area: a page each for the generation ID, the generation counter and VMClock; room for what comes |
//! | `0xc000_0000` | - | the gap: virtio devices from `0xd000_0000` on, a page each; IOAPIC `0xfec0_0000`, local APIC `0xfee0_0000`, KVM's own pages |
//! | `0x1_0000_0000` | usable | the rest of memory |

use vm_memory::GuestAddress;

/// The GDT of the 64-bit boot protocol.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The IDT of the 64-bit boot protocol (empty).
pub const IDT: GuestAddress = GuestAddress(0x520);
/// PVH's `hvm_start_info`.
pub const PVH_INFO: GuestAddress = GuestAddress(0x6000);
/// PVH's module list.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// PVH's memory map.
pub const PVH_MEMMAP: GuestAddress = GuestAddress(0x6100);
/// The zero page (`boot_params`) of the 64-bit boot protocol.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The initial stack pointer of the 64-bit boot protocol.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The page tables of the 64-bit boot protocol: one PML4, one PDPT, four page directories.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// The page directory pointer table.
pub const PDPT: GuestAddress = GuestAddress(0xa000);
/// The first of four page directories, which map 4 GiB in pages of 2 MiB.
pub const PAGE_DIRECTORIES: GuestAddress = GuestAddress(0xb000);
/// The kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// The end of usable memory below 1 MiB.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables.
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// How many bytes the ACPI tables may take.
pub const ACPI_LEN: usize = 0x2_0000;
/// Where a kernel may be loaded.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);
/// The length of the system area at the end of low memory.
pub const SYSTEM_AREA_LEN: u64 = 0x1_0000;
/// The gap below 4 GiB.
pub const GAP_START: u64 = 0xc000_0000;
/// The end of the gap.
pub const GAP_END: u64 = 0x1_0000_0000;
/// The registers of the first virtio device; each has a page.
pub const VIRTIO_MMIO: u32 = 0xd000_0000;
/// The interrupts of the virtio devices, in the order of their slots: what the IOAPIC has without the PIT (0), the keyboard (1), the
/// PICs' cascade (2), COM1 (4), the clock (8), the SCI (9) and the FPU (13). Never reordered: snapshots and their guests know them.
pub const VIRTIO_GSIS: [u32; 17] = [
    16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 14, 15, 3,
];
/// The IOAPIC's registers (KVM's default).
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APIC's registers (the architecture's default).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM needs for real mode on Intel CPUs.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for real mode on Intel CPUs.
pub const KVM_TSS: usize = 0xfffb_d000;

/// One range of guest RAM: where it starts and how many bytes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// The first gpa.
    pub start: GuestAddress,
    /// The length in bytes; a multiple of 1 MiB.
    pub len: u64,
}

/// The ranges of guest RAM for `memory_bytes` of memory: one below the gap, and the rest above it.
pub fn ram_ranges(memory_bytes: u64) -> Vec<RamRange> {
    let low = memory_bytes.min(GAP_START);
    let mut ranges = vec![RamRange {
        start: GuestAddress(0),
        len: low,
    }];
    if memory_bytes > low {
        ranges.push(RamRange {
            start: GuestAddress(GAP_END),
            len: memory_bytes - low,
        });
    }
    ranges
}

/// Where the system area starts for `memory_bytes` of memory (at least 1 MiB).
pub fn system_area(memory_bytes: u64) -> GuestAddress {
    GuestAddress(memory_bytes.min(GAP_START) - SYSTEM_AREA_LEN)
}

/// Where the generation ID lies for `memory_bytes` of memory: the first page of the system area.
pub fn generation_id(memory_bytes: u64) -> GuestAddress {
    system_area(memory_bytes)
}

/// Where the generation counter's page lies: the second page of the system area.
pub fn generation_counter(memory_bytes: u64) -> GuestAddress {
    GuestAddress(system_area(memory_bytes).0 + 0x1000)
}

/// Where the VMClock's page lies: the third page of the system area.
pub fn vmclock(memory_bytes: u64) -> GuestAddress {
    GuestAddress(system_area(memory_bytes).0 + 0x2000)
}

/// What an e820 entry says of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Memory that the guest may use.
    Usable = 1,
    /// Memory that the guest must leave alone.
    Reserved = 2,
}

/// One entry of the memory map that the guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// The first gpa.
    pub start: u64,
    /// The length in bytes.
    pub len: u64,
    /// What the range is.
    pub kind: E820Type,
}

/// The memory map for `memory_bytes` of memory, in the order of addresses.
pub fn e820(memory_bytes: u64) -> Vec<E820Entry> {
    let entry = |start: u64, end: u64, kind| E820Entry {
        start,
        len: end - start,
        kind,
    };
    let system = system_area(memory_bytes).0;
    let mut map = vec![
        entry(0, LOW_RAM_END, E820Type::Usable),
        entry(LOW_RAM_END, HIGH_RAM_START.0, E820Type::Reserved),
        entry(HIGH_RAM_START.0, system, E820Type::Usable),
        entry(system, system + SYSTEM_AREA_LEN, E820Type::Reserved),
    ];
    for high in &ram_ranges(memory_bytes)[1..] {
        map.push(entry(
            high.start.0,
            high.start.0 + high.len,
            E820Type::Usable,
        ));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_virtio_device_has_an_interrupt_that_nobody_else_has() {
        use vmgenie_devices::{pm, serial};
        let mut gsis = VIRTIO_GSIS.to_vec();
        gsis.sort_unstable();
        gsis.dedup();
        assert_eq!(gsis.len(), VIRTIO_GSIS.len());
        for taken in [0, 1, 2, serial::GSI, 8, pm::SCI_GSI, 13, 24] {
            assert!(gsis.iter().all(|gsi| *gsi != taken && *gsi < 24), "{taken}");
        }
        assert!(u64::from(VIRTIO_MMIO) >= GAP_START);
        assert!(VIRTIO_MMIO + 0x1000 * (VIRTIO_GSIS.len() as u32) <= IOAPIC);
    }

    #[test]
    fn memory_up_to_3_gib_lies_below_the_gap() {
        assert_eq!(
            ram_ranges(3 << 30),
            [RamRange {
                start: GuestAddress(0),
                len: 3 << 30
            }]
        );
    }

    #[test]
    fn memory_beyond_3_gib_goes_on_above_4_gib() {
        let ranges = ram_ranges(5 << 30);
        assert_eq!(
            ranges[1],
            RamRange {
                start: GuestAddress(4 << 30),
                len: 2 << 30
            }
        );
        assert_eq!(ranges.iter().map(|r| r.len).sum::<u64>(), 5 << 30);
    }

    #[test]
    fn the_memory_map_covers_all_ram_without_overlap_and_reserves_the_generations_pages() {
        for mib in [32, 128, 3071, 3072, 3073, 8192] {
            let bytes = mib << 20;
            let map = e820(bytes);
            for pair in map.windows(2) {
                assert!(
                    pair[0].start + pair[0].len <= pair[1].start,
                    "{mib} MiB: {pair:?}"
                );
            }
            assert_eq!(map.iter().map(|e| e.len).sum::<u64>(), bytes);
            for page in [generation_id, generation_counter, vmclock] {
                let page = page(bytes).0;
                let home = map
                    .iter()
                    .find(|e| (e.start..e.start + e.len).contains(&page))
                    .unwrap();
                assert_eq!(home.kind, E820Type::Reserved);
                assert!(page.is_multiple_of(0x1000) && page + 0x1000 <= home.start + home.len);
            }
        }
    }
}
