//! The 64-bit Linux boot protocol: zero page and identity page tables.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, memory_map};
use crate::{
    layout,
    memory::{MemoryError, Ram},
};

/// The 64-bit entry point, bytes after the start of the protected-mode kernel (boot.rst, "64-bit boot protocol").
pub const ENTRY_64: u64 = 0x200;

/// Boot loader type "undefined" (boot.rst, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;

/// First address beyond what the kernel may use before it has looked at its memory map: it unpacks itself at its
/// preferred address, or higher if it was loaded higher and can be moved (boot.rst, `init_size`).
pub fn runtime_end(header: &setup_header, load: u64) -> u64 {
    let preferred = header.pref_address;
    let start = if header.relocatable_kernel != 0 {
        load.next_multiple_of(u64::from(header.kernel_alignment).max(1)).max(preferred)
    } else {
        preferred
    };
    start.saturating_add(u64::from(header.init_size))
}

/// Fills the zero page.
pub fn write_zero_page(
    ram: &Ram,
    header: setup_header,
    rsdp: u64,
    initrd: Option<(u64, u64)>,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some((start, len)) = initrd {
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size =
            u32::try_from(len).map_err(|_| BootError::TooSmall { what: "initrd", need: len })?;
    }
    let map = memory_map(ram);
    params.e820_entries = map.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.len, r#type: entry.kind as u32 };
    }
    ram.map_ref()
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(|_| MemoryError::NotRam { gpa: layout::ZERO_PAGE, len: layout::PAGE })?;
    Ok(())
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
pub fn write_page_tables(ram: &Ram) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + layout::PAGE;
    let directories = pdpt + layout::PAGE;
    ram.write(pml4, &(pdpt | PRESENT_WRITABLE).to_le_bytes())?;
    for gib in 0..4 {
        let directory = directories + gib * layout::PAGE;
        ram.write(pdpt + gib * 8, &(directory | PRESENT_WRITABLE).to_le_bytes())?;
        for i in 0..512 {
            let entry = (gib << 30) | (i << 21) | PRESENT_WRITABLE | LARGE;
            ram.write(directory + i * 8, &entry.to_le_bytes())?;
        }
    }
    Ok(())
}
