//! What UEFI firmware leaves for an operating system that it has started: a system table, a table of runtime services, a memory map.
//!
//! There is no firmware. The guest's kernel is told that there was one, because some of its drivers tell Hyper-V's two kinds of machines apart by that
//! (`efi_enabled(EFI_BOOT)` in drivers/hv/vmbus_drv.c and drivers/video/fbdev/hyperv_fb.c). Of the runtime services only the one that a kernel insists on does
//! anything, SetVirtualAddressMap (a kernel that fails in it logs an error, `__efi_enter_virtual_mode` in arch/x86/platform/efi/efi.c); all others answer that
//! they are not supported, and a table says so beforehand. So the guest still switches itself off and on by ACPI, and a kernel that it starts itself
//! (kexec, a crash kernel) finds all of it where it was: it lies in memory that no kernel uses.
//!
//! Layouts are those of the UEFI specification 2.10: tables in chapters 4.2 to 4.6, memory descriptors in 7.2.3, calling convention in 2.3.4.

use super::{BootError, linux::EfiInfo};
use crate::{
    layout::{self, PAGE},
    memory::{Ram, Stretch},
};

/// `EFI64_LOADER_SIGNATURE` of the Linux boot protocol.
const LOADER_SIGNATURE: [u8; 4] = *b"EL64";

const SYSTEM_TABLE_SIGNATURE: u64 = u64::from_le_bytes(*b"IBI SYST");
const RUNTIME_SERVICES_SIGNATURE: u64 = u64::from_le_bytes(*b"RUNTSERV");
/// UEFI 2.7, which has the table of supported services (2.8 added nothing that is here).
const REVISION: u32 = 2 << 16 | 70;
const FIRMWARE_REVISION: u32 = 1;
/// What the guest's log says who made it.
const VENDOR: &str = "Bulkhead";

/// `EFI_ACPI_20_TABLE_GUID` and `EFI_RT_PROPERTIES_TABLE_GUID`, as in memory.
const ACPI_20: [u8; 16] =
    [0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81];
const RT_PROPERTIES: [u8; 16] =
    [0x8a, 0x91, 0x66, 0xeb, 0xef, 0x7e, 0x2a, 0x40, 0x84, 0x2e, 0x93, 0x1d, 0x21, 0xc3, 0x8a, 0xe9];
/// `EFI_RT_SUPPORTED_SET_VIRTUAL_ADDRESS_MAP`, the only one that is.
const RT_SUPPORTED: u32 = 0x80;

/// Where things lie in the data pages.
const SYSTEM_TABLE: u64 = 0;
const RUNTIME_SERVICES: u64 = 0x80;
const CONFIGURATION: u64 = 0x180;
const RT_PROPERTIES_TABLE: u64 = 0x1c0;
/// Linux looks at 200 bytes from here on (`efi_systab_report_header`).
const VENDOR_NAME: u64 = 0x200;
const MEMORY_MAP: u64 = PAGE;
/// Data pages, and pages of code behind them.
const DATA_PAGES: u64 = 2;
const CODE_PAGES: u64 = 1;

/// Bytes of a table header, and of the two tables with it.
const HEADER: usize = 24;
const SYSTEM_TABLE_SIZE: usize = 120;
const RUNTIME_SERVICES_SIZE: usize = 136;
/// Runtime services, and which of them is SetVirtualAddressMap.
const SERVICES: usize = 14;
const SET_VIRTUAL_ADDRESS_MAP: usize = 4;

/// SetVirtualAddressMap: nothing has to be moved, since both functions work anywhere. `endbr64` is for kernels that want to see one where they
/// call to, and nothing to all others.
const SUCCEED: [u8; 7] = [
    0xf3, 0x0f, 0x1e, 0xfa, // endbr64
    0x31, 0xc0, // xor eax, eax: EFI_SUCCESS
    0xc3, // ret
];
/// All others.
const REFUSE: [u8; 15] = [
    0xf3, 0x0f, 0x1e, 0xfa, // endbr64
    0x48, 0xb8, 3, 0, 0, 0, 0, 0, 0, 0x80, // mov rax, EFI_UNSUPPORTED
    0xc3, // ret
];
/// Where the second function lies in the page of code.
const REFUSE_AT: u64 = 0x10;

/// Bytes of a memory descriptor. It has 40; firmware leaves room, so that nobody takes that for granted.
const DESCRIPTOR: usize = 48;
const DESCRIPTOR_VERSION: u32 = 1;

/// `EFI_MEMORY_TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Reserved = 0,
    LoaderCode = 1,
    LoaderData = 2,
    RuntimeCode = 5,
    RuntimeData = 6,
    Conventional = 7,
    AcpiReclaim = 9,
}

impl Kind {
    /// `EFI_MEMORY_UC`, `WC`, `WT` and `WB`: what RAM can do. `EFI_MEMORY_RUNTIME`: has to be mapped for the services to work.
    fn attributes(self) -> u64 {
        const RAM: u64 = 0xf;
        const RUNTIME: u64 = 1 << 63;
        match self {
            Self::Reserved => 0,
            Self::RuntimeCode | Self::RuntimeData => RAM | RUNTIME,
            Self::LoaderCode | Self::LoaderData | Self::Conventional | Self::AcpiReclaim => RAM,
        }
    }
}

/// An entry of the memory map: first address, first address behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    kind: Kind,
}

/// Writes everything. `kernel_end`: the kernel lies from [`layout::HIGH_MEMORY_START`] to there; `initrd` as address and length.
pub fn write_tables(
    ram: &Ram,
    rsdp: u64,
    kernel_end: u64,
    initrd: Option<(u64, u64)>,
) -> Result<EfiInfo, BootError> {
    let at = |offset: u64| layout::EFI_TABLES + offset;
    let code = at(DATA_PAGES * PAGE);
    let map: Vec<u8> = memory_map(ram.stretches(), kernel_end, initrd).iter().flat_map(descriptor).collect();
    if map.len() as u64 > (DATA_PAGES - 1) * PAGE {
        return Err(BootError::TooSmall { what: "the memory map", need: map.len() as u64 });
    }
    for (offset, bytes) in [
        (SYSTEM_TABLE, system_table()),
        (RUNTIME_SERVICES, runtime_services(code)),
        (CONFIGURATION, [entry(ACPI_20, rsdp), entry(RT_PROPERTIES, at(RT_PROPERTIES_TABLE))].concat()),
        (RT_PROPERTIES_TABLE, rt_properties()),
        (VENDOR_NAME, VENDOR.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()),
    ] {
        ram.write(at(offset), &bytes)?;
    }
    ram.write(at(MEMORY_MAP), &map)?;
    ram.write(code, &SUCCEED)?;
    ram.write(code + REFUSE_AT, &REFUSE)?;
    Ok(EfiInfo {
        signature: u32::from_le_bytes(LOADER_SIGNATURE),
        system_table: at(SYSTEM_TABLE) as u32,
        memory_map: at(MEMORY_MAP) as u32,
        memory_map_size: map.len() as u32,
        descriptor_size: DESCRIPTOR as u32,
        descriptor_version: DESCRIPTOR_VERSION,
    })
}

/// A table with its header, whose checksum is over all of it with zeroes in the checksum's place.
fn with_header(signature: u64, size: usize, words: &[u64]) -> Vec<u8> {
    let mut table = Vec::with_capacity(size);
    table.extend(signature.to_le_bytes());
    table.extend(REVISION.to_le_bytes());
    table.extend((size as u32).to_le_bytes());
    table.resize(HEADER, 0);
    table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    debug_assert_eq!(table.len(), size);
    let sum = crc32(&table);
    table[16..20].copy_from_slice(&sum.to_le_bytes());
    table
}

/// `EFI_SYSTEM_TABLE` after ExitBootServices: no consoles, no boot services.
fn system_table() -> Vec<u8> {
    let at = |offset: u64| layout::EFI_TABLES + offset;
    let consoles = [0; 6];
    let boot_services = 0;
    let words = [
        &[at(VENDOR_NAME), u64::from(FIRMWARE_REVISION)][..],
        &consoles,
        &[at(RUNTIME_SERVICES), boot_services, 2, at(CONFIGURATION)],
    ];
    with_header(SYSTEM_TABLE_SIGNATURE, SYSTEM_TABLE_SIZE, &words.concat())
}

/// `EFI_RUNTIME_SERVICES`.
fn runtime_services(code: u64) -> Vec<u8> {
    let mut services = [code + REFUSE_AT; SERVICES];
    services[SET_VIRTUAL_ADDRESS_MAP] = code;
    with_header(RUNTIME_SERVICES_SIGNATURE, RUNTIME_SERVICES_SIZE, &services)
}

/// `EFI_CONFIGURATION_TABLE`, one entry.
fn entry(guid: [u8; 16], table: u64) -> Vec<u8> {
    [&guid[..], &table.to_le_bytes()].concat()
}

/// `EFI_RT_PROPERTIES_TABLE`: version, length, services.
fn rt_properties() -> Vec<u8> {
    [&1u16.to_le_bytes()[..], &8u16.to_le_bytes(), &RT_SUPPORTED.to_le_bytes()].concat()
}

/// `EFI_MEMORY_DESCRIPTOR`.
fn descriptor(range: &Range) -> Vec<u8> {
    let virtual_start = 0u64;
    let words = [
        range.kind as u64,
        range.start,
        virtual_start,
        (range.end - range.start) / PAGE,
        range.kind.attributes(),
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(DESCRIPTOR, 0);
    bytes
}

/// All of RAM in whole pages. What [`super::memory_map`] says is RAM is RAM here, too, and what it keeps from the kernel is kept here.
fn memory_map(stretches: &[Stretch], kernel_end: u64, initrd: Option<(u64, u64)>) -> Vec<Range> {
    let data = layout::EFI_TABLES;
    let code = data + DATA_PAGES * PAGE;
    let end = code + CODE_PAGES * PAGE;
    // With the boot protocol's own pages in it.
    let low = layout::CONVENTIONAL_END / PAGE * PAGE;
    // The page with the code at the reset vector.
    let top = layout::RESET_VECTOR / PAGE * PAGE;
    let mut map: Vec<Range> = [
        (0, low, Kind::LoaderData),
        (low, data, Kind::Reserved),
        (data, code, Kind::RuntimeData),
        (code, end, Kind::RuntimeCode),
        (end, layout::ACPI_START, Kind::Reserved),
        (layout::ACPI_START, top, Kind::AcpiReclaim),
        (top, layout::HIGH_MEMORY_START, Kind::Reserved),
    ]
    .map(|(start, end, kind)| Range { start, end, kind })
    .into();
    let mut taken = vec![Range {
        start: layout::HIGH_MEMORY_START,
        end: kernel_end.next_multiple_of(PAGE),
        kind: Kind::LoaderCode,
    }];
    taken.extend(initrd.map(|(start, len)| Range {
        start: start / PAGE * PAGE,
        end: (start + len).next_multiple_of(PAGE),
        kind: Kind::LoaderData,
    }));
    for stretch in stretches {
        let (first, end) = (stretch.gpa.max(layout::HIGH_MEMORY_START), stretch.gpa + stretch.len);
        let is_here = |range: &&Range| range.start >= first && range.end <= end && range.start < range.end;
        let mut at = first;
        for range in taken.iter().filter(is_here) {
            if at < range.start {
                map.push(Range { start: at, end: range.start, kind: Kind::Conventional });
            }
            map.push(*range);
            at = range.end;
        }
        if at < end {
            map.push(Range { start: at, end, kind: Kind::Conventional });
        }
    }
    map
}

/// The checksum of EFI tables: CRC-32 as in Ethernet.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        boot::{MapKind, acpi, reset},
        layout::{HIGH_RAM_START, LOW_RAM_END},
    };

    const KERNEL_END: u64 = 0x90_1234;
    const INITRD: (u64, u64) = (0x3e0_0000, 0x1e_f123);

    fn word(ram: &Ram, at: u64) -> u64 {
        let mut bytes = [0; 8];
        ram.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Reads the map as a kernel does.
    fn map_of(ram: &Ram, info: &EfiInfo) -> Vec<(u32, u64, u64, u64)> {
        let count = info.memory_map_size / info.descriptor_size;
        (0..u64::from(count))
            .map(|n| {
                let at = u64::from(info.memory_map) + n * u64::from(info.descriptor_size);
                let pages = word(ram, at + 24);
                (word(ram, at) as u32, word(ram, at + 8), pages * PAGE, word(ram, at + 32))
            })
            .collect()
    }

    #[test]
    fn checksums_are_the_usual_ones() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_kernel_finds_its_tables() {
        let ram = Ram::new(64 << 20, false).unwrap();
        let rsdp = acpi::write_tables(&ram, 2).unwrap();
        let info = write_tables(&ram, rsdp, KERNEL_END, Some(INITRD)).unwrap();
        assert_eq!(&info.signature.to_le_bytes(), b"EL64");
        let system = u64::from(info.system_table);
        let mut head = [0; SYSTEM_TABLE_SIZE];
        ram.read(system, &mut head).unwrap();
        assert_eq!(&head[..8], b"IBI SYST");
        let sum = u32::from_le_bytes(head[16..20].try_into().unwrap());
        head[16..20].fill(0);
        assert_eq!(sum, crc32(&head));
        let vendor = word(&ram, word(&ram, system + 24));
        assert_eq!(vendor.to_le_bytes(), [b'B', 0, b'u', 0, b'l', 0, b'k', 0]);
        let runtime = word(&ram, system + 88);
        assert_eq!(&word(&ram, runtime).to_le_bytes(), b"RUNTSERV");
        let mut code = [0; 7];
        ram.read(word(&ram, runtime + 24 + 8 * SET_VIRTUAL_ADDRESS_MAP as u64), &mut code).unwrap();
        assert_eq!(code, SUCCEED);
        let (count, tables) = (word(&ram, system + 104), word(&ram, system + 112));
        assert_eq!(count, 2);
        assert_eq!(word(&ram, tables + 16), rsdp);
        let properties = word(&ram, tables + 24 + 16);
        assert_eq!(word(&ram, properties), 1 | 8 << 16 | u64::from(RT_SUPPORTED) << 32);
    }

    #[test]
    fn services_and_their_tables_are_mapped_for_their_calls() {
        let ram = Ram::new(64 << 20, false).unwrap();
        let info = write_tables(&ram, layout::ACPI_START, KERNEL_END, None).unwrap();
        let runtime = word(&ram, u64::from(info.system_table) + 88);
        let kind = |gpa: u64| {
            let map = map_of(&ram, &info);
            let (kind, .., attributes) =
                map.into_iter().find(|(_, start, len, _)| (*start..start + len).contains(&gpa)).unwrap();
            (kind, attributes >> 63)
        };
        for service in 0..SERVICES as u64 {
            let function = word(&ram, runtime + 24 + 8 * service);
            assert_eq!(kind(function), (Kind::RuntimeCode as u32, 1));
        }
        for table in [u64::from(info.system_table), runtime, word(&ram, u64::from(info.system_table) + 112)] {
            assert_eq!(kind(table), (Kind::RuntimeData as u32, 1));
        }
        assert_eq!(kind(layout::ACPI_START).0, Kind::AcpiReclaim as u32);
        assert_eq!(kind(layout::RESET_VECTOR).0, Kind::Reserved as u32);
        assert_eq!(kind(layout::ZERO_PAGE).0, Kind::LoaderData as u32);
        assert_eq!(kind(layout::HIGH_MEMORY_START).0, Kind::LoaderCode as u32);
    }

    #[test]
    fn the_map_is_the_other_map_in_whole_pages() {
        for bytes in [64 << 20, LOW_RAM_END, LOW_RAM_END + (2 << 20)] {
            let ram = Ram::new(bytes, false).unwrap();
            let info = write_tables(&ram, layout::ACPI_START, KERNEL_END, Some(INITRD)).unwrap();
            let map = map_of(&ram, &info);
            assert!(map.iter().all(|(_, start, len, _)| start.is_multiple_of(PAGE) && *len > 0));
            assert!(map.windows(2).all(|two| two[0].1 + two[0].2 <= two[1].1), "in order: {map:?}");
            assert_eq!(map.iter().map(|(_, _, len, _)| len).sum::<u64>(), bytes, "everything is in it");
            let is_ram = |kind: u32| matches!(kind, 1 | 2 | 7);
            for entry in crate::boot::memory_map(&ram) {
                let (first, last) =
                    (entry.start.next_multiple_of(PAGE), (entry.start + entry.len) / PAGE * PAGE - 1);
                for gpa in [first, last] {
                    let found =
                        map.iter().find(|(_, start, len, _)| (*start..start + len).contains(&gpa)).unwrap();
                    // Tables are kept, if not as reserved.
                    assert_eq!(is_ram(found.0), entry.kind == MapKind::Ram, "{gpa:#x}: {found:?}");
                }
            }
            let kinds: Vec<u32> = map.iter().skip(7).map(|(kind, ..)| *kind).collect();
            assert_eq!(kinds[..4], [1, 7, 2, 7], "kernel, free, initrd, free");
            assert_eq!(kinds.len(), if bytes > LOW_RAM_END { 5 } else { 4 });
            if bytes > LOW_RAM_END {
                assert_eq!(map.last().map(|m| (m.1, m.2)), Some((HIGH_RAM_START, bytes - LOW_RAM_END)));
            }
        }
    }

    #[test]
    fn an_initrd_at_the_end_of_ram_leaves_nothing_behind_it() {
        let ram = Ram::new(64 << 20, false).unwrap();
        let initrd = ((64 << 20) - 0x2000, 0x1fff);
        let info = write_tables(&ram, layout::ACPI_START, KERNEL_END, Some(initrd)).unwrap();
        let last = *map_of(&ram, &info).last().unwrap();
        assert_eq!((last.0, last.1, last.2), (2, (64 << 20) - 0x2000, 0x2000));
    }

    #[test]
    fn nothing_else_lies_there() {
        let ram = Ram::new(64 << 20, false).unwrap();
        acpi::write_tables(&ram, crate::setup::MAX_VPS).unwrap();
        reset::write_vector(&ram).unwrap();
        let mut pages = vec![0; ((DATA_PAGES + CODE_PAGES) * PAGE) as usize];
        ram.read(layout::EFI_TABLES, &mut pages).unwrap();
        assert!(pages.iter().all(|byte| *byte == 0));
        const { assert!(layout::EFI_TABLES + (DATA_PAGES + CODE_PAGES) * PAGE <= layout::ACPI_START) };
        // A PC's option ROMs begin with 55 AA at a multiple of 2 KiB; `probe_roms` in arch/x86/kernel/probe_roms.c looks for them here.
        write_tables(&ram, layout::ACPI_START, KERNEL_END, None).unwrap();
        ram.read(layout::EFI_TABLES, &mut pages).unwrap();
        assert!(pages.chunks(2048).all(|half| half[..2] != [0x55, 0xaa]));
    }
}
