//! Answers that are short enough to need no room of their own: capacity, the list of units, and what is pending.

use super::condition::Condition;
use super::plan::Unit;
use super::sense::Sense;

/// What is pending is told, and is over with that: the caller takes it out of the condition.
pub(super) fn request_sense(condition: &Condition, descriptor: bool) -> Vec<u8> {
    let mut pending = condition.attentions;
    let sense = pending.take().unwrap_or(Sense::NONE);
    if descriptor { sense.to_descriptor().to_vec() } else { sense.to_fixed().to_vec() }
}

/// READ CAPACITY (10).
pub(super) fn capacity_10(unit: &Unit) -> Vec<u8> {
    let last = u32::try_from(unit.blocks - 1).unwrap_or(u32::MAX);
    [last.to_be_bytes(), unit.block_size.to_be_bytes()].concat()
}

/// READ CAPACITY (16).
pub(super) fn capacity_16(unit: &Unit) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(unit.blocks - 1).to_be_bytes());
    data[8..12].copy_from_slice(&unit.block_size.to_be_bytes());
    data[13] = unit.physical_exponent & 0xF;
    // LBPME and LBPRZ.
    data[14] = if unit.can_unmap { 0xC0 } else { 0 };
    data
}

/// REPORT LUNS.
pub(super) fn report_luns(luns: &[u8], select: u8) -> Result<Vec<u8>, Sense> {
    let luns = match select {
        0 | 2 => luns,
        // Well-known units only: there are none.
        1 => &[],
        _ => return Err(Sense::in_cdb(2)),
    };
    let mut data = Vec::from((8 * luns.len() as u32).to_be_bytes());
    data.extend([0; 4]);
    for &lun in luns {
        // Peripheral device addressing.
        data.extend([0, lun, 0, 0, 0, 0, 0, 0]);
    }
    Ok(data)
}
