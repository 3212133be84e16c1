use super::*;
use crate::headers::UDP;
use crate::headers::tests::{frame, tcp};

const SUM: VnetHeader = VnetHeader {
    flags: VnetHeader::NEEDS_CSUM,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: TCP_CHECKSUM,
};
const LONG: VnetHeader = VnetHeader { gso_type: VnetHeader::GSO_TCPV4, hdr_len: 54, gso_size: 1460, ..SUM };

fn sends(vnet: VnetHeader, frame: &[u8]) -> Result<VnetHeader, TransmitError> {
    sends_with(vnet, frame, Offloads::ALL)
}

fn sends_with(vnet: VnetHeader, frame: &[u8], agreed: Offloads) -> Result<VnetHeader, TransmitError> {
    let head = &frame[..frame.len().min(256)];
    transmit(&vnet.to_bytes(), head, frame.len(), agreed)
}

#[test]
fn what_a_driver_says_goes_through_if_it_is_so() {
    let v4 = tcp(Ip::V4, 0, 4000);
    assert_eq!(sends(VnetHeader::default(), &v4), Ok(VnetHeader::default()));
    assert_eq!(sends(SUM, &v4), Ok(SUM));
    assert_eq!(sends(LONG, &v4), Ok(LONG));
    let with_flag = VnetHeader { gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN, ..LONG };
    assert_eq!(sends(with_flag, &v4), Ok(with_flag));
    let v6 = tcp(Ip::V6, 8, 4000);
    let long = VnetHeader { gso_type: VnetHeader::GSO_TCPV6, csum_start: 62, ..LONG };
    // Its guess of where the headers end is not believed.
    assert_eq!(sends(long, &v6), Ok(VnetHeader { hdr_len: 82, ..long }));
    // A checksum may be anybody's: a tunnel's inner one, another protocol's.
    let inner = VnetHeader { csum_start: 200, csum_offset: 6, ..SUM };
    assert_eq!(sends(inner, &frame(Ip::V4, UDP, 0, 400)), Ok(inner));
}

#[test]
fn what_means_nothing_is_forgotten() {
    let frame = tcp(Ip::V4, 0, 100);
    let talk =
        VnetHeader { flags: 0xfe, gso_type: 0, hdr_len: 1, gso_size: 2, csum_start: 3, csum_offset: 4 };
    assert_eq!(sends(talk, &frame), Ok(VnetHeader::default()));
    assert_eq!(sends(VnetHeader { flags: 0xff, hdr_len: 9000, gso_size: 1, ..SUM }, &frame), Ok(SUM));
}

#[test]
fn what_was_not_agreed_on_is_not_done() {
    let frame = tcp(Ip::V4, 0, 4000);
    let refused = |vnet, agreed| sends_with(vnet, &frame, agreed) == Err(TransmitError::NotOffered);
    assert!(refused(SUM, Offloads::NONE) && refused(LONG, Offloads::NONE));
    assert!(refused(LONG, Offloads { tso4: false, ..Offloads::ALL }));
    assert!(!refused(LONG, Offloads { tso6: false, ecn: false, ..Offloads::ALL }));
    let with_flag = VnetHeader { gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN, ..LONG };
    assert!(refused(with_flag, Offloads { ecn: false, ..Offloads::ALL }));
    // UDP (3, 5) and what has no name yet.
    for gso_type in [2, 3, 5, 6, 0x7f, 0x83] {
        assert!(refused(VnetHeader { gso_type, ..LONG }, Offloads::ALL), "{gso_type}");
    }
    assert!(refused(VnetHeader { gso_type: VnetHeader::GSO_ECN, ..LONG }, Offloads::ALL));
}

#[test]
fn headers_that_lie_are_found_out() {
    let v4 = tcp(Ip::V4, 0, 4000);
    let long = v4.len();
    for (vnet, error) in [
        (VnetHeader { flags: 0, ..LONG }, TransmitError::Contradiction),
        (VnetHeader { csum_start: 13, ..SUM }, TransmitError::Contradiction),
        (VnetHeader { csum_start: long as u16 - 17, ..SUM }, TransmitError::Contradiction),
        (VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..SUM }, TransmitError::Contradiction),
        (VnetHeader { csum_start: 38, ..LONG }, TransmitError::Contradiction),
        (VnetHeader { csum_offset: 6, ..LONG }, TransmitError::Contradiction),
        (VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..LONG }, TransmitError::Contradiction),
        (VnetHeader { gso_size: 0, ..LONG }, TransmitError::Segments { len: long, mss: 0 }),
        (VnetHeader { gso_size: 31, ..LONG }, TransmitError::Segments { len: long, mss: 31 }),
        (VnetHeader { gso_size: 0xffff, ..LONG }, TransmitError::Segments { len: long, mss: 0xffff }),
    ] {
        assert_eq!(sends(vnet, &v4), Err(error), "{vnet:?}");
    }
    assert_eq!(sends(LONG, &frame(Ip::V4, UDP, 0, 400)), Err(TransmitError::Contradiction));
    assert_eq!(sends(LONG, &[0x5a; 400]), Err(TransmitError::NoHeaders));
    let mut fragment = v4.clone();
    fragment[21] = 1;
    assert_eq!(sends(LONG, &fragment), Err(TransmitError::Contradiction));
    // A TCP header that is too short, one that ends nowhere, one that is not there.
    for words in [0x40, 0xf0] {
        let mut short = v4[..80].to_vec();
        short[46] = words;
        assert_eq!(sends(LONG, &short), Err(TransmitError::NoHeaders));
    }
    assert_eq!(sends(VnetHeader { csum_offset: 0, ..LONG }, &v4[..40]), Err(TransmitError::Contradiction));
    assert_eq!(sends(LONG, &v4[..53]), Err(TransmitError::NoHeaders));
    let mss = 1460;
    let huge = tcp(Ip::V4, 0, 65_536 - 40);
    assert_eq!(sends(LONG, &huge), Err(TransmitError::Segments { len: huge.len(), mss }));
    assert!(sends(LONG, &huge[..huge.len() - 1]).is_ok());
    for len in 0..14 {
        assert_eq!(sends(SUM, &v4[..len]), Err(TransmitError::Runt(len)));
    }
}

#[test]
fn a_driver_gets_what_it_can_take() {
    let v4 = tcp(Ip::V4, 0, 100);
    let gets = |vnet: VnetHeader, agreed| receive(&vnet, &v4, v4.len(), agreed);
    let right = VnetHeader { flags: VnetHeader::DATA_VALID, ..VnetHeader::default() };
    for vnet in [VnetHeader::default(), right, SUM, LONG] {
        assert_eq!(gets(vnet, Offloads::ALL), Some(Receive { vnet, complete: None }));
    }
    // Without its consent nothing is left undone, and nothing said.
    let plain = Receive { vnet: VnetHeader::default(), complete: None };
    assert_eq!(gets(right, Offloads::NONE), Some(plain));
    let complete = gets(SUM, Offloads::NONE).unwrap().complete.unwrap();
    assert_eq!((complete.start, complete.at), (34, 50));
    assert_eq!(gets(LONG, Offloads::NONE), None);
    assert_eq!(gets(LONG, Offloads { tso4: false, ..Offloads::ALL }), None);
    let with_flag = VnetHeader { gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN, ..LONG };
    assert_eq!(gets(with_flag, Offloads { ecn: false, ..Offloads::ALL }), None);
    assert_eq!(gets(VnetHeader { gso_type: 5, ..LONG }, Offloads::ALL), None);
    // What later kernels may say is not for a driver that has not agreed to it.
    let more = VnetHeader { flags: VnetHeader::DATA_VALID | 0xf8, ..VnetHeader::default() };
    assert_eq!(gets(more, Offloads::ALL).unwrap().vnet, right);
}

#[test]
fn a_header_has_twelve_bytes() {
    assert_eq!(bytes(&LONG, 0x1234), [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0x34, 0x12]);
}
