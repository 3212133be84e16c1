//! Host to guest.
//!
//! RNDIS can say that a checksum is right, not that it is to be filled in. Linux believes the first and looks no further, so that a
//! TCP checksum which the sender has left to be filled in (a neighbour on the same bridge; segments that the kernel has joined) can
//! stay as it is. Not so UDP's, which programs with raw sockets look at (DHCP clients), nor those of protocols that RNDIS knows
//! nothing of: these are filled in.

use super::{Sum, VnetHeader};
use crate::headers::{Ip, Layout, TCP, UDP, vlan_tag};
use crate::oid::Offloads;
use crate::rndis::{ReceiveChecksum, ReceiveInfo, Vlan};

/// What is to be done with a received frame, and said about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receive {
    /// What the guest is told.
    pub info: ReceiveInfo,
    /// The tag that the guest is told about is in the frame: its first 12 bytes are to be moved over it.
    pub strip: bool,
    /// A checksum to fill in, before that.
    pub complete: Option<Complete>,
}

/// A checksum to fill in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete {
    /// It is that of the frame from here to its end.
    pub start: usize,
    /// Here it goes; two bytes that are inside the frame.
    pub at: usize,
    /// UDP writes a zero as ones.
    udp: bool,
}

impl Complete {
    /// What a backend has left undone, if it has; `layout` are the frame's headers. `None` as well if the place is not in the frame.
    pub fn of(vnet: &VnetHeader, layout: Option<&Layout>, frame_len: usize) -> Option<Complete> {
        let start = usize::from(vnet.csum_start);
        let at = start + usize::from(vnet.csum_offset);
        let udp = layout.is_some_and(|layout| layout.protocol == UDP);
        let is_left = vnet.flags & VnetHeader::NEEDS_CSUM != 0 && at + 2 <= frame_len;
        is_left.then_some(Complete { start, at, udp })
    }

    /// The checksum for its place; `sum` is that of the bytes from `start` to the frame's end.
    pub fn finish(&self, sum: Sum) -> [u8; 2] {
        match sum.finish() {
            [0, 0] if self.udp => [0xff, 0xff],
            checksum => checksum,
        }
    }
}

/// Looks at a frame of `frame_len` bytes that came with `vnet`. `head` are its first bytes, 256 or all; `enabled` is what the guest has
/// switched on.
pub fn receive(vnet: &VnetHeader, head: &[u8], frame_len: usize, enabled: Offloads) -> Receive {
    let mut receive = Receive::default();
    if let Some(tci) = vlan_tag(head) {
        receive.info.vlan = Some(Vlan::from_tci(tci));
        receive.strip = true;
    }
    let layout = Layout::of(head);
    let right = layout.map_or(ReceiveChecksum::empty(), |layout| transport(&layout, enabled));
    let mut known = ReceiveChecksum::empty();
    if vnet.flags & VnetHeader::NEEDS_CSUM != 0 {
        let is_its_own = layout.is_some_and(|layout| layout.l4 == usize::from(vnet.csum_start));
        if is_its_own {
            known |= right;
        }
        if !known.contains(ReceiveChecksum::TCP_SUCCEEDED) {
            receive.complete = Complete::of(vnet, layout.as_ref(), frame_len);
        }
    } else if vnet.flags & VnetHeader::DATA_VALID != 0 {
        known |= right;
    }
    if let Some(Layout { ip: Ip::V4, l3, l4, .. }) = layout
        && enabled.contains(Offloads::RX_IP4)
        && head.get(l3..l4).is_some_and(|header| Sum::new().add(header).finish() == [0, 0])
    {
        known |= ReceiveChecksum::IP_SUCCEEDED;
    }
    receive.info.checksum = (!known.is_empty()).then_some(known);
    receive
}

/// What is to be said of a transport checksum that is right.
fn transport(layout: &Layout, enabled: Offloads) -> ReceiveChecksum {
    let (offload, right) = match (layout.protocol, layout.ip) {
        (TCP, Ip::V4) => (Offloads::RX_TCP4, ReceiveChecksum::TCP_SUCCEEDED),
        (TCP, Ip::V6) => (Offloads::RX_TCP6, ReceiveChecksum::TCP_SUCCEEDED),
        (UDP, Ip::V4) => (Offloads::RX_UDP4, ReceiveChecksum::UDP_SUCCEEDED),
        (UDP, Ip::V6) => (Offloads::RX_UDP6, ReceiveChecksum::UDP_SUCCEEDED),
        _ => return ReceiveChecksum::empty(),
    };
    if enabled.contains(offload) && !layout.fragment { right } else { ReceiveChecksum::empty() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::put_vlan_tag;
    use crate::headers::tests::{frame, tcp};

    const QUIET: VnetHeader =
        VnetHeader { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
    const VALID: VnetHeader = VnetHeader { flags: VnetHeader::DATA_VALID, ..QUIET };
    /// All but the IPv4 header's checksum: what Linux switches on.
    const LINUX: Offloads = Offloads::TAP.difference(Offloads::TX_IP4).difference(Offloads::RX_IP4);

    fn partial(frame: &[u8], csum_offset: u16) -> VnetHeader {
        let csum_start = Layout::of(frame).unwrap().l4 as u16;
        VnetHeader { flags: VnetHeader::NEEDS_CSUM, csum_start, csum_offset, ..QUIET }
    }

    fn said(vnet: &VnetHeader, frame: &[u8], enabled: Offloads) -> (Option<ReceiveChecksum>, bool) {
        let receive = receive(vnet, frame, frame.len(), enabled);
        (receive.info.checksum, receive.complete.is_some())
    }

    #[test]
    fn what_the_kernel_has_checked_the_guest_need_not() {
        let tcp_is_right = Some(ReceiveChecksum::TCP_SUCCEEDED);
        let udp_is_right = Some(ReceiveChecksum::UDP_SUCCEEDED);
        for ip in [Ip::V4, Ip::V6] {
            let (tcp, udp, icmp) = (tcp(ip, 0, 100), frame(ip, UDP, 0, 100), frame(ip, 1, 0, 100));
            assert_eq!(said(&VALID, &tcp, LINUX), (tcp_is_right, false));
            assert_eq!(said(&VALID, &udp, LINUX), (udp_is_right, false));
            for frame in [&tcp, &udp, &icmp] {
                assert_eq!(said(&QUIET, frame, LINUX), (None, false));
                assert_eq!(said(&VALID, frame, Offloads::NONE), (None, false));
            }
            assert_eq!(said(&VALID, &icmp, LINUX), (None, false));
        }
        assert_eq!(said(&VALID, &[0x5a; 60], LINUX), (None, false));
    }

    #[test]
    fn checksums_that_were_left_to_be_filled_in() {
        let segments = VnetHeader { gso_type: VnetHeader::GSO_TCPV4, gso_size: 1448, hdr_len: 54, ..QUIET };
        let long = tcp(Ip::V4, 0, 10_000);
        let vnet = VnetHeader { flags: VnetHeader::NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..segments };
        assert_eq!(said(&vnet, &long, LINUX), (Some(ReceiveChecksum::TCP_SUCCEEDED), false));
        // Where the guest wants none spared, it is not lied to.
        assert_eq!(said(&vnet, &long, Offloads::NONE), (None, true));
        let udp = frame(Ip::V6, UDP, 0, 100);
        assert_eq!(said(&partial(&udp, 6), &udp, LINUX), (Some(ReceiveChecksum::UDP_SUCCEEDED), true));
        assert_eq!(said(&partial(&udp, 6), &udp, Offloads::NONE), (None, true));
        // SCTP, and whatever is inside of a tunnel.
        let sctp = frame(Ip::V4, 132, 0, 100);
        assert_eq!(said(&partial(&sctp, 8), &sctp, LINUX), (None, true));
        let tunnel = VnetHeader { csum_start: 74, ..partial(&long, 16) };
        assert_eq!(said(&tunnel, &long, LINUX), (None, true));
        // A place that is not in the frame is none.
        let outside = VnetHeader { csum_start: 100, csum_offset: 12, ..partial(&udp, 6) };
        assert_eq!(receive(&outside, &udp, 113, LINUX).complete, None);
        assert!(receive(&outside, &udp, 114, LINUX).complete.is_some());
    }

    #[test]
    fn what_is_filled_in_is_right() {
        for ip in [Ip::V4, Ip::V6] {
            let mut frame = frame(ip, UDP, 0, 101);
            let layout = Layout::of(&frame).unwrap();
            let addresses = match ip {
                Ip::V4 => frame[26..34].to_vec(),
                Ip::V6 => frame[22..54].to_vec(),
            };
            let pseudo = Sum::new().add_pseudo_header(ip, &addresses, UDP, 101);
            let at = layout.l4 + 6;
            frame[at..at + 2].copy_from_slice(&pseudo.partial());
            let complete = receive(&partial(&frame, 6), &frame, frame.len(), LINUX).complete.unwrap();
            assert_eq!((complete.start, complete.at), (layout.l4, at));
            let checksum = complete.finish(Sum::new().add(&frame[complete.start..]));
            frame[at..at + 2].copy_from_slice(&checksum);
            assert_eq!(pseudo.add(&frame[layout.l4..]).finish(), [0, 0]);
            // UDP's zero means that there is none.
            assert_eq!(complete.finish(Sum::new().add(&[0xff, 0xff])), [0xff, 0xff]);
        }
    }

    #[test]
    fn windows_is_told_about_ip_headers_too() {
        let mut frame = tcp(Ip::V4, 0, 100);
        assert_eq!(said(&QUIET, &frame, Offloads::TAP), (None, false));
        let checksum = Sum::new().add(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&checksum);
        assert_eq!(said(&QUIET, &frame, Offloads::TAP), (Some(ReceiveChecksum::IP_SUCCEEDED), false));
        let both = ReceiveChecksum::IP_SUCCEEDED | ReceiveChecksum::TCP_SUCCEEDED;
        assert_eq!(said(&VALID, &frame, Offloads::TAP), (Some(both), false));
    }

    #[test]
    fn fragments_have_no_transport_checksum() {
        let mut frame = tcp(Ip::V4, 0, 100);
        frame[21] = 1;
        assert_eq!(said(&VALID, &frame, LINUX), (None, false));
    }

    #[test]
    fn a_tag_becomes_information() {
        let mut frame = tcp(Ip::V4, 0, 100);
        frame.splice(0..0, [0; 4]);
        assert!(put_vlan_tag(&mut frame, 0x6000 | 42));
        let found = receive(&VALID, &frame, frame.len(), LINUX);
        assert!(found.strip);
        assert_eq!(found.info.vlan, Some(Vlan { priority: 3, cfi: false, id: 42 }));
        assert_eq!(found.info.checksum, Some(ReceiveChecksum::TCP_SUCCEEDED));
    }
}
