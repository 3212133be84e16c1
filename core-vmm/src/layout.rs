//! Where everything lies in the guest-physical address space. Numbers only; nothing here acts.

/// Bytes of a guest page; Hyper-V and x86 agree.
pub const PAGE: u64 = 4096;

/// RAM below 4 GiB ends here at the latest; what does not fit continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First byte of RAM above the hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// End of conventional memory, where a PC's extended BIOS data area would begin.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Tables and services of UEFI, for kernels that are to believe in them: three pages, where a PC has ROMs of adapters.
pub const EFI_TABLES: u64 = 0xd_0000;
/// The ACPI tables; inside the range in which a PC's firmware leaves its root pointer.
pub const ACPI_START: u64 = 0xe_0000;
/// Where a PC's processor looks for firmware, as real mode sees it: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the ACPI tables, and start of the memory that kernels are loaded to.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Global descriptor table for the first instruction.
pub const GDT: u64 = 0x500;
/// PVH start information and what it points to.
pub const PVH_INFO: u64 = 0x6000;
/// The Linux boot protocol's "zero page".
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the boot protocol's first instructions.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the first 4 GiB to themselves: six pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line, with its final zero; what 64-bit Linux accepts (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;

/// MMIO below 4 GiB that the guest may hand to VMBus devices (the VMBUS device's `_CRS`).
pub const VMBUS_LOW_MMIO: (u64, u64) = (0xf800_0000, 0xfebf_ffff);
/// Bytes of the MMIO window above RAM for VMBus devices.
pub const VMBUS_HIGH_MMIO_LEN: u64 = 32 << 30;
/// Where the high window starts unless RAM reaches further.
pub const VMBUS_HIGH_MMIO_BASE: u64 = 64 << 30;

/// I/O APIC, as every PC has it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages for Intel's real-mode emulation, which KVM asks for below 4 GiB.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Index and data port of the clock.
pub const RTC_PORT: u16 = 0x70;
/// The hypercall page leaves the guest by this port, with a hypercall's registers: nothing answers there on a PC. One byte, as an immediate operand has.
pub const HYPERCALL_PORT: u16 = 0xe4;
/// The FADT's sleep control register; sleep status is the next port.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// The FADT's reset register.
pub const RESET_PORT: u16 = 0x604;
/// What the guest writes to reset.
pub const RESET_VALUE: u8 = 0x06;
/// `SLP_TYP` of S5 in our `_S5` package.
pub const S5_SLEEP_TYPE: u8 = 5;

/// Whether all of these bytes, and there are some, lie in one of the windows that the guest gives to VMBus devices. There is no RAM in them.
pub fn is_in_window(gpa: u64, bytes: u64, ram_end: u64) -> bool {
    let Some(last) = bytes.checked_sub(1).and_then(|rest| gpa.checked_add(rest)) else { return false };
    [VMBUS_LOW_MMIO, vmbus_high_mmio(ram_end)].iter().any(|&(first, end)| gpa >= first && last <= end)
}

/// The window above RAM: a pure function of where RAM ends.
pub fn vmbus_high_mmio(ram_end: u64) -> (u64, u64) {
    let start = VMBUS_HIGH_MMIO_BASE.max(ram_end.next_multiple_of(1 << 30));
    (start, start + VMBUS_HIGH_MMIO_LEN - 1)
}
