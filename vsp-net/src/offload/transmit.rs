//! Guest to host.
//!
//! Linux's netvsc hands over data to be segmented with a zero for the IP length, a zero for the IPv4 header checksum, and a sum of
//! the pseudo-header that leaves the length out (`netvsc_xmit`); Windows does the same, as NDIS has it for large sends. Hyper-V's
//! switch wants it so. A TAP's kernel wants all three as they would be in one huge packet, so they are made from the frame.

use super::{Sum, VnetHeader};
use crate::headers::{ETHERNET_LEN, IP6_LEN, Ip, Layout, TCP, UDP, VLAN_LEN, put_vlan_tag};
use crate::oid::Offloads;
use crate::rndis::info::{Lso, LsoVersion, TransmitChecksum, Transport};
use crate::rndis::{TransmitInfo, Vlan};

/// Bytes of a frame that are copied at most: two tags, IPv4 with all options or IPv6 with extensions, TCP with all options.
pub const HEADERS_LEN: usize = 256;

/// Least data in a segment: less than any network has, and enough that a frame does not become a flood. (Linux sends no segment of
/// fewer than 48 bytes with its options: `tcp_min_snd_mss`.)
pub(crate) const MIN_MSS: u32 = 32;
/// Most data in a segment; the kernel gives the next number another meaning (`GSO_BY_FRAGS`).
pub(crate) const MAX_MSS: u32 = 0xfffe;
/// Most bytes behind a length of 16 bits.
pub(crate) const MAX_IP: usize = 0xffff;
/// Where TCP's checksum is in its header, and UDP's.
pub(crate) const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// Bytes of a TCP header without options, of a UDP header, of an IPv4 header without options.
pub(crate) const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const IP4_LEN: usize = 20;

/// A frame that cannot be sent as the guest says. It is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransmitError {
    /// Not even an Ethernet header.
    #[error("frame of {0} bytes")]
    Runt(usize),
    /// The guest asks for work on headers that the frame has not, or not in its first 256 bytes.
    #[error("work on headers that the frame has not")]
    NoHeaders,
    /// What the guest says of the headers is not so.
    #[error("headers are not what the guest says")]
    Contradiction,
    /// Work that the guest has never been offered.
    #[error("work that was not offered")]
    NotOffered,
    /// More than an IP packet can be, or segments too small or too large.
    #[error("{len} bytes in segments of {mss}")]
    Segments {
        /// Bytes of the frame.
        len: usize,
        /// Data in a segment.
        mss: u32,
    },
}

/// The first bytes of a frame, private, and room for a tag.
#[derive(Clone, Debug)]
pub struct Headers {
    bytes: [u8; VLAN_LEN + HEADERS_LEN],
    start: usize,
    end: usize,
}

impl Headers {
    /// Has the first bytes of a frame of `frame_len` bytes copied: [`HEADERS_LEN`], or all.
    pub fn copy(frame_len: usize, copy: impl FnOnce(&mut [u8])) -> Headers {
        let end = VLAN_LEN + frame_len.min(HEADERS_LEN);
        let mut bytes = [0; VLAN_LEN + HEADERS_LEN];
        copy(&mut bytes[VLAN_LEN..end]);
        Headers { bytes, start: VLAN_LEN, end }
    }

    /// What is to be sent in place of the frame's first [`Headers::copied`] bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// How many bytes of the frame have been copied: the rest begins there.
    pub fn copied(&self) -> usize {
        self.end - VLAN_LEN
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Puts a tag in. False if there is one of ours already, or no header.
    fn put_tag(&mut self, vlan: Vlan) -> bool {
        let room = self.start == VLAN_LEN;
        if room && put_vlan_tag(&mut self.bytes[..self.end], vlan.tci()) {
            self.start = 0;
            return true;
        }
        false
    }
}

/// Makes a frame of `frame_len` bytes ready for a TAP: repairs its headers, and says what is left to do to it.
///
/// `offered` is what the guest was told that we can do, not what it has switched on: a message may overtake the switch.
pub fn transmit(
    info: &TransmitInfo,
    headers: &mut Headers,
    frame_len: usize,
    offered: Offloads,
) -> Result<VnetHeader, TransmitError> {
    if frame_len < ETHERNET_LEN || headers.copied() < ETHERNET_LEN {
        return Err(TransmitError::Runt(frame_len));
    }
    let mut vnet = VnetHeader::default();
    if info.lso.is_some() || info.checksum.is_some() {
        let layout = Layout::of(headers.as_slice()).ok_or(TransmitError::NoHeaders)?;
        let bytes = headers.as_mut_slice();
        match (info.lso, info.checksum) {
            // It asks for all checksums of its segments too, whatever else there is.
            (Some(lso), _) => vnet = segment(lso, &layout, bytes, frame_len, offered)?,
            (None, Some(checksum)) => vnet = fill_in(checksum, &layout, bytes, offered)?,
            (None, None) => {}
        }
    }
    if let Some(vlan) = info.vlan {
        if !headers.put_tag(vlan) {
            return Err(TransmitError::Contradiction);
        }
        for place in [&mut vnet.hdr_len, &mut vnet.csum_start] {
            *place += if *place > 0 { VLAN_LEN as u16 } else { 0 };
        }
    }
    Ok(vnet)
}

/// Segmentation.
fn segment(
    lso: Lso,
    layout: &Layout,
    bytes: &mut [u8],
    frame_len: usize,
    offered: Offloads,
) -> Result<VnetHeader, TransmitError> {
    let (needed, gso_type) = match layout.ip {
        Ip::V4 => (Offloads::LSO4, VnetHeader::GSO_TCPV4),
        Ip::V6 => (Offloads::LSO6, VnetHeader::GSO_TCPV6),
    };
    let says_ip6 = lso.version == LsoVersion::V2Ip6;
    if says_ip6 != (layout.ip == Ip::V6) || layout.protocol != TCP || layout.fragment {
        return Err(TransmitError::Contradiction);
    }
    if !offered.contains(needed) {
        return Err(TransmitError::NotOffered);
    }
    check_offset(lso.offset, layout)?;
    let tcp = bytes.get(layout.l4..layout.l4 + TCP_LEN).ok_or(TransmitError::NoHeaders)?;
    let end = layout.l4 + usize::from(tcp[12] >> 4) * 4;
    let has_congestion_flag = tcp[13] & 0x80 != 0;
    if end < layout.l4 + TCP_LEN || end > bytes.len() {
        return Err(TransmitError::NoHeaders);
    }
    let (mss, len) = (lso.mss, frame_len);
    let ip_len = frame_len - layout.l3 - if layout.ip == Ip::V6 { IP6_LEN } else { 0 };
    if ip_len > MAX_IP || !(MIN_MSS..=MAX_MSS).contains(&mss) {
        return Err(TransmitError::Segments { len, mss });
    }

    let (length_at, addresses) = match layout.ip {
        Ip::V4 => (layout.l3 + 2, layout.l3 + 12..layout.l3 + 20),
        Ip::V6 => (layout.l3 + 4, layout.l3 + 8..layout.l3 + 40),
    };
    bytes[length_at..length_at + 2].copy_from_slice(&(ip_len as u16).to_be_bytes());
    if layout.ip == Ip::V4 {
        fill_in_ip4(layout, bytes);
    }
    let tcp_len = (frame_len - layout.l4) as u32;
    let pseudo = Sum::new().add_pseudo_header(layout.ip, &bytes[addresses], TCP, tcp_len);
    let at = layout.l4 + usize::from(TCP_CHECKSUM);
    bytes[at..at + 2].copy_from_slice(&pseudo.partial());
    Ok(VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: gso_type | if has_congestion_flag { VnetHeader::GSO_ECN } else { 0 },
        hdr_len: end as u16,
        gso_size: mss as u16,
        csum_start: layout.l4 as u16,
        csum_offset: TCP_CHECKSUM,
    })
}

/// Checksums. The sum of the pseudo-header is the guest's, here: with source routes, only it knows the destination that counts.
fn fill_in(
    checksum: TransmitChecksum,
    layout: &Layout,
    bytes: &mut [u8],
    offered: Offloads,
) -> Result<VnetHeader, TransmitError> {
    if checksum.ip_header && layout.ip == Ip::V4 {
        if !offered.contains(Offloads::TX_IP4) {
            return Err(TransmitError::NotOffered);
        }
        fill_in_ip4(layout, bytes);
    }
    let Some(transport) = checksum.transport else { return Ok(VnetHeader::default()) };
    let (protocol, len, csum_offset, needed) = match (transport, layout.ip) {
        (Transport::Tcp, Ip::V4) => (TCP, TCP_LEN, TCP_CHECKSUM, Offloads::TX_TCP4),
        (Transport::Tcp, Ip::V6) => (TCP, TCP_LEN, TCP_CHECKSUM, Offloads::TX_TCP6),
        (Transport::Udp, Ip::V4) => (UDP, UDP_LEN, UDP_CHECKSUM, Offloads::TX_UDP4),
        (Transport::Udp, Ip::V6) => (UDP, UDP_LEN, UDP_CHECKSUM, Offloads::TX_UDP6),
    };
    if layout.protocol != protocol || layout.fragment {
        return Err(TransmitError::Contradiction);
    }
    if !offered.contains(needed) {
        return Err(TransmitError::NotOffered);
    }
    check_offset(checksum.offset, layout)?;
    if layout.l4 + len > bytes.len() {
        return Err(TransmitError::NoHeaders);
    }
    let csum_start = layout.l4 as u16;
    Ok(VnetHeader { flags: VnetHeader::NEEDS_CSUM, csum_start, csum_offset, ..VnetHeader::default() })
}

/// The transport header is where the guest says, if it says anything.
fn check_offset(says: u16, layout: &Layout) -> Result<(), TransmitError> {
    match usize::from(says) {
        0 => Ok(()),
        offset if offset == layout.l4 => Ok(()),
        _ => Err(TransmitError::Contradiction),
    }
}

/// Fills in the IPv4 header's checksum.
fn fill_in_ip4(layout: &Layout, bytes: &mut [u8]) {
    let header = &mut bytes[layout.l3..layout.l4];
    debug_assert!(header.len() >= IP4_LEN);
    header[10..12].fill(0);
    let checksum = Sum::new().add(header).finish();
    header[10..12].copy_from_slice(&checksum);
}

#[cfg(test)]
mod tests;
