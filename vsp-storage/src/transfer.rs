//! From a packet's list of guest pages to a buffer.

use std::sync::Arc;

use thiserror::Error;
use vsp::vmbus::gpadl::Limits;
use vsp::vmbus::packet::{GpaRange, PacketError, PacketHeader, PacketType};
use vsp::{GuestBuffer, GuestRam, RamError};

use crate::scsi::plan::MAX_TRANSFER;

/// What a packet may name. storvsc sends one range; its pages are those of the largest transfer, and one more
/// where the buffer does not begin at a page.
pub const LIMITS: Limits = Limits { ranges: 64, pages: MAX_TRANSFER / 4096 + 64 };

/// A page list that cannot be used. The guest is at fault.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The packet's list is malformed.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// It names what is not RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// The buffer that a packet names, at most `limit` bytes of it; `None` if it names none.
pub fn buffer(
    ram: &Arc<GuestRam>,
    header: &PacketHeader,
    bytes: &[u8],
    limit: u32,
) -> Result<Option<GuestBuffer>, TransferError> {
    if header.packet_type != PacketType::GPA_DIRECT {
        return Ok(None);
    }
    let ranges = header.gpa_ranges(bytes, LIMITS)?;
    let pieces = ranges.flat_map(GpaRange::pieces);
    let mut buffer = GuestBuffer::new(ram, pieces.map(|(gpa, len)| (gpa, len.into())))?;
    buffer.truncate(limit as usize);
    Ok(Some(buffer))
}
