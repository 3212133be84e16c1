//! What a guest may ask of its NIC and set in it (NDIS's objects), and the state behind that.
//!
//! Pure: [`query`] and [`set`] look at and change a [`State`], and [`Effect`] says what the device has to do. What is here survives
//! the process, as bytes in the ledger ([`State::save`]); a successor takes it over before it answers anything.
//!
//! Source of numbers: `include/linux/rndis.h`, and NDIS's documentation for what only Windows asks. What Linux 6.1 and 6.12 ask, in their
//! order: maximum frame size, permanent address, friendly name, offload capabilities (and set parameters), connect status, link speed,
//! RSS capabilities (and set parameters), packet filter; the MAC by a configuration parameter.

mod ledger;
mod multicast;
pub mod number;
pub mod offloads;
mod parameter;
mod query;
pub mod rss;
mod set;
pub mod statistics;
#[cfg(test)]
mod tests;

pub use ledger::RestoreError;
pub use multicast::{MAX_MULTICAST, Multicast};
pub use offloads::{MAX_LSO, Offloads};
pub use query::query;
pub use rss::Rss;
pub use set::set;
pub use statistics::{Counters, Statistics};

use crate::headers::ETHERNET_LEN;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Least MTU: that of IPv4 (RFC 791), and of Linux's netvsc.
pub const MIN_MTU: u32 = 68;
/// Largest MTU that a policy may allow.
pub const MAX_MTU: u32 = 9000;
/// MTU of Ethernet, in force until the guest says what it wants.
const USUAL_MTU: u32 = 1500;

bitflags::bitflags! {
    /// Frames that the guest wants (`NDIS_PACKET_TYPE_*`). None: no frame at all.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PacketFilter: u32 {
        /// To its own address.
        const DIRECTED = 1;
        /// To groups on its list.
        const MULTICAST = 2;
        /// To any group.
        const ALL_MULTICAST = 4;
        /// To everybody.
        const BROADCAST = 8;
        /// To anybody.
        const PROMISCUOUS = 0x20;
        const _ = !0;
    }
}

/// What the device is started with; a guest can change none of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The NIC's address.
    pub mac: Mac,
    /// Whether the guest must keep it.
    pub mac_locked: bool,
    /// Largest MTU.
    pub mtu: u32,
    /// Bit/s that the guest is told.
    pub speed: u64,
    /// Most channels.
    pub queues: u16,
    /// What the backend can do.
    pub offloads: Offloads,
    /// What the guest may call the NIC (Linux: `ifalias`); empty: nothing.
    pub name: String,
}

/// All that a guest can ask and set.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The address with which the guest finds the NIC.
    pub permanent_mac: Mac,
    /// The address that it uses.
    pub mac: Mac,
    /// MTU in force: the guest's, as far as the policy goes.
    pub mtu: u32,
    /// Whether the link is up. An operator's word, not a guest's.
    pub link_up: bool,
    /// Bit/s that the guest is told.
    pub speed: u64,
    /// Frames that the guest wants.
    pub filter: PacketFilter,
    /// Groups that it wants frames of.
    pub multicast: Multicast,
    /// What has passed.
    pub statistics: Statistics,
    /// What the backend can do: what the guest was offered.
    pub offloads: Offloads,
    /// What of it the guest has switched on.
    pub enabled: Offloads,
    /// How frames are spread over channels; `None`: not at all.
    pub rss: Option<Rss>,
    /// The minor version of the guest's NDIS 6.
    ndis_minor: u32,
    max_mtu: u32,
    queues: u16,
    mac_locked: bool,
    name: String,
}

/// What the device has to do after a guest has set an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// [`State::filter`] or the list of groups is another.
    Filter,
    /// [`State::mac`] is another.
    Mac,
    /// [`State::enabled`] is another: the backend may have to be told. The guest may be told with
    /// [`crate::rndis::Indication::Offloads`].
    Offloads,
    /// [`State::rss`] is another.
    Rss,
}

impl State {
    /// That of a NIC which no guest has seen.
    pub fn new(config: Config) -> State {
        let Config { mac, mac_locked, mtu, speed, queues, offloads, name } = config;
        let mut state = State {
            permanent_mac: mac,
            mac,
            mtu: 0,
            link_up: true,
            speed,
            filter: PacketFilter::empty(),
            multicast: Multicast::default(),
            statistics: Statistics::default(),
            offloads,
            enabled: Offloads::empty(),
            rss: None,
            ndis_minor: 0,
            max_mtu: mtu.clamp(MIN_MTU, MAX_MTU),
            queues: queues.max(1),
            mac_locked,
            name,
        };
        state.reopen();
        state
    }

    /// The guest's driver is gone, or has not begun: its channel has been opened or closed. Nothing is left of what it has set
    /// but its address ([`State::halt`]).
    pub fn reopen(&mut self) {
        self.halt();
        self.mtu = self.max_mtu.min(USUAL_MTU);
        self.ndis_minor = 0;
    }

    /// RNDIS begins or ends (INITIALIZE, HALT). What has been said before of MTU and NDIS holds.
    ///
    /// The address stays as the last driver has set it, since Linux opens the channel anew for each change of the MTU and does not
    /// set the address again. Frames go by either address ([`State::is_ours`]): a rebooted Linux uses the permanent one again, and
    /// says nothing.
    pub fn halt(&mut self) {
        self.filter = PacketFilter::empty();
        self.multicast = Multicast::default();
        self.enabled = self.offloads.at_first();
        self.rss = None;
    }

    /// The guest's NDIS ([`crate::nvsp::GuestMessage::NdisVersion`]).
    pub fn set_ndis_version(&mut self, major: u32, minor: u32) {
        self.ndis_minor = if major >= 6 { minor } else { 0 };
    }

    /// The largest frame that the guest wants, its Ethernet header included ([`crate::nvsp::GuestMessage::NdisConfig`]). It is told
    /// what became of it when it asks for the maximum frame size.
    pub fn set_config_mtu(&mut self, frame: u32) {
        self.mtu = frame.saturating_sub(ETHERNET_LEN as u32).clamp(MIN_MTU, self.max_mtu);
    }

    /// Longest MTU that the policy allows.
    pub fn max_mtu(&self) -> u32 {
        self.max_mtu
    }

    /// Whether an address is the guest's.
    pub fn is_ours(&self, address: &Mac) -> bool {
        *address == self.mac || *address == self.permanent_mac
    }

    /// Whether the guest wants a frame for this address.
    pub fn accepts(&self, destination: &Mac) -> bool {
        let any = |filter| self.filter.intersects(filter);
        if any(PacketFilter::PROMISCUOUS) {
            return true;
        }
        match destination {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => any(PacketFilter::BROADCAST),
            [first, ..] if first & 1 != 0 => {
                any(PacketFilter::ALL_MULTICAST)
                    || (any(PacketFilter::MULTICAST) && self.multicast.contains(destination))
            }
            _ => any(PacketFilter::DIRECTED) && self.is_ours(destination),
        }
    }

    /// The link's speed as RNDIS has it, in units of 100 bit/s.
    pub fn speed_in_hundreds(&self) -> u32 {
        u32::try_from(self.speed / 100).unwrap_or(u32::MAX)
    }
}
