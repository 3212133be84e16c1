//! Is this file a kernel that can be booted here? Looks at magic numbers only; loading is the core's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::diagnostic::Report;
use super::files;
use super::reader::Located;

/// The two kinds of kernel file that boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// Linux's own compressed format (Documentation/arch/x86/boot.rst).
    BzImage,
    /// An ELF file with a PVH entry note (`XEN_ELFNOTE_PHYS32_ENTRY`).
    Pvh,
}

impl std::fmt::Display for KernelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BzImage => "bzImage",
            Self::Pvh => "ELF with a PVH note",
        })
    }
}

/// Reports what is wrong with the kernel at `path`.
pub(super) fn check(path: &Located<PathBuf>, report: &mut Report) -> Option<KernelKind> {
    let file = files::open_to_read(path, "the kernel", "install one, or correct the path", report)?;
    match recognise(&file) {
        Ok(kind) => Some(kind),
        Err(unfit) => {
            let message = format!("{} is {}", path.value.display(), unfit.what);
            report.error(path.span.clone(), message, unfit.fix);
            None
        }
    }
}

/// A file that cannot be booted: what it is instead, and what to do.
#[derive(Debug, PartialEq, Eq)]
struct Unfit {
    what: &'static str,
    fix: &'static str,
}

const USE_VMLINUZ: &str =
    "use a bzImage, such as Debian's /boot/vmlinuz-*, or an uncompressed vmlinux with CONFIG_PVH=y";

fn recognise(file: &impl ReadAt) -> Result<KernelKind, Unfit> {
    let unfit = |what| Err(Unfit { what, fix: USE_VMLINUZ });
    let mut start = [0; 0x240];
    let have = file.read_up_to(&mut start, 0);
    let start = &start[..have];
    if start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && start.get(0x202..0x206) == Some(b"HdrS") {
        return match start.get(0x211) {
            Some(loadflags) if loadflags & 1 == 1 => Ok(KernelKind::BzImage),
            _ => unfit("a zImage: a kernel from before 2.6"),
        };
    }
    match start {
        [] => unfit("empty"),
        [0x7f, b'E', b'L', b'F', ..] => elf(file, start),
        [0x1f, 0x8b, ..] => unfit("compressed by gzip, and no bzImage"),
        [0xfd, b'7', b'z', ..] => unfit("compressed by xz, and no bzImage"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => unfit("compressed by zstd, and no bzImage"),
        _ if start.get(0x38..0x3c) == Some(b"ARM\x64") => {
            unfit("a kernel for 64-bit Arm; guests here are x86-64")
        }
        [b'M', b'Z', ..] => unfit("an EFI program, and no bzImage"),
        _ => unfit("no kernel that can be booted: neither a bzImage nor ELF"),
    }
}

/// Class, byte order and machine, then every note segment.
fn elf(file: &impl ReadAt, start: &[u8]) -> Result<KernelKind, Unfit> {
    const EM_X86_64: u16 = 62;
    const PT_NOTE: u32 = 4;
    const PROGRAM_HEADER: u64 = 56;
    let unfit = |what| Err(Unfit { what, fix: USE_VMLINUZ });
    let number =
        |offset: usize| start.get(offset..offset + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    if start.get(4..6) != Some(&[2, 1]) || number(18) != EM_X86_64 {
        return unfit("an ELF file, but not for x86-64");
    }
    let table = start.get(32..40).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    for index in 0..u64::from(number(56)) {
        let mut header = [0; PROGRAM_HEADER as usize];
        let Some(offset) = table.checked_add(index * PROGRAM_HEADER) else { break };
        if file.read_up_to(&mut header, offset) < header.len() {
            break;
        }
        let field = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let kind = header[..4].try_into().map_or(0, u32::from_le_bytes);
        if kind == PT_NOTE && has_pvh_note(file, field(8), field(32)) {
            return Ok(KernelKind::Pvh);
        }
    }
    unfit("an ELF file without a PVH note: it says nowhere how to enter it")
}

/// Walks the notes of a segment: three words (sizes of name and content, type), then both padded to four.
fn has_pvh_note(file: &impl ReadAt, offset: u64, length: u64) -> bool {
    const PHYS32_ENTRY: u32 = 18;
    /// No kernel has more than a few hundred bytes of notes.
    const MOST: usize = 64 * 1024;
    let mut notes = vec![0; usize::try_from(length).unwrap_or(MOST).min(MOST)];
    let have = file.read_up_to(&mut notes, offset);
    let mut rest = &notes[..have];
    while let Some((header, after)) = rest.split_at_checked(12) {
        let word = |at: usize| header[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let padded = |size: u32| (size as usize).next_multiple_of(4);
        if word(8) == PHYS32_ENTRY && after.starts_with(b"Xen\0") {
            return true;
        }
        let Some(next) = after.get(padded(word(0)) + padded(word(4))..) else { return false };
        rest = next;
    }
    false
}

/// Reads at an offset; short at the end of the file, or where reading fails.
trait ReadAt {
    fn read_up_to(&self, into: &mut [u8], offset: u64) -> usize;
}

impl ReadAt for File {
    fn read_up_to(&self, into: &mut [u8], offset: u64) -> usize {
        let mut have = 0;
        while have < into.len() {
            match self.read_at(&mut into[have..], offset + have as u64) {
                Ok(0) | Err(_) => break,
                Ok(n) => have += n,
            }
        }
        have
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ReadAt for Vec<u8> {
        fn read_up_to(&self, into: &mut [u8], offset: u64) -> usize {
            let Some(rest) = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)) else {
                return 0;
            };
            let have = rest.len().min(into.len());
            into[..have].copy_from_slice(&rest[..have]);
            have
        }
    }

    fn bzimage() -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[..2].copy_from_slice(b"MZ");
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x211] = 1;
        file
    }

    /// An ELF header, one PT_NOTE program header, and two notes, the second of `kind`.
    fn elf_with_note(kind: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[18] = 62;
        file[32] = 64;
        file[56] = 1;
        file[64] = 4;
        file[64 + 8] = 120;
        let mut notes = Vec::new();
        for (name, kind, content) in [(&b"GNU\0"[..], 3, &[1_u8; 6][..]), (b"Xen\0", kind, &[0; 4])] {
            notes.extend((name.len() as u32).to_le_bytes());
            notes.extend((content.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name);
            notes.extend(content);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        file[64 + 32] = notes.len() as u8;
        file.extend(notes);
        file
    }

    #[test]
    fn both_kinds_are_recognised() {
        assert_eq!(recognise(&bzimage()), Ok(KernelKind::BzImage));
        assert_eq!(recognise(&elf_with_note(18)), Ok(KernelKind::Pvh));
    }

    #[test]
    fn other_files_are_named_for_what_they_are() {
        let what = |file: Vec<u8>| recognise(&file).unwrap_err().what;
        assert_eq!(what(vec![]), "empty");
        assert_eq!(what(b"hello".to_vec()), "no kernel that can be booted: neither a bzImage nor ELF");
        assert_eq!(what(vec![0x1f, 0x8b, 8]), "compressed by gzip, and no bzImage");
        assert_eq!(what(b"MZ".to_vec()), "an EFI program, and no bzImage");
        assert_eq!(
            what(elf_with_note(17)),
            "an ELF file without a PVH note: it says nowhere how to enter it"
        );
        let mut arm = elf_with_note(18);
        arm[18] = 183;
        assert_eq!(what(arm), "an ELF file, but not for x86-64");
    }

    #[test]
    fn lying_headers_end_the_search() {
        let mut file = elf_with_note(17);
        file[64 + 32..64 + 40].fill(0xff); // an endless note segment
        file[120..128].fill(0xff); // whose first note has endless parts
        assert!(recognise(&file).is_err());
        let mut file = elf_with_note(18);
        file[32..40].fill(0xff); // program headers beyond the file
        file[56..58].fill(0xff);
        assert!(recognise(&file).is_err());
    }
}
