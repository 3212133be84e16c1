use super::*;
use crate::headers::tests::{frame, tcp};

const PLAIN: TransmitInfo = TransmitInfo { checksum: None, lso: None, vlan: None, hash: None };

fn headers(frame: &[u8]) -> Headers {
    Headers::copy(frame.len(), |into| into.copy_from_slice(&frame[..into.len()]))
}

/// The whole frame as it is sent, and what is left to do.
fn sent(info: &TransmitInfo, frame: &[u8]) -> Result<(VnetHeader, Vec<u8>), TransmitError> {
    sent_with(info, frame, Offloads::TAP)
}

fn sent_with(
    info: &TransmitInfo,
    frame: &[u8],
    offered: Offloads,
) -> Result<(VnetHeader, Vec<u8>), TransmitError> {
    let mut headers = headers(frame);
    let vnet = transmit(info, &mut headers, frame.len(), offered)?;
    Ok((vnet, [headers.as_slice(), &frame[headers.copied()..]].concat()))
}

/// What Linux does to a frame that it leaves to be segmented.
fn prepare(frame: &mut [u8]) -> TransmitInfo {
    let layout = Layout::of(frame).unwrap();
    let version = match layout.ip {
        Ip::V4 => {
            frame[layout.l3 + 2..layout.l3 + 4].fill(0);
            frame[layout.l3 + 10..layout.l3 + 12].fill(0);
            LsoVersion::V2Ip4
        }
        Ip::V6 => {
            frame[layout.l3 + 4..layout.l3 + 6].fill(0);
            LsoVersion::V2Ip6
        }
    };
    let lso = Lso { mss: 1448, offset: layout.l4 as u16, version };
    TransmitInfo { lso: Some(lso), ..PLAIN }
}

/// The checksum in the frame is the pseudo-header's sum: gone on with, it makes a right one.
fn assert_partial(frame: &[u8]) {
    let layout = Layout::of(frame).unwrap();
    let addresses = match layout.ip {
        Ip::V4 => &frame[layout.l3 + 12..layout.l3 + 20],
        Ip::V6 => &frame[layout.l3 + 8..layout.l3 + 40],
    };
    let len = (frame.len() - layout.l4) as u32;
    let at = layout.l4 + 16;
    let mut whole = frame.to_vec();
    let checksum = Sum::new().add(&frame[layout.l4..]).finish();
    whole[at..at + 2].copy_from_slice(&checksum);
    let all = Sum::new().add_pseudo_header(layout.ip, addresses, TCP, len).add(&whole[layout.l4..]);
    assert_eq!(all.finish(), [0, 0]);
}

fn assert_ip4(frame: &[u8]) {
    let layout = Layout::of(frame).unwrap();
    assert_eq!(Sum::new().add(&frame[layout.l3..layout.l4]).finish(), [0, 0]);
    let len = u16::from_be_bytes([frame[layout.l3 + 2], frame[layout.l3 + 3]]);
    assert_eq!(usize::from(len), frame.len() - layout.l3);
}

#[test]
fn a_frame_without_wishes_is_sent_as_it_is() {
    for len in [14, 60, 255, 256, 257, 1514] {
        let frame = vec![0x5a; len];
        assert_eq!(sent(&PLAIN, &frame), Ok((VnetHeader::default(), frame)));
    }
    for len in [0, 1, 13] {
        assert_eq!(sent(&PLAIN, &vec![0; len]), Err(TransmitError::Runt(len)));
    }
}

#[test]
fn what_linux_leaves_undone_is_done() {
    for (ip, options) in [(Ip::V4, 0), (Ip::V4, 40), (Ip::V6, 0), (Ip::V6, 24)] {
        let mut frame = tcp(ip, options, 20_000);
        let info = prepare(&mut frame);
        let (vnet, sent) = sent(&info, &frame).unwrap();
        let layout = Layout::of(&sent).unwrap();
        let gso_type = if ip == Ip::V4 { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_TCPV6 };
        let expected = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: layout.l4 as u16 + 20,
            gso_size: 1448,
            csum_start: layout.l4 as u16,
            csum_offset: 16,
        };
        assert_eq!(vnet, expected);
        assert_partial(&sent);
        match ip {
            Ip::V4 => assert_ip4(&sent),
            Ip::V6 => assert_eq!(sent[18..20], ((options + 20_020) as u16).to_be_bytes()),
        }
        // Nothing but lengths and checksums differs from what the guest sent.
        let changed: Vec<_> = (0..frame.len()).filter(|at| frame[*at] != sent[*at]).collect();
        let may =
            |at: &usize| matches!(at, 16..20 | 24 | 25) || (layout.l4 + 16..layout.l4 + 18).contains(at);
        assert!(changed.iter().all(may), "{changed:?}");
    }
}

#[test]
fn the_congestion_flag_and_unsaid_offsets_are_seen() {
    let mut frame = tcp(Ip::V4, 0, 3000);
    frame[14 + 20 + 13] |= 0x80;
    let mut info = prepare(&mut frame);
    info.lso.as_mut().unwrap().offset = 0;
    let (vnet, _) = sent(&info, &frame).unwrap();
    assert_eq!(vnet.gso_type, VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN);
    // The first version is of IPv4, and asks for the same.
    info.lso.as_mut().unwrap().version = LsoVersion::V1;
    assert!(sent(&info, &frame).is_ok());
}

#[test]
fn segmentation_that_cannot_be_is_refused() {
    let mut good = tcp(Ip::V4, 0, 3000);
    let info = prepare(&mut good);
    let lso = info.lso.unwrap();
    let with = |lso: Lso| sent(&TransmitInfo { lso: Some(lso), ..PLAIN }, &good).unwrap_err();
    let len = good.len();
    for mss in [0, 1, 31, 0xffff, 0xf_ffff] {
        assert_eq!(with(Lso { mss, ..lso }), TransmitError::Segments { len, mss });
    }
    assert_eq!(with(Lso { offset: 33, ..lso }), TransmitError::Contradiction);
    assert_eq!(with(Lso { version: LsoVersion::V2Ip6, ..lso }), TransmitError::Contradiction);
    assert_eq!(sent_with(&info, &good, Offloads::TAP - Offloads::LSO4), Err(TransmitError::NotOffered));
    assert_eq!(sent_with(&info, &good, Offloads::NONE), Err(TransmitError::NotOffered));

    // Not TCP, a fragment, a TCP header that says that it is shorter or longer than there is.
    for (at, value, error) in [
        (23, UDP, TransmitError::Contradiction),
        (20, 0x20, TransmitError::Contradiction),
        (46, 0x40, TransmitError::NoHeaders),
        (12, 9, TransmitError::NoHeaders),
    ] {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(sent(&info, &frame), Err(error));
    }
    for len in 14..54 {
        assert_eq!(sent(&info, &good[..len]), Err(TransmitError::NoHeaders), "{len}");
    }
    let mut huge = tcp(Ip::V4, 0, 65_535);
    let info = prepare(&mut huge);
    assert!(matches!(sent(&info, &huge), Err(TransmitError::Segments { .. })));
    huge.truncate(14 + 65_535);
    assert!(sent(&info, &huge).is_ok());
    // Headers that do not end in what is looked at.
    let mut deep = tcp(Ip::V6, 208, 1000);
    let info = prepare(&mut deep);
    assert_eq!(sent(&info, &deep), Err(TransmitError::NoHeaders));
}

#[test]
fn checksums_are_left_to_the_kernel() {
    for (ip, protocol, transport, csum_offset) in [
        (Ip::V4, TCP, Transport::Tcp, 16),
        (Ip::V4, UDP, Transport::Udp, 6),
        (Ip::V6, TCP, Transport::Tcp, 16),
        (Ip::V6, UDP, Transport::Udp, 6),
    ] {
        let frame = frame(ip, protocol, 8, 100);
        let l4 = Layout::of(&frame).unwrap().l4 as u16;
        for offset in [0, l4] {
            let checksum = TransmitChecksum { transport: Some(transport), ip_header: false, offset };
            let info = TransmitInfo { checksum: Some(checksum), ..PLAIN };
            let (vnet, bytes) = sent(&info, &frame).unwrap();
            let expected = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                csum_start: l4,
                csum_offset,
                ..VnetHeader::default()
            };
            assert_eq!((vnet, &bytes), (expected, &frame));
            assert_eq!(sent_with(&info, &frame, Offloads::NONE), Err(TransmitError::NotOffered));
            let short = &frame[..usize::from(l4) + if protocol == TCP { 19 } else { 7 }];
            assert_eq!(sent(&info, short), Err(TransmitError::NoHeaders));
        }
        let other = if protocol == TCP { Transport::Udp } else { Transport::Tcp };
        for (transport, offset) in [(other, 0), (transport, l4 - 1), (transport, 1023)] {
            let checksum = TransmitChecksum { transport: Some(transport), ip_header: false, offset };
            let info = TransmitInfo { checksum: Some(checksum), ..PLAIN };
            assert_eq!(sent(&info, &frame), Err(TransmitError::Contradiction));
        }
    }
}

#[test]
fn the_ip_header_checksum_is_ours() {
    let mut frame = frame(Ip::V4, 1, 4, 60);
    frame[24] = 0x5a;
    let checksum = TransmitChecksum { transport: None, ip_header: true, offset: 0 };
    let info = TransmitInfo { checksum: Some(checksum), ..PLAIN };
    let (vnet, bytes) = sent(&info, &frame).unwrap();
    assert_eq!(vnet, VnetHeader::default());
    assert_ip4(&bytes);
    assert_eq!(sent_with(&info, &frame, Offloads::NONE), Err(TransmitError::NotOffered));
}

#[test]
fn a_tag_is_put_in_and_moves_the_headers() {
    let vlan = Vlan { priority: 3, cfi: false, id: 42 };
    let mut frame = tcp(Ip::V4, 0, 3000);
    let info = TransmitInfo { vlan: Some(vlan), ..prepare(&mut frame) };
    let (vnet, bytes) = sent(&info, &frame).unwrap();
    assert_eq!((vnet.csum_start, vnet.hdr_len), (38, 58));
    assert_eq!((bytes.len(), &bytes[..12]), (frame.len() + 4, &frame[..12]));
    assert_eq!(bytes[12..18], [0x81, 0, 0x60, 42, 8, 0]);
    assert_eq!(&bytes[58..], &frame[54..]);
    assert_ip4(&bytes);
    assert_partial(&bytes);
    // One without anything to do.
    let (vnet, bytes) = sent(&TransmitInfo { vlan: Some(vlan), ..PLAIN }, &[7; 14]).unwrap();
    assert_eq!((vnet, bytes.len()), (VnetHeader::default(), 18));
}
