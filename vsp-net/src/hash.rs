//! The Toeplitz hash, by which a frame is steered to a channel.
//!
//! Source: Microsoft, "RSS Hashing Functions" and "Verifying the RSS Hash Calculation" (NDIS documentation), whose vectors are the
//! tests here.

use crate::headers::{Ip, Layout, TCP, UDP};

/// Bytes of a key.
pub const KEY_LEN: usize = 40;
/// Most bytes of an input: two IPv6 addresses and two ports.
const MAX_INPUT: usize = 36;

bitflags::bitflags! {
    /// Of what a hash is taken (`NDIS_HASH_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HashTypes: u32 {
        /// Addresses of IPv4.
        const IP4 = 0x100;
        /// Addresses and ports of TCP over IPv4.
        const TCP_IP4 = 0x200;
        /// Addresses of IPv6.
        const IP6 = 0x400;
        /// Addresses of IPv6, those in extension headers first. Taken as [`HashTypes::IP6`].
        const IP6_EX = 0x800;
        /// Addresses and ports of TCP over IPv6.
        const TCP_IP6 = 0x1000;
        /// The same, with addresses in extension headers first. Taken as [`HashTypes::TCP_IP6`].
        const TCP_IP6_EX = 0x2000;
        /// Addresses and ports of UDP over IPv4.
        const UDP_IP4 = 0x4000;
        /// Addresses and ports of UDP over IPv6.
        const UDP_IP6 = 0x8000;
    }
}

/// The hash of any bytes, up to 36; what is behind them does not count.
pub fn toeplitz(key: &[u8; KEY_LEN], input: &[u8]) -> u32 {
    let mut hash = 0;
    for (at, byte) in input.iter().take(MAX_INPUT).enumerate() {
        for bit in 0..8 {
            if byte & 0x80 >> bit != 0 {
                hash ^= window(key, at * 8 + bit);
            }
        }
    }
    hash
}

/// The 32 bits of a key from one of its bits on.
fn window(key: &[u8; KEY_LEN], bit: usize) -> u32 {
    let bytes = std::array::from_fn(|at| key.get(bit / 8 + at).copied().unwrap_or(0));
    (u64::from_be_bytes(bytes) << (bit % 8) >> 32) as u32
}

/// A key, made ready: for every half byte of an input, what it adds to the hash.
#[derive(Clone)]
pub struct Toeplitz {
    tables: Box<[[u32; 16]; MAX_INPUT * 2]>,
}

impl Toeplitz {
    /// Makes a key ready.
    pub fn new(key: &[u8; KEY_LEN]) -> Toeplitz {
        let mut tables = Box::new([[0; 16]; MAX_INPUT * 2]);
        for (place, table) in tables.iter_mut().enumerate() {
            for (value, entry) in table.iter_mut().enumerate() {
                for bit in (0..4).filter(|bit| value & 8 >> bit != 0) {
                    *entry ^= window(key, place * 4 + bit);
                }
            }
        }
        Toeplitz { tables }
    }

    /// The hash of up to 36 bytes.
    pub fn hash(&self, input: impl IntoIterator<Item = u8>) -> u32 {
        let pairs = self.tables.chunks_exact(2).zip(input);
        pairs.fold(0, |hash, (pair, byte)| {
            hash ^ pair[0][usize::from(byte >> 4)] ^ pair[1][usize::from(byte & 0xf)]
        })
    }

    /// The hash of a frame, if it is one of those that are to be hashed; `frame` begins as what [`Layout::of`] looked at.
    pub fn frame(&self, layout: &Layout, frame: &[u8], types: HashTypes) -> Option<u32> {
        use HashTypes as T;
        let (addresses, [with_tcp, with_udp, alone]) = match layout.ip {
            Ip::V4 => (frame.get(layout.l3 + 12..layout.l3 + 20)?, [T::TCP_IP4, T::UDP_IP4, T::IP4]),
            Ip::V6 => (
                frame.get(layout.l3 + 8..layout.l3 + 40)?,
                [T::TCP_IP6 | T::TCP_IP6_EX, T::UDP_IP6, T::IP6 | T::IP6_EX],
            ),
        };
        let wanted = match layout.protocol {
            TCP => types.intersects(with_tcp),
            UDP => types.intersects(with_udp),
            _ => false,
        };
        // All pieces of a packet go the same way, so the ports that only the first has do not count.
        let ports = frame.get(layout.l4..layout.l4 + 4).filter(|_| wanted && !layout.fragment);
        match ports {
            Some(ports) => Some(self.hash(addresses.iter().chain(ports).copied())),
            None => types.intersects(alone).then(|| self.hash(addresses.iter().copied())),
        }
    }
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is nobody's business.
        f.debug_struct("Toeplitz").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::headers::tests::frame;

    const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// Source, its port, destination, its port; the hash of addresses, and that with ports.
    const VECTORS: [(&str, u16, &str, u16, u32, u32); 8] = [
        ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323e_8fc2, 0x51cc_c178),
        ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xd718_262a, 0xc626_b0ea),
        ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xd2d0_a5de, 0x5c2b_394a),
        ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x8298_9176, 0xafc7_327f),
        ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5d18_09c5, 0x10e8_28a2),
        ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2cc1_8cd5, 0x4020_7d3d),
        ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0f0c_461c, 0xdde5_1bbf),
        (
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            "fe80::200:f8ff:fe21:67cf",
            38024,
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    fn octets(address: &str) -> Vec<u8> {
        match address.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    #[test]
    fn microsofts_vectors_hold() {
        let ready = Toeplitz::new(&KEY);
        for (source, source_port, destination, destination_port, alone, with_ports) in VECTORS {
            let mut input = [octets(source), octets(destination)].concat();
            assert_eq!((toeplitz(&KEY, &input), ready.hash(input.iter().copied())), (alone, alone));
            input.extend([source_port.to_be_bytes(), destination_port.to_be_bytes()].concat());
            assert_eq!((toeplitz(&KEY, &input), ready.hash(input)), (with_ports, with_ports));
        }
    }

    #[test]
    fn frames_are_hashed_as_the_guest_has_chosen() {
        use HashTypes as T;
        let ready = Toeplitz::new(&KEY);
        for (source, source_port, destination, destination_port, alone, with_ports) in VECTORS {
            let (ip, at) = if source.contains(':') { (Ip::V6, 22) } else { (Ip::V4, 26) };
            for protocol in [TCP, UDP, 1] {
                let mut bytes = frame(ip, protocol, 0, 40);
                let layout = Layout::of(&bytes).unwrap();
                let addresses = [octets(source), octets(destination)].concat();
                bytes[at..at + addresses.len()].copy_from_slice(&addresses);
                let ports = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
                bytes[layout.l4..layout.l4 + 4].copy_from_slice(&ports);
                let hash = |types| ready.frame(&layout, &bytes, types);
                let [tcp, udp] = match ip {
                    Ip::V4 => [T::TCP_IP4, T::UDP_IP4],
                    Ip::V6 => [T::TCP_IP6, T::UDP_IP6],
                };
                assert_eq!(hash(tcp), (protocol == TCP).then_some(with_ports));
                assert_eq!(hash(udp), (protocol == UDP).then_some(with_ports));
                assert_eq!(hash(T::IP4 | T::IP6), Some(alone));
                let expected = if protocol == TCP { with_ports } else { alone };
                assert_eq!(hash(tcp | T::IP4 | T::IP6), Some(expected));
                assert_eq!(hash(T::empty()), None);
                let fragment = Layout { fragment: true, ..layout };
                assert_eq!(ready.frame(&fragment, &bytes, T::all()), Some(alone));
                // Headers that end before the ports.
                assert_eq!(ready.frame(&layout, &bytes[..layout.l4 + 3], T::all()), Some(alone));
            }
        }
    }

    #[test]
    fn longer_inputs_do_not_count() {
        let ready = Toeplitz::new(&KEY);
        let input: Vec<u8> = (0..100).collect();
        assert_eq!(toeplitz(&KEY, &input), toeplitz(&KEY, &input[..36]));
        assert_eq!(ready.hash(input.iter().copied()), toeplitz(&KEY, &input));
    }
}
