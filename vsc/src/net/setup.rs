//! How a device is brought up, in the order of Linux 6.1 (`netvsc_connect_vsp`, `rndis_filter_device_add`).

use std::sync::Arc;

use vmbus::PAGE_SIZE;
use vmbus::packet::{Outgoing, PacketType};

use super::buffers::Buffers;
use super::control::{FILTER_UP, oid};
use super::events::Event;
use super::sends::Pending;
use super::wire::{self, Answer, word};
use super::{Device, LONG, Net, NetOptions, NetQueue, Region, Room, rndis};
use crate::channel::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::platform::Platform;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

impl<P: Platform> Net<P> {
    /// Brings a device up whose channel is open already.
    pub fn start(client: &mut Client<P>, channel: Channel<P>, options: &NetOptions) -> Result<Self, Error> {
        let mut net = Self::introduce(client, channel, options)?;
        net.initialize(options)?;
        net.set_filter(FILTER_UP)?;
        Ok(net)
    }

    /// As far as NVSP goes: versions and buffers.
    pub fn introduce(
        client: &mut Client<P>,
        channel: Channel<P>,
        options: &NetOptions,
    ) -> Result<Self, Error> {
        let relid = channel.offer().relid;
        let platform = Arc::clone(channel.platform());
        let share = |client: &mut Client<P>, len: u32| -> Result<Region, Error> {
            let pages = len.div_ceil(PAGE_SIZE);
            let address = platform.allocate(pages).map_err(Error::Platform)?;
            let gpadl = client.establish_gpadl(relid, address, pages)?;
            Ok(Region { address, len: pages * PAGE_SIZE, gpadl: gpadl.id })
        };
        let none = Region { address: 0, len: 0, gpadl: 0 };
        let buffers = Arc::new(Buffers::new(none, none, options.strict));
        let queue = NetQueue::new(channel, buffers, options.depth, true);
        let mut net = Self { queue, device: Device::default(), next_request: 0, timeout: options.timeout };
        net.agree(options)?;
        let receive = share(client, options.receive_buffer)?;
        net.replace(Buffers::new(receive, none, options.strict));
        let section = net.send_receive_buffer(receive)?;
        let send = share(client, options.send_buffer)?;
        let section_size = net.send_send_buffer(send)?;
        let mut buffers = Buffers::new(receive, send, options.strict);
        buffers.receive_section_size = section.0;
        buffers.divide(section_size);
        net.replace(buffers);
        net.device.section_size = section_size;
        net.device.receive_sections = section;
        Ok(net)
    }

    /// Nothing is under way yet, so that what the queues share can be another thing.
    fn replace(&mut self, buffers: Buffers) {
        self.queue.buffers = Arc::new(buffers);
    }

    fn agree(&mut self, options: &NetOptions) -> Result<(), Error> {
        for &version in &options.versions {
            let answer = self.nvsp(&wire::message(wire::INIT, &[version, version]))?;
            let answer = Answer::new(&answer)?;
            if answer.kind() != wire::INIT_COMPLETE {
                return Err(Error::Protocol(format!("message {} answers a proposal", answer.kind())));
            }
            if answer.word(2)? != wire::STATUS_SUCCESS {
                continue;
            }
            self.device.version = version;
            if version != wire::VERSION_1 {
                self.configure(version, options.mtu)?;
            }
            let minor = if version <= wire::VERSION_4 { 1 } else { 0x1e };
            return self.tell(&wire::message(wire::NDIS_VERSION, &[6, minor]));
        }
        Err(Error::Protocol("the device speaks none of the proposed NVSP versions".into()))
    }

    fn configure(&mut self, version: u32, mtu: u32) -> Result<(), Error> {
        let mut capabilities = wire::CAPABILITY_8021Q;
        if version >= wire::VERSION_5 {
            capabilities |= wire::CAPABILITY_SRIOV | wire::CAPABILITY_TEAMING;
        }
        if version >= wire::VERSION_6_1 {
            capabilities |= wire::CAPABILITY_RSC;
        }
        self.tell(&wire::ndis_config(mtu + ETHERNET, capabilities))
    }

    /// Lends the receive buffer; what a section has, and how many there are.
    pub fn send_receive_buffer(&mut self, region: Region) -> Result<(u32, u32), Error> {
        let id = u32::from(wire::RECEIVE_BUFFER_ID);
        let answer = self.nvsp(&wire::message(wire::SEND_RECEIVE_BUFFER, &[region.gpadl, id]))?;
        let answer = Answer::new(&answer)?;
        let fields = [0, 1, 2, 3, 4].map(|n| answer.word(n).unwrap_or(u32::MAX));
        match (answer.kind(), fields) {
            // One section from 0 on, which the driver insists on; it takes none that is larger than the buffer.
            (wire::SEND_RECEIVE_BUFFER_COMPLETE, [wire::STATUS_SUCCESS, 1, 0, size, count])
                if size >= 68 && u64::from(size) * u64::from(count) <= u64::from(region.len) =>
            {
                Ok((size, count))
            }
            (kind, fields) => Err(Error::Protocol(format!("the receive buffer gets {kind} {fields:x?}"))),
        }
    }

    /// Lends the send buffer; what a section has.
    pub fn send_send_buffer(&mut self, region: Region) -> Result<u32, Error> {
        let id = u32::from(wire::SEND_BUFFER_ID);
        let answer = self.nvsp(&wire::message(wire::SEND_SEND_BUFFER, &[region.gpadl, id]))?;
        let answer = Answer::new(&answer)?;
        match (answer.kind(), answer.word(0)?, answer.word(1)?) {
            (wire::SEND_SEND_BUFFER_COMPLETE, wire::STATUS_SUCCESS, size) if size >= 68 => Ok(size),
            other => Err(Error::Protocol(format!("the send buffer gets {other:?}"))),
        }
    }

    /// RNDIS begins, and what the driver asks and sets before its interface is there.
    pub fn initialize(&mut self, options: &NetOptions) -> Result<(), Error> {
        let answer = self.control(rndis::INITIALIZE, &[1, 0, 0x4000], &[])?;
        let field = |n: usize| word(&answer, 8 + 4 * n).unwrap_or(u32::MAX);
        if field(1) != rndis::STATUS_SUCCESS || field(8) > 16 {
            return Err(Error::Protocol(format!("RNDIS does not begin: {answer:02x?}")));
        }
        let batch = (field(6).max(1), 1 << field(8));
        self.device.batch = batch;
        let buffers = Arc::get_mut(&mut self.queue.buffers);
        buffers.ok_or(Error::Protocol("initialized in the middle of work".into()))?.batch = batch;
        self.device.mtu = options.mtu.min(self.query_word(oid::MAXIMUM_FRAME_SIZE)?);
        let (status, mac) = self.query(oid::PERMANENT_ADDRESS, &[])?;
        self.device.mac = match (status, mac.first_chunk()) {
            (rndis::STATUS_SUCCESS, Some(mac)) => *mac,
            _ => return Err(Error::Protocol(format!("the address is {status:#x} {mac:02x?}"))),
        };
        // A device need not have a name.
        self.query(oid::FRIENDLY_NAME, &[])?;
        self.device.offloads = self.set_offloads()?;
        self.device.link = self.query_word(oid::MEDIA_CONNECT_STATUS)? == 0;
        if self.device.version >= wire::VERSION_5 {
            self.device.speed = self.query_word(oid::LINK_SPEED)?;
            (self.device.queues, self.device.rss_entries) = self.rss_capabilities()?;
        }
        Ok(())
    }

    /// Sends an NVSP message and waits for its answer. What comes meanwhile is kept.
    pub fn nvsp(&mut self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let Room::Sent(id) = self.queue.push(PacketType::IN_BAND, &[], message, Pending::Nvsp)? else {
            return Err(Error::Timeout("room for an NVSP message"));
        };
        self.queue.flush()?;
        self.await_event("answer to an NVSP message", |event| match event {
            Event::Nvsp(answered, message) if *answered == id => Some(message.clone()),
            _ => None,
        })
    }

    /// Sends an NVSP message that is not answered.
    pub fn tell(&mut self, message: &[u8]) -> Result<(), Error> {
        self.queue.channel.send_waiting(&Outgoing::in_band(0, false), &[message], LONG)
    }
}
