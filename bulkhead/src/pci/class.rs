//! What a PCI device is, in a word. Numbers of the PCI Code and ID Assignment Specification, section 1.

/// The name of class and subclass, if they have one here.
const NAMES: [(u16, &str); 33] = [
    (0x0100, "scsi"),
    (0x0101, "ide"),
    (0x0104, "raid"),
    (0x0106, "sata"),
    (0x0107, "sas"),
    (0x0108, "nvme"),
    (0x0180, "storage"),
    (0x0200, "ethernet"),
    (0x0207, "infiniband"),
    (0x0280, "network"),
    (0x0300, "vga"),
    (0x0302, "3d"),
    (0x0380, "display"),
    (0x0400, "video"),
    (0x0401, "audio"),
    (0x0403, "audio"),
    (0x0500, "memory"),
    (0x0580, "memory"),
    (0x0600, "host-bridge"),
    (0x0601, "isa-bridge"),
    (0x0604, "pci-bridge"),
    (0x0680, "bridge"),
    (0x0700, "serial"),
    (0x0780, "modem"),
    (0x0805, "sd"),
    (0x0806, "iommu"),
    (0x0880, "system"),
    (0x0c03, "usb"),
    (0x0c05, "smbus"),
    (0x0d11, "bluetooth"),
    (0x1000, "crypto"),
    (0x1180, "signal"),
    (0x1200, "accelerator"),
];

/// Base class of bridges.
const BRIDGE: u8 = 0x06;

/// The word for a class code (24 bits, as sysfs has it), or its number.
pub(super) fn name(code: u32) -> String {
    let short = u16::try_from(code >> 8 & 0xffff).unwrap_or_default();
    let found = NAMES.iter().find(|(number, _)| *number == short);
    found.map_or_else(|| format!("class-{short:04x}"), |(_, name)| (*name).to_owned())
}

/// Whether it leads to others, or to the host itself.
pub(super) fn is_bridge(code: u32) -> bool {
    code >> 16 & 0xff == u32::from(BRIDGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_names_or_numbers() {
        assert_eq!([0x02_0000, 0x01_0802, 0xff_0000].map(name), ["ethernet", "nvme", "class-ff00"]);
        assert!(is_bridge(0x06_0400) && !is_bridge(0x02_0600));
    }
}
