//! Where the headers of an Ethernet frame are. A look at private bytes; nothing in them is believed but the lengths that are there.

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of an 802.1Q tag.
pub const VLAN_LEN: usize = 4;
/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;

/// Where a frame says what it carries.
const TYPE_AT: usize = 12;
const TYPE_IP4: u16 = 0x0800;
const TYPE_IP6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_SERVICE_VLAN: u16 = 0x88a8;
/// Tags that we look behind.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers that we look behind; RFC 8200 has each come once, and one of them twice.
const MAX_EXTENSIONS: usize = 8;
/// Bytes of an IPv6 header.
pub const IP6_LEN: usize = 40;

/// Versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// 4.
    V4,
    /// 6.
    V6,
}

/// Where the headers of a frame with IP are. All of the IP header is there, extensions included; of the transport header nobody
/// knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Version of IP.
    pub ip: Ip,
    /// Where the IP header begins.
    pub l3: usize,
    /// Where the transport header begins.
    pub l4: usize,
    /// The transport protocol.
    pub protocol: u8,
    /// A piece of a packet: the transport header may be in another.
    pub fragment: bool,
}

impl Layout {
    /// Looks at the first bytes of a frame; `None` if it has no IP, or its header does not end in these bytes.
    pub fn of(frame: &[u8]) -> Option<Layout> {
        let mut l3 = ETHERNET_LEN;
        let mut ether_type = half(frame, TYPE_AT)?;
        for _ in 0..MAX_TAGS {
            if !matches!(ether_type, TYPE_VLAN | TYPE_SERVICE_VLAN) {
                break;
            }
            ether_type = half(frame, l3 + 2)?;
            l3 += VLAN_LEN;
        }
        match ether_type {
            TYPE_IP4 => Layout::of_ip4(frame, l3),
            TYPE_IP6 => Layout::of_ip6(frame, l3),
            _ => None,
        }
    }

    fn of_ip4(frame: &[u8], l3: usize) -> Option<Layout> {
        let header = frame.get(l3..)?.first_chunk::<20>()?;
        let words = header[0] & 0xf;
        let l4 = l3 + usize::from(words) * 4;
        if header[0] >> 4 != 4 || words < 5 || l4 > frame.len() {
            return None;
        }
        // "More fragments" and the offset.
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        Some(Layout { ip: Ip::V4, l3, l4, protocol: header[9], fragment })
    }

    fn of_ip6(frame: &[u8], l3: usize) -> Option<Layout> {
        let header = frame.get(l3..)?.first_chunk::<IP6_LEN>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let (mut l4, mut protocol, mut fragment) = (l3 + IP6_LEN, header[6], false);
        for _ in 0..MAX_EXTENSIONS {
            let len = match protocol {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => (usize::from(*frame.get(l4 + 1)?) + 1) * 8,
                44 => {
                    fragment |= half(frame, l4 + 2)? & 0xfff9 != 0;
                    8
                }
                _ => break,
            };
            protocol = *frame.get(l4)?;
            l4 += len;
            if l4 > frame.len() {
                return None;
            }
        }
        Some(Layout { ip: Ip::V6, l3, l4, protocol, fragment })
    }
}

/// The 802.1Q tag right behind the addresses, if the frame has one and something behind it.
pub fn vlan_tag(frame: &[u8]) -> Option<u16> {
    half(frame, TYPE_AT + VLAN_LEN)?;
    (half(frame, TYPE_AT)? == TYPE_VLAN).then(|| half(frame, TYPE_AT + 2))?
}

/// Writes a tag in front of what a frame carries: `frame` begins [`VLAN_LEN`] bytes before it. False if it is too short for that.
pub(crate) fn put_vlan_tag(frame: &mut [u8], tci: u16) -> bool {
    if frame.len() < VLAN_LEN + ETHERNET_LEN {
        return false;
    }
    frame.copy_within(VLAN_LEN..VLAN_LEN + TYPE_AT, 0);
    frame[TYPE_AT..TYPE_AT + 2].copy_from_slice(&TYPE_VLAN.to_be_bytes());
    frame[TYPE_AT + 2..TYPE_AT + 4].copy_from_slice(&tci.to_be_bytes());
    true
}

/// The 16 bits at an offset, in the network's order.
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|half| u16::from_be_bytes(*half))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A frame with TCP of `payload` bytes; `options` bytes of IPv4 options, or of an IPv6 extension header.
    pub(crate) fn tcp(ip: Ip, options: usize, payload: usize) -> Vec<u8> {
        frame(ip, TCP, options, 20 + payload)
    }

    /// A frame with a transport protocol of `len` bytes; TCP's own header is one without options.
    pub(crate) fn frame(ip: Ip, protocol: u8, options: usize, len: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match ip {
            Ip::V4 => {
                frame.extend_from_slice(&[8, 0]);
                let total = (20 + options + len) as u16;
                let words = 0x45 + (options / 4) as u8;
                let [high, low] = total.to_be_bytes();
                frame.extend_from_slice(&[words, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
                frame.resize(frame.len() + options, 1);
            }
            Ip::V6 => {
                let [high, low] = ((options + len) as u16).to_be_bytes();
                let next = if options > 0 { 60 } else { protocol };
                frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, high, low, next, 64]);
                for last in [1, 2] {
                    frame.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
                }
                if options > 0 {
                    frame.extend_from_slice(&[protocol, (options / 8 - 1) as u8]);
                    frame.resize(frame.len() + options - 2, 0);
                }
            }
        }
        let l4 = frame.len();
        frame.extend((0..len).map(|n| n as u8));
        if protocol == TCP && len >= 20 {
            (frame[l4 + 12], frame[l4 + 13]) = (0x50, 0x18);
        }
        frame
    }

    fn tagged(frame: &[u8], tags: usize) -> Vec<u8> {
        let mut frame = frame.to_vec();
        for tci in 0..tags as u16 {
            frame.splice(0..0, [0; VLAN_LEN]);
            assert!(put_vlan_tag(&mut frame, 100 + tci));
        }
        frame
    }

    #[test]
    fn headers_are_found() {
        for tags in 0..=2 {
            let l3 = 14 + tags * 4;
            for (ip, options, len) in [(Ip::V4, 0, 20), (Ip::V4, 40, 60), (Ip::V6, 0, 40), (Ip::V6, 16, 56)] {
                let frame = tagged(&tcp(ip, options, 10), tags);
                let expected = Layout { ip, l3, l4: l3 + len, protocol: TCP, fragment: false };
                assert_eq!(Layout::of(&frame), Some(expected));
                // The IP header must be there, and nothing more.
                assert_eq!(Layout::of(&frame[..l3 + len]), Some(expected));
                for short in 0..l3 + len {
                    assert_eq!(Layout::of(&frame[..short]), None);
                }
            }
        }
        assert_eq!(Layout::of(&tagged(&tcp(Ip::V4, 0, 0), 3)), None);
    }

    #[test]
    fn what_is_not_ip_has_no_headers() {
        let mut frame = tcp(Ip::V4, 0, 0);
        for (at, value) in [(12, 9), (14, 0x65), (14, 0x44)] {
            let before = std::mem::replace(&mut frame[at], value);
            assert_eq!(Layout::of(&frame), None);
            frame[at] = before;
        }
        let mut frame = tcp(Ip::V6, 0, 0);
        frame[14] = 0x40;
        assert_eq!(Layout::of(&frame), None);
    }

    #[test]
    fn fragments_are_told() {
        let mut frame = tcp(Ip::V4, 0, 0);
        for (flags, fragment) in [(0x4000u16, false), (0x2000, true), (1, true), (0, false)] {
            frame[20..22].copy_from_slice(&flags.to_be_bytes());
            assert_eq!(Layout::of(&frame).unwrap().fragment, fragment);
        }
        let mut frame = tcp(Ip::V6, 8, 0);
        frame[20] = 44;
        for (flags, fragment) in [(0u16, false), (1, true), (8, true), (6, false)] {
            frame[56..58].copy_from_slice(&flags.to_be_bytes());
            let layout = Layout::of(&frame).unwrap();
            assert_eq!((layout.fragment, layout.protocol, layout.l4), (fragment, TCP, 62));
        }
    }

    #[test]
    fn extension_headers_end_somewhere() {
        let mut frame = tcp(Ip::V6, 8, 0);
        frame[55] = 255;
        assert_eq!(Layout::of(&frame), None, "the header is longer than the frame");
        // A chain that never ends stops at the limit.
        let mut frame = tcp(Ip::V6, 0, 0);
        frame[20] = 60;
        frame.truncate(54);
        frame.extend(std::iter::repeat_n([60, 0, 0, 0, 0, 0, 0, 0], 20).flatten());
        assert_eq!(Layout::of(&frame).unwrap().l4, 54 + 8 * MAX_EXTENSIONS);
    }

    #[test]
    fn a_tag_is_seen_and_put_in() {
        let plain = tcp(Ip::V4, 0, 4);
        let with = tagged(&plain, 1);
        assert_eq!(vlan_tag(&plain), None);
        assert_eq!(vlan_tag(&with), Some(100));
        assert_eq!((&with[..12], &with[16..]), (&plain[..12], &plain[12..]));
        assert_eq!(vlan_tag(&with[..17]), None);
        assert!(!put_vlan_tag(&mut [0; 17], 1));
    }
}
