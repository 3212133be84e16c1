//! The header in front of each frame (`struct virtio_net_hdr_v1`; virtio 1.2, 5.1.6): what a TAP understands, with a count of buffers behind
//! it. It goes through in both directions; what it says is checked on the way, against what was agreed on and against the frame's own
//! headers. The host's kernel would bear with more, and must not have to. Pure.

use crate::backend::{Offloads, VnetHeader};
use crate::headers::{ETHERNET_LEN, IP6_LEN, Ip, Layout, TCP};
use crate::offload::receive::Complete;
use crate::offload::transmit::{MAX_IP, MAX_MSS, MIN_MSS, TCP_CHECKSUM, TCP_LEN, TransmitError};

/// Longest header, in bytes.
pub const MOST: usize = 12;

/// What is left to do to a frame of the driver's, as far as the backend is to believe it. `header` are the first bytes of the header,
/// `head` the first ones of the frame, 256 or all of `frame_len`.
pub fn transmit(
    header: &[u8; VnetHeader::LEN],
    head: &[u8],
    frame_len: usize,
    agreed: Offloads,
) -> Result<VnetHeader, TransmitError> {
    if frame_len < ETHERNET_LEN || head.len() < ETHERNET_LEN {
        return Err(TransmitError::Runt(frame_len));
    }
    let said = VnetHeader::from_bytes(header);
    if said.flags & VnetHeader::NEEDS_CSUM == 0 {
        // Segments without checksums are nothing that anybody could make. Everything else is of no meaning here.
        let plain = said.gso_type == VnetHeader::GSO_NONE;
        return if plain { Ok(VnetHeader::default()) } else { Err(TransmitError::Contradiction) };
    }
    if !agreed.checksum {
        return Err(TransmitError::NotOffered);
    }
    let (start, offset) = (usize::from(said.csum_start), usize::from(said.csum_offset));
    if start < ETHERNET_LEN || start + offset + 2 > frame_len {
        return Err(TransmitError::Contradiction);
    }
    if said.gso_type == VnetHeader::GSO_NONE {
        let VnetHeader { csum_start, csum_offset, .. } = said;
        let flags = VnetHeader::NEEDS_CSUM;
        return Ok(VnetHeader { flags, csum_start, csum_offset, ..VnetHeader::default() });
    }
    segments(&said, head, frame_len, agreed)
}

/// A long frame: of TCP, whole, with its headers where the driver says.
fn segments(
    said: &VnetHeader,
    head: &[u8],
    frame_len: usize,
    agreed: Offloads,
) -> Result<VnetHeader, TransmitError> {
    let (ip, offered) = match said.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_TCPV4 => (Ip::V4, agreed.tso4),
        VnetHeader::GSO_TCPV6 => (Ip::V6, agreed.tso6),
        _ => return Err(TransmitError::NotOffered),
    };
    let has_congestion_flag = said.gso_type & VnetHeader::GSO_ECN != 0;
    if !offered || (has_congestion_flag && !agreed.ecn) {
        return Err(TransmitError::NotOffered);
    }
    let layout = Layout::of(head).ok_or(TransmitError::NoHeaders)?;
    let is_so = layout.ip == ip && layout.protocol == TCP && !layout.fragment;
    if !is_so || usize::from(said.csum_start) != layout.l4 || said.csum_offset != TCP_CHECKSUM {
        return Err(TransmitError::Contradiction);
    }
    let tcp = head.get(layout.l4..layout.l4 + TCP_LEN).ok_or(TransmitError::NoHeaders)?;
    let end = layout.l4 + usize::from(tcp[12] >> 4) * 4;
    if end < layout.l4 + TCP_LEN || end > head.len() {
        return Err(TransmitError::NoHeaders);
    }
    let mss = u32::from(said.gso_size);
    let ip_len = frame_len.saturating_sub(layout.l3 + if ip == Ip::V6 { IP6_LEN } else { 0 });
    if ip_len > MAX_IP || !(MIN_MSS..=MAX_MSS).contains(&mss) {
        return Err(TransmitError::Segments { len: frame_len, mss });
    }
    // Where the headers end is what they say themselves.
    Ok(VnetHeader { flags: VnetHeader::NEEDS_CSUM, hdr_len: end as u16, ..*said })
}

/// What becomes of a frame for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// What the driver is told.
    pub vnet: VnetHeader,
    /// A checksum to fill in.
    pub complete: Option<Complete>,
}

/// Looks at a frame that came with `vnet`; `None`: the driver cannot take it. (The backend was told what it may leave undone, but what
/// was under way by then came as it was.) `head` are its first bytes, 256 or all of `frame_len`.
pub fn receive(vnet: &VnetHeader, head: &[u8], frame_len: usize, agreed: Offloads) -> Option<Receive> {
    let is_long = vnet.gso_type != VnetHeader::GSO_NONE;
    if is_long {
        let offered = match vnet.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_TCPV4 => agreed.tso4,
            VnetHeader::GSO_TCPV6 => agreed.tso6,
            _ => false,
        };
        if !offered || (vnet.gso_type & VnetHeader::GSO_ECN != 0 && !agreed.ecn) {
            return None;
        }
    }
    if !agreed.checksum {
        let complete = Complete::of(vnet, Layout::of(head).as_ref(), frame_len);
        return Some(Receive { vnet: VnetHeader::default(), complete });
    }
    let flags = vnet.flags & (VnetHeader::NEEDS_CSUM | VnetHeader::DATA_VALID);
    Some(Receive { vnet: VnetHeader { flags, ..*vnet }, complete: None })
}

/// The header as drivers read it, with the number of buffers that the frame lies in. The driver's header may be two bytes shorter.
pub fn bytes(vnet: &VnetHeader, buffers: u16) -> [u8; MOST] {
    let mut bytes = [0; MOST];
    bytes[..VnetHeader::LEN].copy_from_slice(&vnet.to_bytes());
    bytes[VnetHeader::LEN..].copy_from_slice(&buffers.to_le_bytes());
    bytes
}

// TAPs have numbers in the host's order, drivers in little-endian: headers that go through need them to be the same.
const _: () = assert!(cfg!(target_endian = "little"));

#[cfg(test)]
mod tests;
