//! A client of the bus: what `hv_vmbus` is in a kernel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::PAGE_SIZE;
use vmbus::message::{
    GuestMessage, HostMessage, InitiateContact, ModifyChannel, Offer, OpenChannel, USER_DATA_SIZE,
    VersionResponse,
};
use vmbus::protocol::Version;
use vmbus::ring::{RingReader, RingWriter, initialize};
use vmbus::synic::{MESSAGE_CONNECTION_ID, MESSAGE_CONNECTION_ID_5};

use crate::channel::Channel;
use crate::error::Error;
use crate::platform::{Platform, PostError, STATUS_INSUFFICIENT_BUFFERS};

/// Pause before a message is posted again that the host had no buffer for.
const POST_RETRY: Duration = Duration::from_millis(1);

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    /// Versions to propose, in this order.
    pub versions: Vec<Version>,
    /// Virtual processor on which the host's messages are taken.
    pub message_vp: u32,
    /// How long the host may take for an answer.
    pub timeout: Duration,
}

impl Default for Options {
    /// Newest version first, as Linux does; messages on processor 0; 10 s for an answer, which is an age.
    fn default() -> Self {
        Self { versions: Version::ALL.to_vec(), message_vp: 0, timeout: Duration::from_secs(10) }
    }
}

/// How to open a channel.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Pages of the ring to the host, control page included.
    pub to_host_pages: u32,
    /// Pages of the ring to the guest, control page included.
    pub to_guest_pages: u32,
    /// Virtual processor to interrupt.
    pub target_vp: u32,
    /// For the device.
    pub user_data: [u8; USER_DATA_SIZE],
}

impl Default for OpenOptions {
    /// Rings of 32 pages, as `hv_storvsc` makes them.
    fn default() -> Self {
        Self { to_host_pages: 32, to_guest_pages: 32, target_vp: 0, user_data: [0; USER_DATA_SIZE] }
    }
}

/// Guest pages that the host shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpadl {
    /// Our name for them.
    pub id: u32,
    /// The channel that they are for.
    pub relid: u32,
    /// Guest-physical address of the first page.
    pub address: u64,
    /// How many pages, in a row.
    pub pages: u32,
}

/// A connection to the bus. Belongs to one thread; the channels that it opens may go to others.
pub struct Client<P: Platform> {
    platform: Arc<P>,
    options: Options,
    version: Version,
    connection: u32,
    next_gpadl: u32,
    /// Messages that came while another one was waited for.
    inbox: VecDeque<HostMessage>,
}

impl<P: Platform> Client<P> {
    /// Connects, with the first of the proposed versions that the host speaks.
    pub fn connect(platform: Arc<P>, options: Options) -> Result<Self, Error> {
        let versions = options.versions.clone();
        let version = Version::NEWEST;
        let (connection, next_gpadl) = (MESSAGE_CONNECTION_ID, 0xe1e10);
        let mut client = Self { platform, options, version, connection, next_gpadl, inbox: VecDeque::new() };
        for version in versions {
            let response = client.propose(version)?;
            if response.supported != 0 {
                client.version = version;
                if version.names_message_sint() {
                    client.connection = response.connection_id;
                }
                return Ok(client);
            }
        }
        Err(Error::NoVersion)
    }

    fn propose(&mut self, version: Version) -> Result<VersionResponse, Error> {
        self.connection =
            if version.names_message_sint() { MESSAGE_CONNECTION_ID_5 } else { MESSAGE_CONNECTION_ID };
        self.post(&GuestMessage::InitiateContact(InitiateContact::new(version, self.options.message_vp)))?;
        self.await_message("version response", |message| match message {
            HostMessage::VersionResponse(response) => Some(response),
            _ => None,
        })
    }

    /// The version that is spoken.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The machine below.
    pub fn platform(&self) -> &Arc<P> {
        &self.platform
    }

    /// The connection to which messages are posted.
    pub fn connection(&self) -> u32 {
        self.connection
    }

    /// Asks for the offers, and waits until the host says that these are all.
    pub fn request_offers(&mut self) -> Result<Vec<Offer>, Error> {
        self.post(&GuestMessage::RequestOffers)?;
        let mut offers = Vec::new();
        while let Some(offer) = self.await_message("end of offers", |message| match message {
            HostMessage::Offer(offer) => Some(Some(offer)),
            HostMessage::AllOffersDelivered => Some(None),
            _ => None,
        })? {
            offers.push(offer);
        }
        Ok(offers)
    }

    /// Waits until the sub-channels 1 to `count` of a device have been offered; they come by themselves once the
    /// device has been asked for them. In the order of their indices.
    pub fn sub_channel_offers(&mut self, primary: &Offer, count: u16) -> Result<Vec<Offer>, Error> {
        let wanted = |message: &HostMessage| match message {
            HostMessage::Offer(offer) => {
                offer.instance == primary.instance && (1..=count).contains(&offer.sub_channel_index)
            }
            _ => false,
        };
        let mut offers = Vec::new();
        for message in std::mem::take(&mut self.inbox) {
            match message {
                HostMessage::Offer(offer) if wanted(&message) => offers.push(offer),
                other => self.inbox.push_back(other),
            }
        }
        while offers.len() < usize::from(count) {
            offers.push(self.await_message("offer of a sub-channel", |message| match message {
                HostMessage::Offer(offer) if wanted(&message) => Some(offer),
                _ => None,
            })?);
        }
        offers.sort_by_key(|offer| offer.sub_channel_index);
        match (1..=count).zip(&offers).all(|(index, offer)| offer.sub_channel_index == index) {
            true => Ok(offers),
            false => Err(Error::Protocol("a sub-channel was offered twice".into())),
        }
    }

    /// Shares pages in a row with the host.
    pub fn establish_gpadl(&mut self, relid: u32, address: u64, pages: u32) -> Result<Gpadl, Error> {
        let first = address / u64::from(PAGE_SIZE);
        let pfns: Vec<u64> = (first..first + u64::from(pages)).collect();
        let id = self.establish_gpadl_of(relid, &pfns)?;
        Ok(Gpadl { id, relid, address, pages })
    }

    /// Shares any pages with the host; returns the name that they got.
    pub fn establish_gpadl_of(&mut self, relid: u32, pfns: &[u64]) -> Result<u32, Error> {
        let gpadl = self.next_gpadl;
        self.next_gpadl += 1;
        for message in vmbus::gpadl::messages(relid, gpadl, pfns) {
            self.post_raw(&message)?;
        }
        let status = self.await_message("GPADL created", |message| match message {
            HostMessage::GpadlCreated(created) if created.gpadl == gpadl => Some(created.status),
            _ => None,
        })?;
        if status == 0 { Ok(gpadl) } else { Err(Error::GpadlRefused { gpadl, status }) }
    }

    /// Takes pages back from the host.
    pub fn teardown_gpadl(&mut self, relid: u32, gpadl: u32) -> Result<(), Error> {
        self.post(&GuestMessage::GpadlTeardown { relid, gpadl })?;
        self.await_message("GPADL torn down", |message| match message {
            HostMessage::GpadlTorndown(torn) if torn == gpadl => Some(()),
            _ => None,
        })
    }

    /// Opens a channel: allocates its rings, shares them, and waits for the device.
    pub fn open(&mut self, offer: &Offer, options: &OpenOptions) -> Result<Channel<P>, Error> {
        let pages = options.to_host_pages + options.to_guest_pages;
        let address = self.platform.allocate(pages).map_err(Error::Platform)?;
        let gpadl = match self.establish_gpadl(offer.relid, address, pages) {
            Ok(gpadl) => gpadl,
            Err(error) => {
                self.platform.release(address, pages);
                return Err(error);
            }
        };
        let opened = self.open_over(offer, options, gpadl);
        if opened.is_err() && self.teardown_gpadl(gpadl.relid, gpadl.id).is_ok() {
            self.platform.release(address, pages);
        }
        opened
    }

    /// Opens a channel over pages that are shared already.
    pub fn open_over(
        &mut self,
        offer: &Offer,
        options: &OpenOptions,
        gpadl: Gpadl,
    ) -> Result<Channel<P>, Error> {
        let downstream = gpadl.address + u64::from(options.to_host_pages) * u64::from(PAGE_SIZE);
        let ring = |address, pages| self.platform.ring(address, pages).map_err(Error::Platform);
        let to_host = ring(gpadl.address, options.to_host_pages)?;
        let to_guest = ring(downstream, gpadl.pages - options.to_host_pages)?;
        initialize(&to_host);
        initialize(&to_guest);
        let rings = (RingReader::new(to_guest)?, RingWriter::new(to_host)?);
        self.post(&GuestMessage::OpenChannel(OpenChannel {
            relid: offer.relid,
            open_id: offer.relid,
            ring_gpadl: gpadl.id,
            target_vp: options.target_vp,
            downstream_page_offset: options.to_host_pages,
            user_data: options.user_data,
        }))?;
        let relid = offer.relid;
        let status = self.await_message("open result", |message| match message {
            HostMessage::OpenResult(result) if result.relid == relid => Some(result.status),
            _ => None,
        })?;
        if status != 0 {
            return Err(Error::OpenRefused { relid, status });
        }
        Ok(Channel::new(Arc::clone(&self.platform), *offer, gpadl, rings, options.target_vp))
    }

    /// Closes a channel, takes its rings' pages back and frees them.
    pub fn close(&mut self, channel: Channel<P>) -> Result<(), Error> {
        let gpadl = channel.gpadl();
        self.post(&GuestMessage::CloseChannel(gpadl.relid))?;
        drop(channel);
        self.teardown_gpadl(gpadl.relid, gpadl.id)?;
        self.platform.release(gpadl.address, gpadl.pages);
        Ok(())
    }

    /// Moves a channel's interrupt to another virtual processor. Since 5.3 the host answers.
    pub fn retarget(&mut self, channel: &mut Channel<P>, target_vp: u32) -> Result<(), Error> {
        let relid = channel.offer().relid;
        self.post(&GuestMessage::ModifyChannel(ModifyChannel { relid, target_vp }))?;
        // The old processor stays in view: an event flag may have been set there before the host knew.
        channel.retargeted(target_vp);
        if !self.version.answers_modify_channel() {
            return Ok(());
        }
        let status = self.await_message("modify-channel response", |message| match message {
            HostMessage::ModifyChannelResponse { relid: answered, status } if answered == relid => {
                Some(status)
            }
            _ => None,
        })?;
        if status == 0 { Ok(()) } else { Err(Error::RetargetRefused { relid, status }) }
    }

    /// Tells the host that a rescinded channel is forgotten.
    pub fn release_relid(&mut self, relid: u32) -> Result<(), Error> {
        self.post(&GuestMessage::RelidReleased(relid))
    }

    /// Ends the connection.
    pub fn unload(mut self) -> Result<(), Error> {
        self.post(&GuestMessage::Unload)?;
        self.await_message("unload response", |message| match message {
            HostMessage::UnloadResponse => Some(()),
            _ => None,
        })
    }

    /// The next message that nothing else waited for: an offer, a rescind, or one that was not due.
    pub fn next_message(&mut self, timeout: Duration) -> Result<Option<HostMessage>, Error> {
        match self.inbox.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.receive(Instant::now() + timeout),
        }
    }

    /// Posts a message.
    pub fn post(&mut self, message: &GuestMessage<'_>) -> Result<(), Error> {
        self.post_raw(&message.encode())
    }

    /// Posts any bytes as a message, tried again while the host has no buffer for it.
    pub fn post_raw(&mut self, message: &[u8]) -> Result<(), Error> {
        self.post_raw_to(self.connection, message)
    }

    /// Posts any bytes to any connection.
    pub fn post_raw_to(&mut self, connection: u32, message: &[u8]) -> Result<(), Error> {
        let deadline = Instant::now() + self.options.timeout;
        loop {
            match self.platform.post_message(connection, message) {
                Ok(()) => return Ok(()),
                Err(PostError::Status(STATUS_INSUFFICIENT_BUFFERS)) if Instant::now() < deadline => {
                    std::thread::sleep(POST_RETRY);
                }
                Err(PostError::Status(status)) => return Err(Error::PostRefused(status)),
                Err(PostError::Platform(error)) => return Err(Error::Platform(error)),
            }
        }
    }

    /// Waits for the message that `pick` takes; others go to the inbox.
    fn await_message<T>(
        &mut self,
        what: &'static str,
        mut pick: impl FnMut(HostMessage) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.options.timeout;
        loop {
            let message = self.receive(deadline)?.ok_or(Error::Timeout(what))?;
            match pick(message) {
                Some(picked) => return Ok(picked),
                None => self.inbox.push_back(message),
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Option<HostMessage>, Error> {
        let vp = self.options.message_vp;
        loop {
            let seen = self.platform.interrupts(vp);
            if let Some(bytes) = self.platform.take_message(vp).map_err(Error::Platform)? {
                return Ok(Some(HostMessage::parse(&bytes)?));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.platform.wait_interrupt(vp, seen, left);
        }
    }
}

#[cfg(test)]
mod tests;
