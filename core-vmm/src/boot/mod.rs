//! From kernel file to the state in which the boot VP takes its first instruction.
//!
//! Two ways in: a bzImage by the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst), an ELF with a
//! `XEN_ELFNOTE_PHYS32_ENTRY` note by PVH (xen/include/public/arch-x86/hvm/start_info.h), or by its 64-bit entry if it is to find what [UEFI](efi) leaves,
//! of which PVH knows nothing. The files stay open, so that a
//! guest reset loads them again from inside the compartment.

pub mod acpi;
mod efi;
mod linux;
mod pvh;
mod reset;

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use linux_loader::loader::{
    KernelLoader, PvhBootCapability, bootparam::setup_header, bzimage::BzImage, elf::Elf,
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    layout,
    memory::{MemoryError, Ram},
};

/// What can be wrong with what is to be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {source}")]
    File {
        /// Kernel or initrd.
        what: &'static str,
        /// Its path.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Neither format was recognised.
    #[error(
        "kernel {0} is neither a bzImage nor an ELF file with a PVH entry note; give a Linux bzImage (vmlinuz) or a vmlinux built with CONFIG_PVH"
    )]
    Format(String),
    /// The loader refused.
    #[error("kernel {path} cannot be loaded: {reason}")]
    Load {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// A kernel that we cannot enter.
    #[error(
        "kernel {0} is a bzImage without a 64-bit entry (boot protocol 2.12 with XLF_KERNEL_64); give a 64-bit kernel"
    )]
    Not64(String),
    /// An ELF file that cannot be handed over to as UEFI does.
    #[error(
        "kernel {0} is an ELF file that is no 64-bit Linux kernel, and this VM hands over as UEFI does because it has a screen; give a bzImage (vmlinuz) or an x86-64 vmlinux, or take the screen away"
    )]
    NotEfi(String),
    /// RAM is too small.
    #[error("{what} of {need} bytes does not fit into guest memory; raise [machine] memory")]
    TooSmall {
        /// What did not fit.
        what: &'static str,
        /// Its size.
        need: u64,
    },
    /// Command line too long.
    #[error("kernel command line is {0} bytes long; Linux takes at most {max}", max = layout::CMDLINE_MAX - 1)]
    Cmdline(usize),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Boot protocol version from which `xloadflags` exist, and the flag for a 64-bit entry (boot.rst).
const PROTOCOL_2_12: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;

/// Where the initrd of every bzImage of the last fifteen years may end (`initrd_addr_max` is 0x7fffffff).
const INITRD_TOP: u64 = 0x8000_0000;
/// Room at the top of RAM that Linux takes in early boot besides its page array, in bytes: hash tables, per-CPU areas.
const EARLY_TABLES: u64 = 8 << 20;

/// How the boot VP starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit long mode, identity-mapped, `rsi` at the zero page.
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// 32-bit protected mode without paging, `ebx` at the start information.
    Pvh {
        /// First instruction.
        eip: u64,
    },
}

/// A kernel that has been loaded, to be entered by the 64-bit boot protocol.
struct Loaded {
    header: setup_header,
    /// First address behind what was loaded.
    end: u64,
    /// First address behind what it uses before it has looked at its memory map.
    needs: u64,
    /// First instruction.
    rip: u64,
}

/// A range of the guest's memory map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapEntry {
    pub start: u64,
    pub len: u64,
    pub kind: MapKind,
}

/// Kinds as in the E820 map; PVH uses the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    Ram = 1,
    Reserved = 2,
}

/// The open files and the command line of a guest.
#[derive(Debug)]
pub struct Payload {
    kernel: File,
    kernel_path: String,
    is_elf: bool,
    initrd: Option<(File, String)>,
    cmdline: String,
    efi: bool,
}

impl Payload {
    /// Opens everything; nothing is opened later. `efi`: the kernel is to find what UEFI leaves.
    pub fn open(kernel: &Path, initrd: Option<&Path>, cmdline: &str, efi: bool) -> Result<Self, BootError> {
        let open = |what, path: &Path| {
            File::open(path).map_err(|source| BootError::File {
                what,
                path: path.display().to_string(),
                source,
            })
        };
        if cmdline.len() >= layout::CMDLINE_MAX {
            return Err(BootError::Cmdline(cmdline.len()));
        }
        let mut file = open("kernel", kernel)?;
        let kernel_path = kernel.display().to_string();
        let mut magic = [0; 4];
        let is_elf = file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF";
        if !is_elf {
            let mut header = [0; 4];
            let found = file.seek(SeekFrom::Start(0x202)).is_ok() && file.read_exact(&mut header).is_ok();
            if !found || header != *b"HdrS" {
                return Err(BootError::Format(kernel_path));
            }
        }
        if is_elf && efi && elf_entry(&mut file).is_none() {
            return Err(BootError::NotEfi(kernel_path));
        }
        let initrd = match initrd {
            Some(path) => Some((open("initrd", path)?, path.display().to_string())),
            None => None,
        };
        Ok(Self { kernel: file, kernel_path, is_elf, initrd, cmdline: cmdline.to_owned(), efi })
    }

    /// Descriptors that stay open.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let initrd = self.initrd.as_ref().map(|(file, _)| file.as_raw_fd());
        std::iter::once(self.kernel.as_raw_fd()).chain(initrd).collect()
    }

    /// Memory that will be used at once, as `(gpa, len)`: where kernel and initrd are loaded, and what a kernel takes first. A
    /// hint, to prepare memory by; what cannot be told is left out.
    pub fn extents(&mut self, ram: &Ram) -> Vec<(u64, u64)> {
        let mut extents = if self.is_elf {
            elf_extents(&mut self.kernel).unwrap_or_default()
        } else {
            bzimage_extents(&mut self.kernel).unwrap_or_default()
        };
        if let Some((file, _)) = &mut self.initrd {
            let len = file.seek(SeekFrom::End(0)).unwrap_or_default();
            let top = ram.low_end().min(if self.is_elf { u64::MAX } else { INITRD_TOP });
            extents.push((top.saturating_sub(len), len));
        }
        // Linux describes every page with 64 bytes and takes them, and its other early tables, from the top.
        let early = ram.len() / 64 + EARLY_TABLES;
        extents.push((ram.end().saturating_sub(early), early));
        extents
    }

    /// Loads everything into `ram`, tables included.
    pub fn load(&mut self, ram: &Ram, vps: u32) -> Result<Entry, BootError> {
        let rsdp = acpi::write_tables(ram, vps)?;
        reset::write_vector(ram)?;
        self.write_cmdline(ram)?;
        let fail = |path: &str, e: &dyn std::fmt::Display| BootError::Load {
            path: path.to_owned(),
            reason: e.to_string(),
        };
        let high = Some(GuestAddress(layout::HIGH_MEMORY_START));
        if self.is_elf {
            let loaded = Elf::load(ram.map_ref(), None, &mut self.kernel, high)
                .map_err(|e| fail(&self.kernel_path, &e))?;
            if self.efi {
                let rip =
                    elf_entry(&mut self.kernel).ok_or_else(|| BootError::NotEfi(self.kernel_path.clone()))?;
                let end = loaded.kernel_end;
                return self.hand_over(
                    ram,
                    rsdp,
                    Loaded { header: linux::plain_header(), end, needs: end, rip },
                );
            }
            let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
                return Err(BootError::Format(self.kernel_path.clone()));
            };
            let initrd = self.load_initrd(ram, loaded.kernel_end, u64::from(u32::MAX))?;
            pvh::write_start_info(ram, rsdp, initrd)?;
            return Ok(Entry::Pvh { eip: entry.0 });
        }
        let loaded = BzImage::load(ram.map_ref(), None, &mut self.kernel, high)
            .map_err(|e| fail(&self.kernel_path, &e))?;
        let header = loaded.setup_header.ok_or_else(|| BootError::Format(self.kernel_path.clone()))?;
        if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BootError::Not64(self.kernel_path.clone()));
        }
        let end = linux::runtime_end(&header, loaded.kernel_load.0).max(loaded.kernel_end);
        if end > ram.low_end() {
            return Err(BootError::TooSmall { what: "the kernel, unpacked,", need: end });
        }
        let rip = loaded.kernel_load.0 + linux::ENTRY_64;
        self.hand_over(ram, rsdp, Loaded { header, end: loaded.kernel_end, needs: end, rip })
    }

    /// Puts everything else there that the 64-bit boot protocol wants.
    fn hand_over(&mut self, ram: &Ram, rsdp: u64, kernel: Loaded) -> Result<Entry, BootError> {
        let Loaded { header, end, needs, rip } = kernel;
        let max = match header.initrd_addr_max {
            0 if self.is_elf => u64::from(u32::MAX),
            0 => 0x37ff_ffff,
            max => u64::from(max),
        };
        let initrd = self.load_initrd(ram, needs, max)?;
        let efi = if self.efi { Some(efi::write_tables(ram, rsdp, end, initrd)?) } else { None };
        linux::write_zero_page(ram, header, rsdp, initrd, efi)?;
        linux::write_page_tables(ram)?;
        Ok(Entry::Linux64 { rip })
    }

    fn write_cmdline(&self, ram: &Ram) -> Result<(), BootError> {
        ram.write(layout::CMDLINE, self.cmdline.as_bytes())?;
        ram.write(layout::CMDLINE + self.cmdline.len() as u64, &[0])?;
        Ok(())
    }

    /// Places the initrd as high as it may be. Returns its address and size.
    fn load_initrd(&mut self, ram: &Ram, kernel_end: u64, max: u64) -> Result<Option<(u64, u64)>, BootError> {
        let Some((file, path)) = &mut self.initrd else { return Ok(None) };
        let io = |source| BootError::File { what: "initrd", path: path.clone(), source };
        let len = file.seek(SeekFrom::End(0)).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let top = ram.low_end().min(max.saturating_add(1));
        let too_small = BootError::TooSmall { what: "kernel and initrd together", need: kernel_end + len };
        let Some(start) = top.checked_sub(len).map(|s| s & !(layout::PAGE - 1)) else {
            return Err(too_small);
        };
        if start < kernel_end {
            return Err(too_small);
        }
        ram.map_ref()
            .read_exact_volatile_from(GuestAddress(start), file, len as usize)
            .map_err(|e| BootError::Load { path: path.clone(), reason: e.to_string() })?;
        Ok(Some((start, len)))
    }
}

/// Where a bzImage is loaded, and the end of its workspace, to which it first moves itself (boot.rst, `pref_address` and
/// `init_size`). Where it unpacks itself to is up to its address randomization.
fn bzimage_extents(file: &mut File) -> Option<Vec<(u64, u64)>> {
    let len = file.seek(SeekFrom::End(0)).ok()?;
    let mut fields = [0; 12];
    file.seek(SeekFrom::Start(0x258)).ok()?;
    file.read_exact(&mut fields).ok()?;
    let preferred = u64::from_le_bytes(fields[..8].try_into().ok()?);
    let size = u32::from_le_bytes(fields[8..].try_into().ok()?);
    let moved = preferred.saturating_add(u64::from(size)).saturating_sub(len);
    Some(vec![(layout::HIGH_MEMORY_START, len), (moved, len)])
}

/// Physical ranges of an ELF file's loadable segments. `None` if its headers make no sense; the loader says why.
fn elf_extents(file: &mut File) -> Option<Vec<(u64, u64)>> {
    let file_len = file.seek(SeekFrom::End(0)).ok()?;
    let (_, segments) = elf_segments(file)?;
    // What the file holds, not what it claims to need: the loader has not judged it yet.
    Some(segments.iter().map(|segment| (segment.gpa, segment.in_file.min(file_len))).collect())
}

/// Where an x86-64 kernel begins that was built to be entered with 1:1 page tables, as Linux' vmlinux is (`phys_startup_64` in
/// arch/x86/kernel/vmlinux.lds.S). `None`: it is something else.
fn elf_entry(file: &mut File) -> Option<u64> {
    /// Offsets in the header: class (2: 64 bits), machine (62: x86-64), entry.
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    const ENTRY: usize = 24;
    let (header, segments) = elf_segments(file)?;
    let entry = elf_word(&header, ENTRY)?;
    let is_inside = |s: &Segment| entry >= s.gpa && entry - s.gpa < s.in_file;
    (header[CLASS] == 2 && header[MACHINE..MACHINE + 2] == [62, 0] && segments.iter().any(is_inside))
        .then_some(entry)
}

/// A loadable segment of an ELF file.
struct Segment {
    /// Physical address.
    gpa: u64,
    /// Bytes that the file has of it.
    in_file: u64,
}

fn elf_word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Header and loadable segments of a 64-bit ELF file.
fn elf_segments(file: &mut File) -> Option<([u8; 64], Vec<Segment>)> {
    const LOAD: u32 = 1;
    const SEGMENTS_MAX: u16 = 16;
    let mut header = [0; 64];
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_exact(&mut header).ok()?;
    let table = elf_word(&header, 32)?;
    let count = u16::from_le_bytes([header[56], header[57]]).min(SEGMENTS_MAX);
    let mut segments = Vec::new();
    for i in 0..u64::from(count) {
        let mut segment = [0; 56];
        file.seek(SeekFrom::Start(table.checked_add(i * 56)?)).ok()?;
        file.read_exact(&mut segment).ok()?;
        if u32::from_le_bytes(segment[..4].try_into().ok()?) == LOAD {
            segments.push(Segment { gpa: elf_word(&segment, 24)?, in_file: elf_word(&segment, 32)? });
        }
    }
    Some((header, segments))
}

/// The memory map, the same for both boot protocols.
pub(crate) fn memory_map(ram: &Ram) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry { start: 0, len: layout::CONVENTIONAL_END, kind: MapKind::Ram },
        MapEntry {
            start: layout::CONVENTIONAL_END,
            len: layout::HIGH_MEMORY_START - layout::CONVENTIONAL_END,
            kind: MapKind::Reserved,
        },
    ];
    for s in ram.stretches() {
        let start = s.gpa.max(layout::HIGH_MEMORY_START);
        let end = s.gpa + s.len;
        if start < end {
            map.push(MapEntry { start, len: end - start, kind: MapKind::Ram });
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    /// A 64-bit ELF file with one segment of 64 bytes at 16 MiB.
    fn elf(machine: u8, entry: u64) -> File {
        let mut file = vec![0; 64 + 56 + 64];
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        file[16] = 2;
        file[18] = machine;
        file[20] = 1;
        let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(24, entry);
        put(32, 64);
        put(52, 64 | 56 << 16 | 1 << 32);
        // One segment: loaded, readable and executable, from byte 120 on, to 16 MiB.
        put(64, 1 | 5 << 32);
        put(72, 120);
        put(80, 16 << 20);
        put(88, 16 << 20);
        put(96, 64);
        put(104, 64);
        put(112, 1);
        let memfd = nix::sys::memfd::memfd_create(c"elf", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let mut made = File::from(memfd);
        made.write_all(&file).unwrap();
        made
    }

    fn open(file: &File, efi: bool) -> Result<Payload, BootError> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Payload::open(Path::new(&path), None, "console=ttyS0", efi)
    }

    #[test]
    fn a_linux_elf_is_entered_where_it_begins() {
        let file = elf(62, (16 << 20) + 8);
        let ram = Ram::new(64 << 20, false).unwrap();
        let entry = open(&file, true).unwrap().load(&ram, 1).unwrap();
        assert_eq!(entry, Entry::Linux64 { rip: (16 << 20) + 8 });
        // As arch/x86/kernel/setup.c looks for it.
        let mut signature = [0; 4];
        ram.read(layout::ZERO_PAGE + 0x1c0, &mut signature).unwrap();
        assert_eq!(&signature, b"EL64");
        let mut secure_boot = [0; 1];
        ram.read(layout::ZERO_PAGE + 0x1ec, &mut secure_boot).unwrap();
        assert_eq!(secure_boot, [2]);
        let table: u32 = ram.map_ref().read_obj(GuestAddress(layout::ZERO_PAGE + 0x1c4)).unwrap();
        assert_eq!(u64::from(table), layout::EFI_TABLES);
    }

    #[test]
    fn an_elf_that_is_no_linux_is_refused_if_it_is_to_find_uefi() {
        for file in [elf(3, 16 << 20), elf(62, 0xffff_ffff_8100_0000), elf(62, (16 << 20) + 64)] {
            assert!(matches!(open(&file, true), Err(BootError::NotEfi(_))));
            assert!(open(&file, false).is_ok(), "PVH may know it");
        }
    }
}
