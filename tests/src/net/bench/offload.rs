//! What a TAP says about a frame (`struct virtio_net_hdr`), in the words of a driver, and back.

use vsc::net::{Offload, RxFrame, TxInfo};

use super::VNET;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const ETHERNET: usize = 14;

/// What the driver asks of its device for a frame that its stack gives it.
pub fn to_send(vnet: &[u8; VNET]) -> TxInfo {
    let [flags, gso, _, _, size_low, size_high, start_low, start_high, offset, _] = *vnet;
    let header = u16::from_le_bytes([start_low, start_high]);
    let offload = match gso & 0x7f {
        GSO_TCP4 | GSO_TCP6 => Offload::Segment {
            ipv6: gso & 0x7f == GSO_TCP6,
            mss: u32::from(u16::from_le_bytes([size_low, size_high])),
            header,
        },
        // IPv6's header is 40 bytes, IPv4's 20 here.
        _ if flags & NEEDS_CHECKSUM != 0 => {
            Offload::Checksum { ipv6: header >= 54, udp: offset == 6, header }
        }
        _ => Offload::None,
    };
    TxInfo { offload, ..TxInfo::default() }
}

/// Does to the headers of a TCP segment over IPv4 what Linux' driver does: no lengths, no checksum, a pseudo-header's sum
/// without a length. `headers` begin with the Ethernet header.
pub fn strip_lengths(headers: &mut [u8]) {
    let ip = &headers[ETHERNET..];
    if headers.len() < ETHERNET + 40 || ip[0] >> 4 != 4 {
        return;
    }
    let mut sum = 6u32;
    for pair in ip[12..20].chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    let tcp = ETHERNET + usize::from(ip[0] & 15) * 4;
    headers[ETHERNET + 2..ETHERNET + 4].fill(0);
    headers[ETHERNET + 10..ETHERNET + 12].fill(0);
    if let Some(checksum) = headers.get_mut(tcp + 16..tcp + 18) {
        checksum.copy_from_slice(&sum.to_be_bytes());
    }
}

/// What the stack is told about a frame that came; `head` are its first bytes. What the device calls good is good, and a frame longer
/// than a packet is several.
pub fn to_stack(frame: &RxFrame, head: &[u8], mtu: usize) -> [u8; VNET] {
    let mut vnet = [0; VNET];
    let good = frame.info.checksum.is_some_and(|checksum| checksum.transport_is_good());
    if !good || head.len() < ETHERNET + 20 || head[12..14] != [8, 0] {
        return vnet;
    }
    let header = ETHERNET + usize::from(head[ETHERNET] & 15) * 4;
    let tcp = head[ETHERNET + 9] == 6;
    vnet[0] = NEEDS_CHECKSUM;
    vnet[6..8].copy_from_slice(&(header as u16).to_le_bytes());
    vnet[8] = if tcp { 16 } else { 6 };
    if tcp && frame.len as usize > mtu + ETHERNET {
        let headers = header + head.get(header + 12).map_or(20, |byte| usize::from(byte >> 4) * 4);
        vnet[1] = GSO_TCP4;
        vnet[2..4].copy_from_slice(&(headers as u16).to_le_bytes());
        vnet[4..6].copy_from_slice(&((mtu + ETHERNET - headers) as u16).to_le_bytes());
    }
    vnet
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsc::net::{RxChecksum, RxInfo};

    #[test]
    fn a_long_segment_is_cut_up_by_the_device() {
        let mut vnet = [0; VNET];
        (vnet[0], vnet[1], vnet[6], vnet[8]) = (1, 1, 34, 16);
        vnet[4..6].copy_from_slice(&1448u16.to_le_bytes());
        let segment = Offload::Segment { ipv6: false, mss: 1448, header: 34 };
        assert_eq!(to_send(&vnet).offload, segment);
        vnet[1] = 0;
        assert_eq!(to_send(&vnet).offload, Offload::Checksum { ipv6: false, udp: false, header: 34 });
        assert_eq!(to_send(&[0; VNET]).offload, Offload::None);
    }

    #[test]
    fn what_came_goes_up_as_it_would_from_a_tap() {
        let mut head = [0u8; 64];
        head[12] = 8;
        head[14] = 0x45;
        head[23] = 6;
        head[34 + 12] = 0x80;
        let info = RxInfo { checksum: Some(RxChecksum(1 << 3)), ..RxInfo::default() };
        let frame = RxFrame { address: 0, len: 30_000, info };
        let vnet = to_stack(&frame, &head, 1500);
        let TxInfo { offload, .. } = to_send(&vnet);
        assert_eq!(offload, Offload::Segment { ipv6: false, mss: 1448, header: 34 });
        let unknown = RxFrame { info: RxInfo::default(), ..frame };
        assert_eq!(to_stack(&unknown, &head, 1500), [0; VNET]);
    }
}
