//! The 64-bit boot protocol's data: zero page, GDT, page tables.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, Initrd};
use crate::layout::{self, E820Entry};
use crate::memory::GuestMemory;

/// The boot sector's signature.
const BOOT_FLAG: u16 = 0xaa55;
/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// An unregistered boot loader.
const LOADER_TYPE: u8 = 0xff;
/// For an ELF kernel, which has no header of its own: boot protocol 2.12.
const PROTOCOL_2_12: u16 = 0x020c;

/// The GDT: null, unused, 64-bit code (`0x10`), data (`0x18`), as Linux's `__BOOT_CS` and `__BOOT_DS`.
pub(crate) const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, 2 MiB.
const PAGE_2M: u64 = 0b1000_0011;

pub(super) fn write(
    memory: &GuestMemory,
    map: &[E820Entry],
    initrd: Option<Initrd>,
    rsdp: u64,
    cmdline_len: usize,
    header: Option<setup_header>,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL_2_12,
            ..Default::default()
        }),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.cmd_line_ptr = layout::CMDLINE.0 as u32;
    // Checked to be at most 2,047.
    params.hdr.cmdline_size = cmdline_len as u32;
    if let Some(Initrd { gpa, len }) = initrd {
        // The initrd lies below 4 GiB.
        params.hdr.ramdisk_image = gpa as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.len,
            r#type: entry.kind as u32,
        };
    }
    params.e820_entries = map.len() as u8;
    put(memory, "zero page", params.as_slice(), layout::ZERO_PAGE)?;
    put(memory, "GDT", &words(&GDT), layout::GDT)?;
    put(memory, "IDT", &words(&[0]), layout::IDT)?;
    write_page_tables(memory)
}

/// Identity-maps the first 4 GiB.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let what = "page tables";
    let directory = |n: u64| layout::PAGE_DIRECTORIES.0 + n * 0x1000;
    put(
        memory,
        what,
        &words(&[layout::PDPT.0 | TABLE]),
        layout::PML4,
    )?;
    let pointers: Vec<u64> = (0..4).map(|n| directory(n) | TABLE).collect();
    put(memory, what, &words(&pointers), layout::PDPT)?;
    let pages: Vec<u64> = (0..4 * 512).map(|n| (n << 21) | PAGE_2M).collect();
    put(memory, what, &words(&pages), layout::PAGE_DIRECTORIES)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn put(
    memory: &GuestMemory,
    what: &'static str,
    bytes: &[u8],
    gpa: GuestAddress,
) -> Result<(), BootError> {
    memory
        .write_slice(bytes, gpa)
        .map_err(|source| BootError::Write(what, source))
}
