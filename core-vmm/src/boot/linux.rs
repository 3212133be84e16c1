//! The 64-bit Linux boot protocol: zero page and identity page tables.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, efi_info, setup_header};
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

/// Where a kernel finds what UEFI has left, all of it below 4 GiB (`struct efi_info` of the boot protocol).
#[derive(Debug, Clone, Copy)]
pub struct EfiInfo {
    /// Which kind of UEFI it was.
    pub signature: u32,
    /// The system table.
    pub system_table: u32,
    /// The memory map.
    pub memory_map: u32,
    /// Its size in bytes.
    pub memory_map_size: u32,
    /// Size of one of its entries.
    pub descriptor_size: u32,
    /// Version of their layout.
    pub descriptor_version: u32,
}

/// `boot_params.secure_boot`: UEFI's Secure Boot is off (`efi_secureboot_mode_disabled`). Left at 0 Debian's kernels warn that it is not known
/// (`efi_set_secure_boot` in drivers/firmware/efi/secureboot.c).
const SECURE_BOOT_OFF: u8 = 2;

/// The header that a kernel without one, an ELF file, is to see: that it was started by this protocol, by a loader of no known kind.
pub fn plain_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20c,
        // LOADED_HIGH
        loadflags: 1,
        kernel_alignment: 16 << 20,
        cmdline_size: layout::CMDLINE_MAX as u32 - 1,
        ..Default::default()
    }
}

/// Fills the zero page.
pub fn write_zero_page(
    ram: &Ram,
    header: setup_header,
    rsdp: u64,
    initrd: Option<(u64, u64)>,
    efi: Option<EfiInfo>,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    if let Some(efi) = efi {
        params.efi_info = efi_info {
            efi_loader_signature: efi.signature,
            efi_systab: efi.system_table,
            efi_memdesc_size: efi.descriptor_size,
            efi_memdesc_version: efi.descriptor_version,
            efi_memmap: efi.memory_map,
            efi_memmap_size: efi.memory_map_size,
            ..Default::default()
        };
        params.secure_boot = SECURE_BOOT_OFF;
    }
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
