//! What a driver may leave to us, and we to it: the feature bits of a network device (virtio 1.2, 5.1.3), and what follows from
//! those that both sides have taken. Pure.

use crate::backend::{LONGEST_FRAME, Offloads, SHORTEST_FRAME};
use crate::headers::VLAN_LEN;

bitflags::bitflags! {
    /// Feature bits of a network device, and the one of virtio itself that decides about its headers (virtio 1.2, 5.1.3 and 6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `VIRTIO_NET_F_CSUM`: the driver sends frames whose checksum is to be finished.
        const CSUM = 1 << 0;
        /// `VIRTIO_NET_F_GUEST_CSUM`: it takes such frames.
        const GUEST_CSUM = 1 << 1;
        /// `VIRTIO_NET_F_MTU`: the configuration has the MTU.
        const MTU = 1 << 3;
        /// `VIRTIO_NET_F_MAC`: the configuration has the address.
        const MAC = 1 << 5;
        /// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes long frames of TCP over IPv4.
        const GUEST_TSO4 = 1 << 7;
        /// `VIRTIO_NET_F_GUEST_TSO6`: the same over IPv6.
        const GUEST_TSO6 = 1 << 8;
        /// `VIRTIO_NET_F_GUEST_ECN`: they may carry the congestion flag.
        const GUEST_ECN = 1 << 9;
        /// `VIRTIO_NET_F_HOST_TSO4`: it sends long frames of TCP over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// `VIRTIO_NET_F_HOST_TSO6`: the same over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// `VIRTIO_NET_F_HOST_ECN`: they may carry the congestion flag.
        const HOST_ECN = 1 << 13;
        /// `VIRTIO_NET_F_MRG_RXBUF`: a received frame may lie in several of the driver's buffers.
        const MRG_RXBUF = 1 << 15;
        /// `VIRTIO_NET_F_STATUS`: the configuration has the state of the link.
        const STATUS = 1 << 16;
        /// `VIRTIO_NET_F_MQ`: there may be several pairs of queues.
        const MQ = 1 << 22;
        /// `VIRTIO_F_VERSION_1`: not a legacy driver.
        const VERSION_1 = 1 << 32;
        // Those of rings, which are no business of a NIC.
        const _ = !0;
    }
}

impl Features {
    /// What we offer of the NIC's: what its backend can do, and so many pairs of queues.
    ///
    /// No control queue: front ends that have one serve it themselves, as QEMU and Cloud Hypervisor do. And no announcing after a
    /// migration: a process that takes over is none.
    pub fn offered(able: Offloads, pairs: u16) -> Features {
        let mut offered = Features::MTU | Features::MAC | Features::STATUS | Features::MRG_RXBUF;
        offered.set(Features::CSUM | Features::GUEST_CSUM, able.checksum);
        offered.set(Features::HOST_TSO4 | Features::GUEST_TSO4, able.checksum && able.tso4);
        offered.set(Features::HOST_TSO6 | Features::GUEST_TSO6, able.checksum && able.tso6);
        offered.set(Features::HOST_ECN | Features::GUEST_ECN, able.checksum && able.ecn);
        // To a driver it means a control queue, too, which is the front end's: one that has none must not see it.
        offered.set(Features::MQ, pairs > 1);
        offered
    }

    /// Without those that lack what they need (virtio 1.2, 5.1.3.1). A front end may take such; what is left is safe.
    fn consistent(mut self) -> Features {
        if !self.contains(Features::CSUM) {
            self.remove(Features::HOST_TSO4 | Features::HOST_TSO6);
        }
        if !self.contains(Features::GUEST_CSUM) {
            self.remove(Features::GUEST_TSO4 | Features::GUEST_TSO6);
        }
        if !self.intersects(Features::HOST_TSO4 | Features::HOST_TSO6) {
            self.remove(Features::HOST_ECN);
        }
        if !self.intersects(Features::GUEST_TSO4 | Features::GUEST_TSO6) {
            self.remove(Features::GUEST_ECN);
        }
        self
    }
}

/// What both sides have taken, and what follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    features: Features,
}

impl Agreed {
    /// From the bits that the front end has set.
    pub fn new(bits: u64) -> Agreed {
        Agreed { features: Features::from_bits_retain(bits).consistent() }
    }

    /// Bytes in front of each frame (virtio 1.2, 5.1.6.1: a legacy driver that merges nothing has no count of buffers).
    pub fn header_len(self) -> usize {
        if self.features.intersects(Features::VERSION_1 | Features::MRG_RXBUF) { 12 } else { 10 }
    }

    /// Whether a received frame may lie in several buffers.
    pub fn merges(self) -> bool {
        self.features.contains(Features::MRG_RXBUF)
    }

    /// What the driver may leave to us.
    pub fn transmit(self) -> Offloads {
        Offloads {
            checksum: self.features.contains(Features::CSUM),
            tso4: self.features.contains(Features::HOST_TSO4),
            tso6: self.features.contains(Features::HOST_TSO6),
            ecn: self.features.contains(Features::HOST_ECN),
        }
    }

    /// What we may leave to the driver.
    pub fn receive(self) -> Offloads {
        Offloads {
            checksum: self.features.contains(Features::GUEST_CSUM),
            tso4: self.features.contains(Features::GUEST_TSO4),
            tso6: self.features.contains(Features::GUEST_TSO6),
            ecn: self.features.contains(Features::GUEST_ECN),
        }
    }

    /// Longest frame that may come for the driver, in bytes.
    pub fn longest_received(self, mtu: u16) -> usize {
        let Offloads { tso4, tso6, .. } = self.receive();
        if tso4 || tso6 { LONGEST_FRAME } else { longest_plain(mtu) }
    }
}

/// Longest frame that is not cut up, in bytes: an Ethernet header, and two VLAN tags.
pub fn longest_plain(mtu: u16) -> usize {
    usize::from(mtu) + SHORTEST_FRAME + 2 * VLAN_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backend_cannot_do_is_not_offered() {
        let stream = Features::offered(Offloads::NONE, 1);
        assert_eq!(stream, Features::MTU | Features::MAC | Features::STATUS | Features::MRG_RXBUF);
        let tap = Features::offered(Offloads::ALL, 4);
        assert_eq!(tap.bits(), 0x41_bbab, "all but the control queue's");
        assert!(!Features::offered(Offloads::ALL, 1).contains(Features::MQ));
    }

    #[test]
    fn what_lacks_its_ground_is_not_agreed_on() {
        let all = Agreed::new(Features::offered(Offloads::ALL, 1).bits() | Features::VERSION_1.bits());
        assert_eq!((all.transmit(), all.receive()), (Offloads::ALL, Offloads::ALL));
        assert_eq!((all.header_len(), all.merges(), all.longest_received(1500)), (12, true, LONGEST_FRAME));
        // Segments without checksums, the congestion flag without segments.
        let only =
            (Features::HOST_TSO4 | Features::HOST_ECN | Features::GUEST_TSO6 | Features::GUEST_ECN).bits();
        let none = Agreed::new(only);
        assert_eq!((none.transmit(), none.receive()), (Offloads::NONE, Offloads::NONE));
        assert_eq!((none.header_len(), none.merges(), none.longest_received(1500)), (10, false, 1522));
        let some = Agreed::new(only | Features::CSUM.bits());
        assert_eq!(some.transmit(), Offloads { tso6: false, ..Offloads::ALL });
        assert_eq!(Agreed::new(Features::VERSION_1.bits()).header_len(), 12);
        assert_eq!(Agreed::new(Features::MRG_RXBUF.bits()).header_len(), 12);
        assert_eq!(Agreed::new(u64::MAX).receive(), Offloads::ALL);
    }
}
