//! What lies at a PC's reset vector, in the place of firmware.
//!
//! Linux on hardware-reduced ACPI does not use the FADT's reset register by itself: it asks UEFI, and where there is
//! none goes back to real mode and jumps to F000:FFF0, as if the BIOS were there (`efi_reboot_required`,
//! `machine_real_restart`). So the reset register is written from there.

use super::BootError;
use crate::{layout, memory::Ram};

/// Up to the end of the first MiB there is room for 16 bytes.
const CODE: [u8; 9] = [
    0xba,
    layout::RESET_PORT.to_le_bytes()[0],
    layout::RESET_PORT.to_le_bytes()[1], // mov dx, RESET_PORT
    0xb0,
    layout::RESET_VALUE, // mov al, RESET_VALUE
    0xee,                // out dx, al
    0xf4,                // hlt
    0xeb,
    0xfd, // jmp to the hlt
];

/// Puts the code there; the memory map has the place as reserved.
pub(crate) fn write_vector(ram: &Ram) -> Result<(), BootError> {
    Ok(ram.write(layout::RESET_VECTOR, &CODE)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{MapKind, acpi, memory_map};

    #[test]
    fn the_vector_is_reserved_and_no_table_reaches_it() {
        let ram = Ram::new(64 << 20, false).unwrap();
        acpi::write_tables(&ram, crate::setup::MAX_VPS).unwrap();
        let mut before = [0; 16];
        ram.read(layout::RESET_VECTOR, &mut before).unwrap();
        assert_eq!(before, [0; 16], "the tables end before it");
        write_vector(&ram).unwrap();
        let entry = memory_map(&ram).into_iter().find(|entry| {
            entry.kind == MapKind::Ram
                && (entry.start..entry.start + entry.len).contains(&layout::RESET_VECTOR)
        });
        assert!(entry.is_none(), "the guest may use it: {entry:?}");
    }
}
