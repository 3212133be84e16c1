//! What a unit says about itself: INQUIRY data (SPC-4 6.4, 7.8) and block limits (SBC-3 6.6).

use super::plan::{MAX_COMPARE, MAX_TRANSFER, MAX_WRITE_SAME_BLOCKS, Unit};
use super::sense::Sense;
use super::unmap;

/// Linux's storvsc looks at the vendor: only with this one does it let WRITE SAME through.
const VENDOR: &[u8; 8] = b"Msft    ";
const PRODUCT: &[u8; 16] = b"Bulkhead Disk   ";
const REVISION: &[u8; 4] = b"1.0 ";

/// SPC-4: Linux then asks for READ CAPACITY (16) and the VPD pages without being told to.
const VERSION: u8 = 0x06;

/// Standards that a unit follows: SAM-5, SPC-4, SBC-3, no version of them claimed.
const STANDARDS: [u16; 3] = [0x00A0, 0x0460, 0x04C0];
/// Bytes of standard data, with room for eight of them.
const STANDARD_LEN: usize = 96;

/// Peripheral qualifier 3, device type 1F: there is no unit here, and none can be.
const NO_UNIT: u8 = 0x7F;

const SUPPORTED: u8 = 0x00;
const SERIAL: u8 = 0x80;
const IDENTIFICATION: u8 = 0x83;
const BLOCK_LIMITS: u8 = 0xB0;
const CHARACTERISTICS: u8 = 0xB1;
const PROVISIONING: u8 = 0xB2;

/// Standard data of a unit.
pub fn standard() -> Vec<u8> {
    standard_with(0)
}

/// Standard data where there is no unit. storvsc takes every INQUIRY for a success and looks at the data, so an
/// error would make a ghost of a disk.
pub fn standard_of_no_unit() -> Vec<u8> {
    standard_with(NO_UNIT)
}

fn standard_with(peripheral: u8) -> Vec<u8> {
    let mut data = vec![0; STANDARD_LEN];
    data[0] = peripheral;
    data[2] = VERSION;
    // Response data format 2, the only one.
    data[3] = 2;
    data[4] = (STANDARD_LEN - 5) as u8;
    // CMDQUE: commands are queued.
    data[7] = 2;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    for (to, standard) in data[58..].chunks_exact_mut(2).zip(STANDARDS) {
        to.copy_from_slice(&standard.to_be_bytes());
    }
    data
}

/// A vital product data page.
pub fn page(unit: &Unit, code: u8) -> Result<Vec<u8>, Sense> {
    let body = match code {
        SUPPORTED => vec![SUPPORTED, SERIAL, IDENTIFICATION, BLOCK_LIMITS, CHARACTERISTICS, PROVISIONING],
        SERIAL => unit.serial.clone().into_bytes(),
        IDENTIFICATION => identification(unit),
        BLOCK_LIMITS => block_limits(unit),
        CHARACTERISTICS => characteristics(),
        PROVISIONING => provisioning(unit),
        _ => return Err(Sense::in_cdb(2)),
    };
    let mut page = vec![0, code];
    page.extend((body.len() as u16).to_be_bytes());
    page.extend(body);
    Ok(page)
}

fn identification(unit: &Unit) -> Vec<u8> {
    // Designator 1: NAA, locally assigned (type 3), binary.
    let mut body = vec![0x01, 0x03, 0, 8];
    body.extend(((unit.naa & (u64::MAX >> 4)) | 3 << 60).to_be_bytes());
    // Designator 2: T10 vendor identification, ASCII.
    body.extend([0x02, 0x01, 0, (VENDOR.len() + unit.serial.len()) as u8]);
    body.extend(VENDOR);
    body.extend(unit.serial.as_bytes());
    body
}

fn block_limits(unit: &Unit) -> Vec<u8> {
    let mut body = vec![0; 0x3C];
    let mut put =
        |offset: usize, bytes: &[u8]| body[offset - 4..offset - 4 + bytes.len()].copy_from_slice(bytes);
    let physical = 1u32 << unit.physical_exponent;
    // WSNZ: a WRITE SAME of 0 blocks is refused.
    put(4, &[1]);
    // MAXIMUM COMPARE AND WRITE LENGTH.
    put(5, &[(MAX_COMPARE / unit.block_size).min(0xFF) as u8]);
    put(6, &(physical as u16).to_be_bytes());
    put(8, &(MAX_TRANSFER / unit.block_size).to_be_bytes());
    put(36, &u64::from(MAX_WRITE_SAME_BLOCKS).to_be_bytes());
    if unit.can_unmap {
        put(20, &unmap::MAX_BLOCKS.to_be_bytes());
        put(24, &unmap::MAX_DESCRIPTORS.to_be_bytes());
        put(28, &physical.to_be_bytes());
        // UGAVALID, alignment 0.
        put(32, &(1u32 << 31).to_be_bytes());
    }
    body
}

fn characteristics() -> Vec<u8> {
    let mut body = vec![0; 0x3C];
    // Medium rotation rate 1: does not rotate.
    body[1] = 1;
    body
}

fn provisioning(unit: &Unit) -> Vec<u8> {
    if !unit.can_unmap {
        return vec![0; 4];
    }
    // LBPU, LBPWS, LBPWS10: UNMAP and both WRITE SAME deallocate; LBPRZ: deallocated blocks read as zeroes.
    // Thin.
    vec![0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::plan::tests::unit;

    #[test]
    fn standard_data_has_the_promised_length() {
        for data in [standard(), standard_of_no_unit()] {
            assert_eq!(data.len(), usize::from(data[4]) + 5);
        }
        assert_eq!(standard()[0], 0);
        assert_eq!(standard_of_no_unit()[0] >> 5, 3);
    }

    #[test]
    fn every_page_that_is_listed_exists_and_has_the_promised_length() {
        let unit = unit();
        let list = page(&unit, SUPPORTED).unwrap();
        for &code in &list[4..] {
            let page = page(&unit, code).unwrap();
            assert_eq!(page[1], code);
            assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])), page.len() - 4);
        }
        assert_eq!(page(&unit, 0x89), Err(Sense::in_cdb(2)));
    }

    #[test]
    fn limits_are_told_as_they_are() {
        let limits = page(&unit(), BLOCK_LIMITS).unwrap();
        assert_eq!(limits[5], 128);
        assert_eq!(limits[8..12], (MAX_TRANSFER / 512).to_be_bytes());
        assert_eq!(limits[20..24], unmap::MAX_BLOCKS.to_be_bytes());
        assert_eq!(limits[28..32], 8u32.to_be_bytes());
        let provisioning = page(&Unit { can_unmap: false, ..unit() }, PROVISIONING).unwrap();
        assert_eq!(provisioning[5], 0);
    }
}
