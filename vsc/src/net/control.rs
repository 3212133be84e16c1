//! RNDIS control messages: what the driver asks and sets.

use std::time::Instant;

use super::events::Event;
use super::rndis;
use super::wire::{self, word};
use super::{Net, Room};
use crate::error::Error;
use crate::platform::Platform;

/// Objects, by their numbers (Linux `include/linux/rndis.h`).
pub mod oid {
    /// The largest frame without its Ethernet header.
    pub const MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
    /// In units of 100 bit/s.
    pub const LINK_SPEED: u32 = 0x0001_0107;
    /// Which frames are wanted.
    pub const PACKET_FILTER: u32 = 0x0001_010e;
    /// Is the link down?
    pub const MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
    /// The device's name.
    pub const FRIENDLY_NAME: u32 = 0x0002_0216;
    /// Frames sent.
    pub const XMIT_OK: u32 = 0x0002_0101;
    /// Frames received.
    pub const RCV_OK: u32 = 0x0002_0102;
    /// The burnt-in address.
    pub const PERMANENT_ADDRESS: u32 = 0x0101_0101;
    /// The address in use.
    pub const CURRENT_ADDRESS: u32 = 0x0101_0102;
    /// Multicast groups.
    pub const MULTICAST_LIST: u32 = 0x0101_0103;
    /// What the device could do with frames.
    pub const OFFLOAD_CAPABILITIES: u32 = 0xfc01_020d;
    /// What it is to do with frames.
    pub const OFFLOAD_PARAMETERS: u32 = 0xfc01_020c;
    /// How many queues there can be.
    pub const RSS_CAPABILITIES: u32 = 0x0001_0203;
    /// Which queue gets what.
    pub const RSS_PARAMETERS: u32 = 0x0001_0204;
}

/// Packet filter: frames to our address.
pub const FILTER_DIRECTED: u32 = 1;
/// Packet filter: frames to the groups of the list.
pub const FILTER_MULTICAST: u32 = 2;
/// Packet filter: frames to all groups.
pub const FILTER_ALL_MULTICAST: u32 = 4;
/// Packet filter: frames to everybody.
pub const FILTER_BROADCAST: u32 = 8;
/// Packet filter: everything.
pub const FILTER_PROMISCUOUS: u32 = 0x20;
/// What the driver sets when its interface goes up.
pub const FILTER_UP: u32 = FILTER_BROADCAST | FILTER_ALL_MULTICAST | FILTER_DIRECTED;

/// Bytes of a hash key.
pub const RSS_KEY: usize = 40;

impl<P: Platform> Net<P> {
    /// Sends a control message and waits for its answer, which has to carry the same request id. `words` follow that
    /// id. What comes meanwhile is kept.
    pub fn control(&mut self, kind: u32, words: &[u32], data: &[u8]) -> Result<Vec<u8>, Error> {
        self.next_request += 1;
        let id = self.next_request;
        let all: Vec<u32> = std::iter::once(id).chain(words.iter().copied()).collect();
        self.send_control(&rndis::control(kind, &all, data))?;
        let answer = self.await_control()?;
        if word(&answer, 0) != Some(kind | rndis::COMPLETION) || word(&answer, 8) != Some(id) {
            return Err(Error::Protocol(format!("request {id} of {kind} is answered with {answer:02x?}")));
        }
        Ok(answer)
    }

    /// Sends a control message as it is, by a list of its pages as the driver does; waits until the device has taken it,
    /// but not for its answer. Returns the status with which it was completed.
    pub fn send_control(&mut self, message: &[u8]) -> Result<u32, Error> {
        let Room::Sent(id) = self.queue.send_pages_of(wire::CHANNEL_CONTROL, &[message])? else {
            return Err(Error::Timeout("room for a control message"));
        };
        self.await_event("completion of a control message", |event| match event {
            Event::Sent(sent) if sent.id == id => Some(sent.status),
            _ => None,
        })
    }

    /// The next answer to a control message.
    pub fn await_control(&mut self) -> Result<Vec<u8>, Error> {
        self.await_event("answer to a control message", |event| match event {
            Event::Control(message) => Some(message.clone()),
            _ => None,
        })
    }

    /// Takes the first event that `pick` wants; the others stay, in their order.
    pub(super) fn await_event<T>(
        &mut self,
        what: &'static str,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut passed = std::collections::VecDeque::new();
        let found = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.queue.wait(left) {
                Ok(Some(event)) => match pick(&event) {
                    Some(found) => break Ok(found),
                    None => passed.push_back(event),
                },
                Ok(None) => break Err(Error::Timeout(what)),
                Err(error) => break Err(error),
            }
        };
        passed.append(&mut self.queue.events);
        self.queue.events = passed;
        found
    }

    /// Asks for an object. Returns the status, and what it is.
    pub fn query(&mut self, oid: u32, input: &[u8]) -> Result<(u32, Vec<u8>), Error> {
        let answer = self.control(rndis::QUERY, &[oid, input.len() as u32, 20, 0], input)?;
        let status = word(&answer, 12).ok_or(Error::Protocol("an answer without a status".into()))?;
        let found = rndis::queried(&answer);
        let found = found.ok_or_else(|| Error::Protocol(format!("object {oid:#x}: {answer:02x?}")))?;
        Ok((status, found.to_vec()))
    }

    /// Asks for an object that is one word.
    pub fn query_word(&mut self, oid: u32) -> Result<u32, Error> {
        match self.query(oid, &[])? {
            (rndis::STATUS_SUCCESS, bytes) if bytes.len() == 4 => Ok(word(&bytes, 0).unwrap_or_default()),
            other => Err(Error::Protocol(format!("object {oid:#x} is {other:02x?}"))),
        }
    }

    /// Changes an object; returns the status.
    pub fn set(&mut self, oid: u32, value: &[u8]) -> Result<u32, Error> {
        let answer = self.control(rndis::SET, &[oid, value.len() as u32, 20, 0], value)?;
        word(&answer, 12).ok_or(Error::Protocol("an answer without a status".into()))
    }

    fn set_ok(&mut self, oid: u32, value: &[u8]) -> Result<(), Error> {
        match self.set(oid, value)? {
            rndis::STATUS_SUCCESS => Ok(()),
            status => Err(Error::Protocol(format!("object {oid:#x} cannot be set: {status:#x}"))),
        }
    }

    /// Says which frames are wanted.
    pub fn set_filter(&mut self, filter: u32) -> Result<(), Error> {
        self.set_ok(oid::PACKET_FILTER, &filter.to_le_bytes())
    }

    /// Says to which groups we belong.
    pub fn set_multicast(&mut self, groups: &[[u8; 6]]) -> Result<(), Error> {
        self.set_ok(oid::MULTICAST_LIST, &groups.concat())
    }

    /// Asks for offload capabilities as the driver does, and has everything switched on that it can.
    pub(super) fn set_offloads(&mut self) -> Result<Vec<u8>, Error> {
        // NDIS 6.30: object type, revision, size.
        let mut input = vec![0; 156];
        input[..4].copy_from_slice(&[0xa7, 3, 156, 0]);
        let (status, capabilities) = self.query(oid::OFFLOAD_CAPABILITIES, &input)?;
        let size = word(&capabilities, 0).map_or(0, |word| word >> 16) as usize;
        if status != rndis::STATUS_SUCCESS
            || capabilities.first() != Some(&0xa7)
            || !(112..=156).contains(&size)
        {
            return Err(Error::Protocol(format!("offload capabilities {status:#x} {capabilities:02x?}")));
        }
        let cap = |n: usize| word(&capabilities, 4 + 4 * n).unwrap_or(0);
        let (tcp4, tcp6) = (cap(1) & 0x14 == 0x14, cap(5) & 0x15 == 0x15);
        let on = |wanted: bool, value: u8| if wanted { value } else { 0 };
        let mut parameters = [0u8; 28];
        parameters[..4].copy_from_slice(&[0x80, 3, 28, 0]);
        parameters[4] = 1;
        parameters[5] = on(tcp4, 4);
        parameters[6] = on(tcp4 && cap(1) & 0x40 != 0, 4);
        parameters[7] = on(tcp6, 4);
        parameters[8] = on(tcp6 && cap(5) & 0x40 != 0, 4);
        parameters[11] = on(tcp4 && cap(19) & 2 != 0, 2);
        // What came as several segments may come as one (RSC), if both families can.
        let joined = capabilities.get(144..146).is_some_and(|families| families[0] != 0 && families[1] != 0);
        parameters[22..24].fill(on(joined, 2));
        parameters[12] = on(tcp6 && cap(22) & 2 != 0 && cap(25) & 5 == 5, 2);
        self.set_ok(oid::OFFLOAD_PARAMETERS, &parameters)?;
        Ok(capabilities)
    }

    /// Asks how many queues there can be, and how many entries the table of them has.
    pub fn rss_capabilities(&mut self) -> Result<(u32, u16), Error> {
        let mut input = vec![0; 20];
        input[..4].copy_from_slice(&[0x88, 2, 20, 0]);
        let (status, bytes) = self.query(oid::RSS_CAPABILITIES, &input)?;
        match (status, word(&bytes, 12), bytes.get(16..18)) {
            (rndis::STATUS_SUCCESS, Some(queues), Some(entries)) => {
                Ok((queues, u16::from_le_bytes([entries[0], entries[1]])))
            }
            _ => Err(Error::Protocol(format!("RSS capabilities {status:#x} {bytes:02x?}"))),
        }
    }

    /// Says which queue gets what: Toeplitz over addresses and TCP ports.
    pub fn set_rss(&mut self, key: &[u8; RSS_KEY], table: &[u32]) -> Result<(), Error> {
        self.set_ok(oid::RSS_PARAMETERS, &rss_parameters(0, key, table))
    }

    /// Switches that off.
    pub fn disable_rss(&mut self) -> Result<(), Error> {
        self.set_ok(oid::RSS_PARAMETERS, &rss_parameters(0x10, &[0; RSS_KEY], &[0; 128]))
    }
}

/// The parameters in NDIS's form, revision 2.
pub fn rss_parameters(flags: u16, key: &[u8; RSS_KEY], table: &[u32]) -> Vec<u8> {
    const HEAD: u32 = 40;
    let table_size = table.len() as u32 * 4;
    let mut bytes = vec![0x89, 2, HEAD as u8, 0];
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&0x1701u32.to_le_bytes());
    // The structure is not packed: the 16-bit sizes are followed by two bytes of nothing.
    for word in [table_size & 0xffff, HEAD, RSS_KEY as u32, HEAD + table_size, 0, 0, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    table.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_le_bytes()));
    bytes.extend_from_slice(key);
    bytes
}
