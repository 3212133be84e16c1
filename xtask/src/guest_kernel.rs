//! Takes the ELF kernel (with its PVH note) out of a distribution's bzImage.
//!
//! The setup header (Documentation/arch/x86/boot.rst) says where the compressed payload lies; the payload's first
//! bytes say which program unpacks it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Bytes of the setup header that are used here, all little-endian.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Writes the ELF image inside `bzimage` to `elf`.
pub fn extract(bzimage: &Path, elf: &Path) -> Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("reading {}", bzimage.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    let program = decompressor(payload)?;
    // Every format but gzip is followed by four bytes with the unpacked size, which are not part of it.
    let payload = if program[0] == "gzip" { payload } else { &payload[..payload.len() - 4] };
    let packed = elf.with_extension("packed");
    fs::write(&packed, payload)?;
    let output = Command::new(program[0])
        .args(&program[1..])
        .stdin(fs::File::open(&packed)?)
        .stdout(fs::File::create(elf)?)
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("starting {}", program[0]))?;
    fs::remove_file(&packed)?;
    let mut start = [0; 4];
    std::io::Read::read_exact(&mut fs::File::open(elf)?, &mut start)
        .ok()
        .filter(|()| start == *b"\x7fELF")
        .with_context(|| format!("{} gave no ELF: {}", program[0], String::from_utf8_lossy(&output.stderr)))?;
    Ok(())
}

fn payload(image: &[u8]) -> Result<&[u8]> {
    ensure!(image.get(MAGIC..MAGIC + 4) == Some(b"HdrS"), "no setup header");
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let protected_mode = (usize::from(image[SETUP_SECTORS]) + 1) * 512;
    let start = protected_mode + word(PAYLOAD_OFFSET)?;
    let length = word(PAYLOAD_LENGTH)?;
    ensure!(length > 8, "empty payload");
    image.get(start..start + length).context("the payload lies outside the file")
}

fn decompressor(payload: &[u8]) -> Result<&'static [&'static str]> {
    Ok(match payload {
        [0x1f, 0x8b, ..] => &["gzip", "-dc"],
        [0xfd, b'7', b'z', b'X', b'Z', ..] => &["xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dc", "--no-progress"],
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "-dc"],
        _ => bail!("unknown compression {:02x?}", &payload[..6]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_by_the_setup_header() {
        let mut image = vec![0; 2048];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&10u32.to_le_bytes());
        image[1040..1044].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        let payload = payload(&image).unwrap();
        assert_eq!(payload.len(), 10);
        assert_eq!(decompressor(payload).unwrap()[0], "zstd");
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut image = vec![0; 1024];
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&image).is_err());
        assert!(payload(b"short").is_err());
    }
}
