//! Offloads: what can be left to us, and how a guest is told and tells.
//!
//! Source: NDIS's `NDIS_OFFLOAD` and `NDIS_OFFLOAD_PARAMETERS`, as `drivers/net/hyperv/hyperv_net.h` of Linux has them; what Linux
//! makes of them: `rndis_netdev_set_hwcaps`.

use crate::rndis::RndisStatus;

bitflags::bitflags! {
    /// Work on frames that one side leaves to the other.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u16 {
        /// The guest's IPv4 header checksums are filled in.
        const TX_IP4 = 1;
        /// Its TCP checksums are filled in, over IPv4.
        const TX_TCP4 = 1 << 1;
        /// Its UDP checksums are filled in, over IPv4.
        const TX_UDP4 = 1 << 2;
        /// Its TCP checksums are filled in, over IPv6.
        const TX_TCP6 = 1 << 3;
        /// Its UDP checksums are filled in, over IPv6.
        const TX_UDP6 = 1 << 4;
        /// IPv4 header checksums are checked for the guest.
        const RX_IP4 = 1 << 5;
        /// TCP checksums are checked for it, over IPv4.
        const RX_TCP4 = 1 << 6;
        /// UDP checksums are checked for it, over IPv4.
        const RX_UDP4 = 1 << 7;
        /// TCP checksums are checked for it, over IPv6.
        const RX_TCP6 = 1 << 8;
        /// UDP checksums are checked for it, over IPv6.
        const RX_UDP6 = 1 << 9;
        /// Its TCP data is cut into segments, over IPv4.
        const LSO4 = 1 << 10;
        /// Its TCP data is cut into segments, over IPv6.
        const LSO6 = 1 << 11;
        /// It takes several TCP segments as one, over IPv4. Linux wants it unless it forwards.
        const RSC4 = 1 << 12;
        /// It takes several TCP segments as one, over IPv6.
        const RSC6 = 1 << 13;
    }
}

impl Offloads {
    /// What a TAP interface with `IFF_VNET_HDR` can do; IPv4 header checksums are ours.
    pub const TAP: Offloads = Offloads::all();
    /// Nothing.
    pub const NONE: Offloads = Offloads::empty();
    /// Coalescing: off until a guest asks, since one that does not know of it could not forward what it gets.
    const ONLY_IF_ASKED: Offloads = Offloads::RSC4.union(Offloads::RSC6);

    /// What is in force before the guest has said anything.
    pub(super) fn at_first(self) -> Offloads {
        self - Offloads::ONLY_IF_ASKED
    }
}

/// Longest TCP data with its headers that a guest is told to leave to us.
pub const MAX_LSO: u32 = 61_440;
/// Fewest segments of it.
const MIN_SEGMENTS: u32 = 2;

/// Ethernet, with a VLAN tag as per-packet information or without one (`NDIS_ENCAPSULATION_*`).
const ENCAPSULATION: u32 = 0x2 | 0x8;

/// Bytes of an `NDIS_OFFLOAD`.
const OBJECT_LEN: usize = 156;
/// Its type.
const OBJECT_TYPE: u8 = 0xa7;
/// Its revisions (NDIS 6.0, 6.1, 6.30), and bytes of each.
const REVISIONS: [(u8, usize); 3] = [(1, 112), (2, 144), (3, OBJECT_LEN)];

/// Where its fields are.
mod field {
    pub const CHECKSUM_TX4: usize = 4;
    pub const CHECKSUM_RX4: usize = 12;
    pub const CHECKSUM_TX6: usize = 20;
    pub const CHECKSUM_RX6: usize = 28;
    pub const LSO4: usize = 80;
    pub const LSO6: usize = 92;
    pub const LSO6_OPTIONS: usize = 104;
    pub const RSC4: usize = 144;
    pub const RSC6: usize = 145;
}

/// Of checksums: headers with options too, and each protocol. Two bits each, of which 1 is "yes".
mod checksum {
    pub const IP_OPTIONS: u32 = 1;
    pub const TCP_OPTIONS: u32 = 1 << 2;
    pub const TCP: u32 = 1 << 4;
    pub const UDP: u32 = 1 << 6;
    pub const IP4: u32 = 1 << 8;
}

/// Appends the `NDIS_OFFLOAD` that says `offloads`, in the revision of a guest's NDIS 6.`minor`.
///
/// `wanted` is what the guest has sent with its question: Linux says there how much it has room for.
pub fn object(offloads: Offloads, minor: u32, wanted: &[u8], out: &mut Vec<u8>) {
    let room = match wanted {
        [OBJECT_TYPE, _, low, high, ..] => usize::from(u16::from_le_bytes([*low, *high])),
        _ => OBJECT_LEN,
    };
    let most = match minor {
        0 => REVISIONS[0],
        1..30 => REVISIONS[1],
        _ => REVISIONS[2],
    };
    let fits = |revision: &&(u8, usize)| revision.1 <= room && revision.1 <= most.1;
    let (revision, len) = *REVISIONS.iter().rev().find(fits).unwrap_or(&REVISIONS[0]);

    let mut object = [0; OBJECT_LEN];
    object[..2].copy_from_slice(&[OBJECT_TYPE, revision]);
    object[2..4].copy_from_slice(&(len as u16).to_le_bytes());
    let mut put = |at: usize, words: &[u32]| {
        for (place, word) in object[at..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    };
    let flag = |offload: Offloads, value: u32| if offloads.contains(offload) { value } else { 0 };
    for (at, ip, tcp, udp) in [
        (field::CHECKSUM_TX4, Offloads::TX_IP4, Offloads::TX_TCP4, Offloads::TX_UDP4),
        (field::CHECKSUM_RX4, Offloads::RX_IP4, Offloads::RX_TCP4, Offloads::RX_UDP4),
        (field::CHECKSUM_TX6, Offloads::empty(), Offloads::TX_TCP6, Offloads::TX_UDP6),
        (field::CHECKSUM_RX6, Offloads::empty(), Offloads::RX_TCP6, Offloads::RX_UDP6),
    ] {
        let ip = if ip.is_empty() { 0 } else { flag(ip, checksum::IP4) };
        let mut all = ip | flag(tcp, checksum::TCP | checksum::TCP_OPTIONS) | flag(udp, checksum::UDP);
        if all != 0 {
            all |= checksum::IP_OPTIONS;
            put(at, &[ENCAPSULATION, all]);
        }
    }
    if offloads.contains(Offloads::LSO4) {
        put(field::LSO4, &[ENCAPSULATION, MAX_LSO, MIN_SEGMENTS]);
    }
    if offloads.contains(Offloads::LSO6) {
        put(field::LSO6, &[ENCAPSULATION, MAX_LSO, MIN_SEGMENTS]);
        put(field::LSO6_OPTIONS, &[checksum::IP_OPTIONS | checksum::TCP_OPTIONS]);
    }
    object[field::RSC4] = flag(Offloads::RSC4, 1) as u8;
    object[field::RSC6] = flag(Offloads::RSC6, 1) as u8;
    out.extend_from_slice(&object[..len]);
}

/// Bytes of an `NDIS_OFFLOAD_PARAMETERS` that has everything but coalescing.
const PARAMETERS_LEN: usize = 20;

/// What is in force after a guest has sent an `NDIS_OFFLOAD_PARAMETERS`: each offload is left as it is, switched on or off.
pub(super) fn set(supported: Offloads, enabled: Offloads, value: &[u8]) -> Result<Offloads, RndisStatus> {
    let [0x80, _, low, high, ..] = *value else { return Err(RndisStatus::INVALID_DATA) };
    let says = usize::from(u16::from_le_bytes([low, high]));
    let value = value.get(..says).unwrap_or(value);
    if value.len() < PARAMETERS_LEN {
        return Err(RndisStatus::INVALID_LENGTH);
    }
    let mut new = enabled;
    for (at, tx, rx) in [
        (4, Offloads::TX_IP4, Offloads::RX_IP4),
        (5, Offloads::TX_TCP4, Offloads::RX_TCP4),
        (6, Offloads::TX_UDP4, Offloads::RX_UDP4),
        (7, Offloads::TX_TCP6, Offloads::RX_TCP6),
        (8, Offloads::TX_UDP6, Offloads::RX_UDP6),
    ] {
        let (has_tx, has_rx) = match value[at] {
            0 => continue,
            1 => (false, false),
            2 => (true, false),
            3 => (false, true),
            4 => (true, true),
            _ => return Err(RndisStatus::INVALID_DATA),
        };
        new.set(tx, has_tx);
        new.set(rx, has_rx);
    }
    for (at, offload) in
        [(11, Offloads::LSO4), (12, Offloads::LSO6), (22, Offloads::RSC4), (23, Offloads::RSC6)]
    {
        match value.get(at) {
            None | Some(0) => {}
            Some(1) => new.remove(offload),
            Some(2) => new.insert(offload),
            Some(_) => return Err(RndisStatus::INVALID_DATA),
        }
    }
    // Large send offload's first version.
    if value[9] == 2 {
        return Err(RndisStatus::NOT_SUPPORTED);
    }
    Ok(new & supported)
}

/// What is in force after a guest has set one of the words that administrators of Windows know ("standardized INF keywords").
/// `None`: the word means none of the offloads.
pub(super) fn set_by_keyword(
    supported: Offloads,
    enabled: Offloads,
    word: &str,
    value: u32,
) -> Option<Offloads> {
    let (first, second) = match word {
        "*IPChecksumOffloadIPv4" => (Offloads::TX_IP4, Offloads::RX_IP4),
        "*TCPChecksumOffloadIPv4" => (Offloads::TX_TCP4, Offloads::RX_TCP4),
        "*UDPChecksumOffloadIPv4" => (Offloads::TX_UDP4, Offloads::RX_UDP4),
        "*TCPChecksumOffloadIPv6" => (Offloads::TX_TCP6, Offloads::RX_TCP6),
        "*UDPChecksumOffloadIPv6" => (Offloads::TX_UDP6, Offloads::RX_UDP6),
        "*LsoV2IPv4" => (Offloads::LSO4, Offloads::empty()),
        "*LsoV2IPv6" => (Offloads::LSO6, Offloads::empty()),
        "*RscIPv4" => (Offloads::RSC4, Offloads::empty()),
        "*RscIPv6" => (Offloads::RSC6, Offloads::empty()),
        _ => return None,
    };
    let mut new = enabled;
    new.set(first, value & 1 != 0);
    new.set(second, value & 2 != 0);
    Some(new & supported)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(offloads: Offloads, minor: u32, wanted: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        object(offloads, minor, wanted, &mut out);
        out
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn linux_finds_what_it_looks_for() {
        // `rndis_netdev_set_hwcaps`, by the offsets of `struct ndis_offload`.
        let object = told(Offloads::TAP, 30, &[0xa7, 3, 156, 0]);
        assert_eq!((object.len(), &object[..4]), (156, &[0xa7, 3, 156, 0][..]));
        let (all_tcp4, udp4, all_tcp6, udp6) = (0x14, 0x40, 0x15, 0x40);
        let (tx4, tx6) = (word(&object, 8), word(&object, 24));
        assert_eq!((tx4 & all_tcp4, tx4 & udp4), (all_tcp4, udp4));
        assert_eq!((tx6 & all_tcp6, tx6 & udp6), (all_tcp6, udp6));
        assert_eq!(tx6 & 0x100, 0, "IPv6 headers have no checksum");
        assert_eq!((word(&object, 80) & 2, word(&object, 84)), (2, 61_440));
        assert_eq!((word(&object, 92) & 2, word(&object, 96), word(&object, 104)), (2, 61_440, 5));
        assert_eq!(object[144..146], [1, 1]);
        // Nothing of the first version, of IPsec, of encapsulations.
        assert!(object[36..80].iter().chain(&object[146..]).all(|byte| *byte == 0));
    }

    #[test]
    fn a_device_without_offloads_says_so() {
        let object = told(Offloads::NONE, 30, &[]);
        assert_eq!(object.len(), 156);
        assert!(object[4..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_object_is_as_long_as_the_guests_ndis_has_it() {
        for (minor, wanted, revision, len) in [
            (30, 156, 3, 156),
            (30, 200, 3, 156),
            (30, 144, 2, 144),
            (30, 150, 2, 144),
            (30, 112, 1, 112),
            (30, 4, 1, 112),
            (1, 156, 2, 144),
            (0, 156, 1, 112),
        ] {
            let object = told(Offloads::TAP, minor, &[0xa7, 3, wanted, 0]);
            assert_eq!((object[1], object.len(), object[2]), (revision, len, len as u8));
        }
        assert_eq!(told(Offloads::TAP, 30, &[0x80, 3, 4, 0]).len(), 156);
    }

    /// Parameters of length `len` with some bytes set.
    fn parameters(len: u8, bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut value = vec![0; len.into()];
        value[..4].copy_from_slice(&[0x80, 3, len, 0]);
        for (at, byte) in bytes {
            value[*at] = *byte;
        }
        value
    }

    #[test]
    fn what_linux_switches_on_is_on() {
        // TCP and UDP both ways, LSO, coalescing; no IP header checksums.
        let bytes = [(4, 1), (5, 4), (6, 4), (7, 4), (8, 4), (11, 2), (12, 2), (22, 2), (23, 2)];
        let new = set(Offloads::TAP, Offloads::TAP.at_first(), &parameters(28, &bytes)).unwrap();
        assert_eq!(new, Offloads::TAP - Offloads::TX_IP4 - Offloads::RX_IP4);
        // It forwards: coalescing goes off, and nothing else changes.
        let off = set(Offloads::TAP, new, &parameters(28, &[(22, 1), (23, 1)])).unwrap();
        assert_eq!(off, new - Offloads::RSC4 - Offloads::RSC6);
        // In old versions of the protocol it says nothing about coalescing.
        let old = set(Offloads::TAP, Offloads::TAP.at_first(), &parameters(22, &bytes[..7])).unwrap();
        assert_eq!(old & (Offloads::RSC4 | Offloads::RSC6), Offloads::empty());
        // What there is not cannot be switched on.
        assert_eq!(set(Offloads::NONE, Offloads::NONE, &parameters(28, &bytes)), Ok(Offloads::NONE));
        assert_eq!(set(Offloads::TAP, off, &parameters(28, &[])), Ok(off));
        assert_eq!(set(Offloads::TAP, off, &parameters(28, &[(5, 2)])), Ok(off - Offloads::RX_TCP4));
        assert_eq!(set(Offloads::TAP, off, &parameters(28, &[(5, 3)])), Ok(off - Offloads::TX_TCP4));
    }

    #[test]
    fn parameters_that_make_no_sense_are_refused() {
        let good = parameters(28, &[]);
        for len in 0..4 {
            assert_eq!(set(Offloads::TAP, Offloads::TAP, &good[..len]), Err(RndisStatus::INVALID_DATA));
        }
        for len in 4..20 {
            assert_eq!(set(Offloads::TAP, Offloads::TAP, &good[..len]), Err(RndisStatus::INVALID_LENGTH));
        }
        for (at, value, status) in [
            (0, 0xa7, RndisStatus::INVALID_DATA),
            (2, 19, RndisStatus::INVALID_LENGTH),
            (5, 5, RndisStatus::INVALID_DATA),
            (12, 3, RndisStatus::INVALID_DATA),
            (23, 255, RndisStatus::INVALID_DATA),
            (9, 2, RndisStatus::NOT_SUPPORTED),
        ] {
            let value = parameters(28, &[(at, value)]);
            assert_eq!(set(Offloads::TAP, Offloads::TAP, &value), Err(status));
        }
    }

    #[test]
    fn windows_words_are_understood() {
        let all = Offloads::TAP;
        let by = |word, value| set_by_keyword(all, all, word, value);
        assert_eq!(by("*TCPChecksumOffloadIPv4", 1), Some(all - Offloads::RX_TCP4));
        assert_eq!(by("*UDPChecksumOffloadIPv6", 0), Some(all - Offloads::TX_UDP6 - Offloads::RX_UDP6));
        assert_eq!(by("*LsoV2IPv4", 0), Some(all - Offloads::LSO4));
        assert_eq!(by("*RscIPv6", 1), Some(all));
        assert_eq!(by("*JumboPacket", 9014), None);
        let none = Offloads::NONE;
        assert_eq!(set_by_keyword(none, none, "*LsoV2IPv4", 1), Some(none));
    }
}
