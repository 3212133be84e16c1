//! The consumer of network devices: what `hv_netvsc` is in a kernel, with the checks of a test.
//!
//! [`Net`] is a device: it agrees on versions, shares the buffers, asks and sets objects ([`control`]). Its queues are
//! [`NetQueue`]s: they move frames, each in a thread of its own if need be. [`wire`] and [`rndis`] are the formats.
//!
//! A completion that is lost, repeated or invented is an error here; so is a range outside of the receive buffer, or
//! one that is lent twice.

mod buffers;
pub mod control;
mod events;
mod pages;
mod queue;
pub mod rndis;
mod sends;
mod setup;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use vmbus::message::Offer;

use crate::channel::Channel;
use crate::client::{Client, OpenOptions};
use crate::error::Error;
use crate::platform::Platform;

pub use buffers::Region;
pub use events::{Delivery, Event, RxFrame, Sent};
pub use pages::FramePages;
pub use queue::{NetQueue, Room};
pub use rndis::{Offload, RxChecksum, RxInfo, TxInfo, Vlan};
pub use sends::SendId;

/// How long a full ring is waited for: an age.
const LONG: Duration = Duration::from_secs(10);

/// How to use a device.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// How to open its channels.
    pub open: OpenOptions,
    /// NVSP versions to propose, in this order.
    pub versions: Vec<u32>,
    /// Largest frame without its Ethernet header.
    pub mtu: u32,
    /// Bytes of the receive buffer.
    pub receive_buffer: u32,
    /// Bytes of the send buffer.
    pub send_buffer: u32,
    /// Most sends under way on a queue. Ids are taken from a table of this size and used again at once.
    pub depth: usize,
    /// Keep book of what is lent, to see whether anything is lent twice. Costs time.
    pub strict: bool,
    /// How long the device may take for an answer.
    pub timeout: Duration,
}

impl Default for NetOptions {
    /// As Linux 6.1 does it: rings of 32 pages, 16 MiB to receive into, 1 MiB to send from.
    fn default() -> Self {
        Self {
            open: OpenOptions::default(),
            versions: vec![
                wire::VERSION_6_1,
                wire::VERSION_6,
                wire::VERSION_5,
                wire::VERSION_4,
                wire::VERSION_2,
                wire::VERSION_1,
            ],
            mtu: 1500,
            receive_buffer: 16 << 20,
            send_buffer: 255 * 4096,
            depth: 256,
            strict: true,
            timeout: LONG,
        }
    }
}

impl NetOptions {
    /// The same with buffers that many devices find room for in a small guest.
    pub fn small() -> Self {
        Self { receive_buffer: 2 << 20, ..Self::default() }
    }
}

/// A section of the send buffer that is being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a section is sent or dropped"]
pub struct Section {
    /// Its number.
    pub index: u32,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u32,
    /// Bytes in use.
    pub used: u32,
    /// Frames in it.
    pub frames: u32,
}

/// What the device said about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// NVSP version.
    pub version: u32,
    /// Its address.
    pub mac: [u8; 6],
    /// Largest frame without its Ethernet header.
    pub mtu: u32,
    /// Bytes of a section of the send buffer.
    pub section_size: u32,
    /// Bytes of a section of the receive buffer, and how many.
    pub receive_sections: (u32, u32),
    /// Packets in one message, and to how many bytes each is padded.
    pub batch: (u32, u32),
    /// Offload capabilities, in NDIS's form.
    pub offloads: Vec<u8>,
    /// The link is up.
    pub link: bool,
    /// In units of 100 bit/s.
    pub speed: u32,
    /// How many queues there can be.
    pub queues: u32,
    /// Entries of the table that says which queue gets what.
    pub rss_entries: u16,
}

/// A network device.
pub struct Net<P: Platform> {
    queue: NetQueue<P>,
    device: Device,
    next_request: u32,
    timeout: Duration,
}

impl<P: Platform> Net<P> {
    /// Opens a device and brings it up, in the driver's order, with one queue.
    pub fn open(client: &mut Client<P>, offer: &Offer, options: &NetOptions) -> Result<Self, Error> {
        let channel = client.open(offer, &options.open)?;
        Self::start(client, channel, options)
    }

    /// What the device said about itself.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The first queue.
    pub fn queue(&mut self) -> &mut NetQueue<P> {
        &mut self.queue
    }

    /// Buffer that frames come into.
    pub fn receive_buffer(&self) -> Region {
        self.queue.buffers.receive
    }

    /// Buffer that frames are sent from.
    pub fn send_buffer(&self) -> Region {
        self.queue.buffers.send
    }

    /// Sections of the send buffer, and how many of them are in use.
    pub fn sections(&self) -> (u32, usize) {
        (self.queue.buffers.section_count(), self.queue.buffers.sections_taken())
    }

    /// Ranges of the receive buffer that are the guest's now, on all queues. Only if it is [strict](NetOptions::strict).
    pub fn ranges_lent(&self) -> usize {
        self.queue.buffers.lent()
    }

    /// Asks for `count` sub-channels, as the driver does; returns how many there will be.
    pub fn create_sub_channels(&mut self, count: u32) -> Result<u32, Error> {
        let message = wire::message(wire::SUBCHANNEL, &[wire::SUBCHANNEL_ALLOCATE, count]);
        let answer = self.nvsp(&message)?;
        let answer = wire::Answer::new(&answer)?;
        match (answer.kind(), answer.word(0)?, answer.word(1)?) {
            (wire::SUBCHANNEL, wire::STATUS_SUCCESS, granted) if granted <= count => Ok(granted),
            other => Err(Error::Protocol(format!("a request for {count} sub-channels gets {other:?}"))),
        }
    }

    /// Asks for `count` sub-channels and opens those that the device grants. Their interrupts go to the virtual processors
    /// in turn.
    pub fn open_sub_channels(
        &mut self,
        client: &mut Client<P>,
        count: u32,
        options: &NetOptions,
    ) -> Result<Vec<NetQueue<P>>, Error> {
        let primary = *self.queue.channel.offer();
        let granted = self.create_sub_channels(count)? as u16;
        let offers = client.sub_channel_offers(&primary, granted)?;
        let vps = self.queue.channel.platform().vp_count();
        let open = |offer: &Offer| {
            let target_vp = (options.open.target_vp + u32::from(offer.sub_channel_index)) % vps;
            let channel = client.open(offer, &OpenOptions { target_vp, ..options.open })?;
            Ok(NetQueue::new(channel, Arc::clone(&self.queue.buffers), options.depth, false))
        };
        offers.iter().map(open).collect()
    }

    /// Goes as the driver goes: filter off, halt, buffers revoked, sub-channels and channel closed, buffers taken back.
    /// Everything has to be complete.
    pub fn close(mut self, client: &mut Client<P>, sub_channels: Vec<NetQueue<P>>) -> Result<(), Error> {
        self.set_filter(0)?;
        self.send_control(&rndis::control(rndis::HALT, &[u32::MAX], &[]))?;
        let (mut lost, out) = (self.queue.in_flight(), self.queue.deliveries_out());
        for queue in &sub_channels {
            lost += queue.in_flight();
        }
        if lost > 0 {
            return Err(Error::Lost(lost));
        }
        if out > 0 {
            return Err(Error::Protocol(format!("{out} deliveries were not given back")));
        }
        let buffers = Arc::clone(&self.queue.buffers);
        self.tell(&wire::message(wire::REVOKE_RECEIVE_BUFFER, &[u32::from(wire::RECEIVE_BUFFER_ID)]))?;
        self.tell(&wire::message(wire::REVOKE_SEND_BUFFER, &[u32::from(wire::SEND_BUFFER_ID)]))?;
        for queue in sub_channels.into_iter().rev() {
            client.close(queue.into_channel()?)?;
        }
        let channel = self.queue.into_channel()?;
        let relid = channel.offer().relid;
        let platform = Arc::clone(channel.platform());
        client.close(channel)?;
        for region in [buffers.receive, buffers.send] {
            client.teardown_gpadl(relid, region.gpadl)?;
            platform.release(region.address, region.len / vmbus::PAGE_SIZE);
        }
        Ok(())
    }

    /// The channel, forgetting everything else: for a guest that just goes away.
    pub fn abandon(self) -> Channel<P> {
        self.queue.channel
    }
}
