//! Frames in messages.
//!
//! A guest puts several messages of a frame each into one send-buffer section, each begun at a multiple of the alignment that we told
//! it; the host gives each frame a range of a transfer-page packet of its own.

use std::ops::Range;

use super::info::PIECE_LEN;
use super::{HEADER_LEN, Message, ReceiveInfo, RndisError, TransmitInfo, kind, word};

/// Bytes of a frame's message in front of its per-packet information (`struct rndis_packet` behind type and length).
pub const PACKET_LEN: usize = 44;
/// Most bytes of per-packet information that we read; the pieces that NDIS knows fill less than half of it.
pub const MAX_INFO_LEN: usize = 512;
/// Frames of a message that guests are told of; Hyper-V's number. More would make the first of them wait.
pub const TOLD_FRAMES: u32 = 8;
/// Most frames of a message that we take: guests keep to what they are told, but an attacker would have us take 1,400 for one turn.
pub const MAX_FRAMES: u32 = 32;
/// Bytes that are fetched of a frame's message at once: all there is in front of the frame, as Linux builds it.
const HEAD_LEN: usize = PACKET_LEN + 4 * PIECE_LEN;

/// Where a frame for the guest begins in its message, whatever information goes with it, so that it can be received into its place
/// before anything is known of it.
pub const RECEIVE_HEADROOM: usize = (PACKET_LEN + ReceiveInfo::MOST * PIECE_LEN).next_multiple_of(16);

/// A frame of the guest's, and its place in what the guest sent. Nobody has looked at the frame's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The message.
    pub message: Range<usize>,
    /// The frame.
    pub data: Range<usize>,
    /// What the guest says about it.
    pub info: TransmitInfo,
}

/// The frames of an NVSP message, one after the other; ends at the first that makes no sense.
///
/// The bytes may be anywhere: they are asked for by offset. Each that matters is copied once.
pub struct Frames<C> {
    copy: C,
    at: usize,
    end: usize,
    left: u32,
}

impl<C: FnMut(usize, &mut [u8]) -> bool> Frames<C> {
    /// Frames in `len` bytes, of which `copy` fetches those at an offset, or says that they are not there.
    pub fn new(len: usize, copy: C) -> Frames<C> {
        Frames { copy, at: 0, end: len, left: MAX_FRAMES }
    }

    fn frame(&mut self) -> Result<Frame, RndisError> {
        let have = self.end - self.at;
        let mut head = [0; HEAD_LEN];
        let head = &mut head[..have.min(HEAD_LEN)];
        if head.len() < PACKET_LEN {
            return Err(RndisError::TooShort { kind: kind::PACKET, have, need: PACKET_LEN });
        }
        if !(self.copy)(self.at, head) {
            return Err(RndisError::Unreadable);
        }
        let head = Head::parse(head, have)?;
        let info = match head.pieces(self.at)? {
            None => TransmitInfo::default(),
            Some(Pieces::Here(bytes)) => TransmitInfo::parse(bytes)?,
            Some(Pieces::Elsewhere(range)) => {
                let mut bytes = [0; MAX_INFO_LEN];
                let bytes = &mut bytes[..range.len()];
                if !(self.copy)(range.start, bytes) {
                    return Err(RndisError::Unreadable);
                }
                TransmitInfo::parse(bytes)?
            }
        };
        let data = head.part(head.data_offset, head.data_len, self.at)?;
        let message = self.at..self.at + head.len;
        self.at = message.end;
        Ok(Frame { message, data, info })
    }
}

impl<C: FnMut(usize, &mut [u8]) -> bool> Iterator for Frames<C> {
    type Item = Result<Frame, RndisError>;

    fn next(&mut self) -> Option<Self::Item> {
        // What has no room for a type and a length is padding, but for the first message.
        if self.end - self.at < HEADER_LEN && (self.at > 0 || self.end == 0) {
            return None;
        }
        let frame = match self.left.checked_sub(1) {
            None => Err(RndisError::TooMany),
            Some(left) => {
                self.left = left;
                self.frame()
            }
        };
        if frame.is_err() {
            (self.at, self.end) = (0, 0);
        }
        Some(frame)
    }
}

/// The fields of a frame's message.
struct Head<'a> {
    bytes: &'a [u8],
    len: usize,
    data_offset: u32,
    data_len: u32,
    info_offset: u32,
    info_len: u32,
}

/// Where per-packet information is.
enum Pieces<'a> {
    Here(&'a [u8]),
    Elsewhere(Range<usize>),
}

impl<'a> Head<'a> {
    /// Reads the fields; `have` bytes are there in all.
    fn parse(bytes: &'a [u8], have: usize) -> Result<Head<'a>, RndisError> {
        let (kind, says) = (word(bytes, 0), word(bytes, 4));
        if kind != kind::PACKET {
            return Err(RndisError::UnknownKind(kind));
        }
        let len = says as usize;
        if !(PACKET_LEN..=have).contains(&len) {
            return Err(RndisError::Length { says, have });
        }
        let [data_offset, data_len, info_offset, info_len] = [8, 12, 28, 32].map(|at| word(bytes, at));
        Ok(Head { bytes, len, data_offset, data_len, info_offset, info_len })
    }

    /// A part of the message, which begins at `at`; the fields are no part.
    fn part(&self, offset: u32, length: u32, at: usize) -> Result<Range<usize>, RndisError> {
        let start = offset as usize + HEADER_LEN;
        let end = start.checked_add(length as usize);
        match end {
            Some(end) if start >= PACKET_LEN && end <= self.len => Ok(at + start..at + end),
            _ => Err(RndisError::Outside { offset, length, message: self.len }),
        }
    }

    /// Per-packet information, if there is any; the message begins at `at`.
    fn pieces(&self, at: usize) -> Result<Option<Pieces<'a>>, RndisError> {
        if self.info_offset == 0 || self.info_len == 0 {
            return Ok(None);
        }
        let range = self.part(self.info_offset, self.info_len, at)?;
        if range.len() > MAX_INFO_LEN {
            let (offset, length) = (self.info_offset, self.info_len);
            return Err(RndisError::Outside { offset, length, message: self.len });
        }
        Ok(Some(match self.bytes.get(range.start - at..range.end - at) {
            Some(bytes) => Pieces::Here(bytes),
            None => Pieces::Elsewhere(range),
        }))
    }
}

/// Appends the message in front of a frame of `data_len` bytes, as Linux builds it; the frame follows.
pub fn compose(info: &TransmitInfo, data_len: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + PACKET_LEN, 0);
    out.extend(info.pieces().flatten());
    let head = out.len() - start;
    let info_len = head - PACKET_LEN;
    fields(&mut out[start..start + PACKET_LEN], head, data_len, info_len);
    if info_len == 0 {
        // Linux says where information would be.
        out[start + 28] = (PACKET_LEN - HEADER_LEN) as u8;
    }
}

/// The message in front of a frame for the guest, whose data begins [`RECEIVE_HEADROOM`] after it.
pub fn header(data_len: usize, info: &ReceiveInfo) -> [u8; RECEIVE_HEADROOM] {
    header_at(RECEIVE_HEADROOM, data_len, info)
}

/// The same, with the data `data_at` bytes after the message's start; more than [`RECEIVE_HEADROOM`] if a VLAN tag was taken out.
pub fn header_at(data_at: usize, data_len: usize, info: &ReceiveInfo) -> [u8; RECEIVE_HEADROOM] {
    debug_assert!(data_at >= RECEIVE_HEADROOM);
    let mut bytes = [0; RECEIVE_HEADROOM];
    let mut info_len = 0;
    for (place, piece) in bytes[PACKET_LEN..].chunks_exact_mut(PIECE_LEN).zip(info.pieces()) {
        place.copy_from_slice(&piece);
        info_len += PIECE_LEN;
    }
    fields(&mut bytes[..PACKET_LEN], data_at, data_len, info_len);
    bytes
}

/// Bytes of a message for the guest with `data_len` bytes of data at `data_at`: what its range says.
pub const fn message_len(data_at: usize, data_len: usize) -> usize {
    data_at + data_len
}

/// Fills in the fields of a message whose data begins at `data_at`.
fn fields(bytes: &mut [u8], data_at: usize, data_len: usize, info_len: usize) {
    let info_offset = if info_len == 0 { 0 } else { PACKET_LEN - HEADER_LEN };
    let words = [
        kind::PACKET as usize,
        data_at + data_len,
        data_at - HEADER_LEN,
        data_len,
        0,
        0,
        0,
        info_offset,
        info_len,
    ];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&(word as u32).to_le_bytes());
    }
}

/// A frame from the host, as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The frame.
    pub data: &'a [u8],
    /// What the host says about it.
    pub info: ReceiveInfo,
}

impl<'a> Received<'a> {
    /// Reads a range of a transfer-page packet, with the checks of Linux and a few more.
    pub fn parse(bytes: &'a [u8]) -> Result<Received<'a>, RndisError> {
        let raw = Message::of(bytes)?;
        if raw.kind != kind::PACKET {
            return Err(RndisError::UnknownKind(raw.kind));
        }
        let fixed = PACKET_LEN - HEADER_LEN;
        let raw = raw.need(fixed)?;
        let data = raw.part(raw.at(0), raw.at(4), fixed)?;
        let info = raw.part(raw.at(20), raw.at(24), fixed)?;
        Ok(Received { data, info: ReceiveInfo::parse(info)? })
    }
}

#[cfg(test)]
mod tests;
