//! The PVH boot protocol: start information, memory map and module list.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, memory_map};
use crate::{
    layout,
    memory::{MemoryError, Ram},
};

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the top bit of the first letter set.
const MAGIC: u32 = 0x336e_c578;

/// Fills the start information at [`layout::PVH_INFO`].
pub fn write_start_info(ram: &Ram, rsdp: u64, initrd: Option<(u64, u64)>) -> Result<(), BootError> {
    let modules = layout::PVH_INFO + size_of::<hvm_start_info>() as u64;
    let table = modules + size_of::<hvm_modlist_entry>() as u64;
    let map = memory_map(ram);
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { modules } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: table,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let fail = |_| MemoryError::NotRam { gpa: layout::PVH_INFO, len: layout::PAGE };
    let memory = ram.map_ref();
    memory.write_obj(info, GuestAddress(layout::PVH_INFO)).map_err(fail)?;
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        memory.write_obj(module, GuestAddress(modules)).map_err(fail)?;
    }
    for (i, e) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry { addr: e.start, size: e.len, type_: e.kind as u32, reserved: 0 };
        let at = table + (i * size_of::<hvm_memmap_table_entry>()) as u64;
        memory.write_obj(entry, GuestAddress(at)).map_err(fail)?;
    }
    Ok(())
}
