//! The PVH boot protocol's data: start info, memory map, the initrd as the one module.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, Initrd};
use crate::layout::{self, E820Entry};
use crate::memory::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_VERSION: u32 = 1;

pub(super) fn write(
    memory: &GuestMemory,
    map: &[E820Entry],
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    let put = |bytes: &[u8], gpa: GuestAddress| {
        memory
            .write_slice(bytes, gpa)
            .map_err(|source| BootError::Write("PVH start info", source))
    };
    let entries: Vec<u8> = map
        .iter()
        .flat_map(|e| memmap_entry(e).as_slice().to_vec())
        .collect();
    put(&entries, layout::PVH_MEMMAP)?;
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP.0,
        // A memory map has at most five entries.
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(Initrd { gpa, len }) = initrd {
        let module = hvm_modlist_entry {
            paddr: gpa,
            size: len,
            ..Default::default()
        };
        put(module.as_slice(), layout::PVH_MODULES)?;
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES.0;
    }
    put(info.as_slice(), layout::PVH_INFO)
}

fn memmap_entry(entry: &E820Entry) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry {
        addr: entry.start,
        size: entry.len,
        type_: entry.kind as u32,
        reserved: 0,
    }
}
