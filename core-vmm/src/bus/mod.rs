//! The VMBus server's state, without any I/O: messages go in, [`Effect`]s come out.
//!
//! Protocol facts are those that Linux' `drivers/hv/{connection,channel,channel_mgmt}.c` relies on. The
//! guest is hostile: whatever it sends, the worst that happens is that its own request is refused.

mod channel;
mod fault;
mod gpadl;
mod subchannel;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use channel::{Channel, State};
pub use fault::GuestFault;
use gpadl::Gpadls;
use vmbus::{
    guid::Guid,
    message::{
        Encoded, GuestMessage, HostMessage, InitiateContact, ModifyChannel, Offer, OpenChannel, OpenResult,
        VersionResponse,
    },
    protocol::Version,
    synic::{EVENT_FLAGS_COUNT, MESSAGE_CONNECTION_ID, MESSAGE_CONNECTION_ID_5},
};

/// Connection ids of channels are this plus the relid; below are those that the protocol fixes.
const CHANNEL_CONNECTION_BASE: u32 = 0x1_0000;

/// `STATUS_UNSUCCESSFUL`: any status but 0 is a refusal to Linux.
pub const STATUS_UNSUCCESSFUL: u32 = 0xc000_0001;

/// Names a channel for as long as the offer lives: the protocol's "child relid".
pub type Relid = u32;

/// What the server has to do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Post a message to the guest.
    Send(Encoded),
    /// Drop messages that have not reached the guest: they were for a kernel that is no more.
    Discard,
    /// Open the channel, then call [`Bus::opened`].
    Open(Open),
    /// Close the channel, then call [`Bus::closed`].
    Close(Relid),
    /// Interrupts of the channel go to another VP.
    Retarget(Relid, u32),
    /// Take the pages of a GPADL back from the device that has them, now.
    Unshare(u32),
}

/// A checked request to open a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// The channel.
    pub relid: Relid,
    /// The channel that it is a sub-channel of, or itself.
    pub primary: Relid,
    /// Which sub-channel; 0 for a primary channel.
    pub subchannel: u16,
    /// Guest-physical addresses of the ring pages, in order. Not known to be RAM.
    pub pages: Vec<u64>,
    /// How many of them are the guest-to-host ring.
    pub to_host_pages: u32,
    /// VP that is interrupted.
    pub target_vp: u32,
    /// What the guest's driver tells the device.
    pub user_data: Vec<u8>,
}

/// The connection as a whole.
#[derive(Debug, PartialEq)]
enum Connection {
    None,
    Up {
        version: Version,
        vp: u32,
        offers_requested: bool,
    },
    /// Channels are being closed; the reply comes when the last one has been.
    GoingDown {
        vp: u32,
        then: Then,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Nothing,
    UnloadResponse,
    Contact(InitiateContact),
}

/// The server's state.
#[derive(Debug)]
pub struct Bus {
    vps: u32,
    connection: Connection,
    channels: BTreeMap<Relid, Channel>,
    gpadls: Gpadls,
    effects: Vec<Effect>,
}

impl Bus {
    /// A bus without channels for a partition of `vps` VPs and `ram_pages` pages of RAM.
    pub fn new(vps: u32, ram_pages: u64) -> Self {
        Self {
            vps,
            connection: Connection::None,
            channels: BTreeMap::new(),
            gpadls: Gpadls::new(ram_pages),
            effects: Vec::new(),
        }
    }

    /// What has to be done now, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The VP that messages go to, if the guest has said so.
    pub fn message_vp(&self) -> Option<u32> {
        match self.connection {
            Connection::None => None,
            Connection::Up { vp, .. } | Connection::GoingDown { vp, .. } => Some(vp),
        }
    }

    /// The connection id on which the guest signals a channel.
    pub fn connection_id(relid: Relid) -> u32 {
        CHANNEL_CONNECTION_BASE + relid
    }

    /// Adds a channel; it is offered now if the guest is listening, else as soon as it asks.
    /// `None` when all relids are taken.
    pub fn add_channel(
        &mut self,
        class: Guid,
        instance: Guid,
        fill: impl FnOnce(&mut Offer),
    ) -> Option<Relid> {
        let relid = self.free_relid()?;
        let mut offer = Offer::new(class, instance, relid, Self::connection_id(relid));
        fill(&mut offer);
        self.insert(relid, Channel::new(offer));
        Some(relid)
    }

    fn free_relid(&self) -> Option<Relid> {
        (1..EVENT_FLAGS_COUNT).find(|relid| !self.channels.contains_key(relid))
    }

    fn insert(&mut self, relid: Relid, mut channel: Channel) {
        if matches!(self.connection, Connection::Up { offers_requested: true, .. }) {
            channel.known = true;
            self.send(&HostMessage::Offer(channel.offer));
        }
        self.channels.insert(relid, channel);
    }

    /// No relid is left for another channel.
    pub fn is_full(&self) -> bool {
        self.channels.len() as u32 >= EVENT_FLAGS_COUNT - 1
    }

    /// Whether a message is one with which a guest begins anew or ends: it is taken whatever else waits.
    pub fn begins_anew(bytes: &[u8]) -> bool {
        matches!(GuestMessage::parse(bytes), Ok(GuestMessage::InitiateContact(_) | GuestMessage::Unload))
    }

    /// Takes back an offer that the guest does not know of; false if it does.
    pub fn withdraw(&mut self, relid: Relid) -> bool {
        let unknown = self.channels.get(&relid).is_none_or(|c| !c.known && c.state == State::Idle);
        if unknown {
            self.channels.remove(&relid);
        }
        unknown
    }

    /// Takes a channel away from the guest for good.
    pub fn rescind(&mut self, relid: Relid) {
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        channel.rescinded = true;
        let known = channel.known;
        self.begin_close(relid);
        if known {
            self.send(&HostMessage::RescindOffer(relid));
        }
        self.forget();
    }

    /// A message from the guest on `connection`.
    pub fn message(&mut self, connection: u32, bytes: &[u8]) -> Result<(), GuestFault> {
        debug_assert!(Self::is_message_connection(connection), "the caller routes connections");
        let message = GuestMessage::parse(bytes).map_err(GuestFault::Malformed)?;
        if let GuestMessage::InitiateContact(contact) = message {
            return self.contact(contact);
        }
        let Connection::Up { version, .. } = self.connection else {
            return Err(GuestFault::NotConnected(message.kind()));
        };
        match message {
            GuestMessage::RequestOffers => self.request_offers(),
            GuestMessage::GpadlHeader(header) => {
                self.known(message.kind(), header.relid)?;
                let reply = self.gpadls.header(&header)?;
                self.reply(reply)?;
            }
            GuestMessage::GpadlBody(body) => {
                let reply = self.gpadls.body(&body)?;
                self.reply(reply)?;
            }
            GuestMessage::GpadlTeardown { relid, gpadl } => self.teardown(message.kind(), relid, gpadl)?,
            GuestMessage::OpenChannel(open) => self.open(message.kind(), &open)?,
            GuestMessage::CloseChannel(relid) => self.close(message.kind(), relid)?,
            GuestMessage::ModifyChannel(modify) => self.modify(message.kind(), modify, version)?,
            GuestMessage::RelidReleased(relid) => self.released(message.kind(), relid)?,
            GuestMessage::Unload => self.go_down(Then::UnloadResponse),
            // Hyper-V sockets come later; without an answer the guest's connect times out.
            GuestMessage::TlConnect(_) | GuestMessage::InitiateContact(_) => {}
        }
        Ok(())
    }

    /// Whether `connection` is one that channel messages come on.
    pub fn is_message_connection(connection: u32) -> bool {
        matches!(connection, MESSAGE_CONNECTION_ID | MESSAGE_CONNECTION_ID_5)
    }

    /// The server has opened the channel (status 0), or could not.
    pub fn opened(&mut self, relid: Relid, status: u32) {
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        if let Some(open_id) = channel.opened(status == 0) {
            if status != 0 {
                self.gpadls.release(relid);
            }
            self.send(&HostMessage::OpenResult(OpenResult { relid, open_id, status }));
            self.finish_teardowns();
        }
    }

    /// The server has closed the channel: nobody but the guest touches its pages any more.
    pub fn closed(&mut self, relid: Relid) {
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        if channel.state != State::Closing {
            return;
        }
        channel.state = State::Idle;
        self.unshare(Some(relid), None);
        self.gpadls.release(relid);
        self.finish_teardowns();
        self.forget();
        self.finish_going_down();
    }

    /// A device wants the pages of a GPADL that the guest has made for its primary channel: their addresses. Not known to be RAM.
    pub fn share_gpadl(&mut self, primary: Relid, gpadl: u32) -> Result<Vec<u64>, &'static str> {
        let is_open = self.channels.get(&primary).is_some_and(|c| matches!(c.state, State::Open { .. }));
        if !is_open {
            return Err("the channel is not open");
        }
        self.gpadls.share(primary, gpadl)
    }

    /// No device has its pages any more.
    pub fn unshare_gpadl(&mut self, primary: Relid, gpadl: u32) {
        self.gpadls.unshare(Some(primary), Some(gpadl));
    }

    fn unshare(&mut self, relid: Option<Relid>, gpadl: Option<u32>) {
        let shared = self.gpadls.unshare(relid, gpadl);
        self.effects.extend(shared.into_iter().map(Effect::Unshare));
    }

    /// The guest is gone without a word (reset): everything is closed, nothing is answered.
    pub fn reset(&mut self) {
        self.go_down(Then::Nothing);
    }

    /// No channel is open, or being opened or closed.
    pub fn is_quiet(&self) -> bool {
        self.channels.values().all(|c| c.state == State::Idle)
    }

    fn send(&mut self, message: &HostMessage) {
        self.effects.push(Effect::Send(message.encode()));
    }

    fn reply(&mut self, reply: Option<(HostMessage, Option<GuestFault>)>) -> Result<(), GuestFault> {
        let Some((message, fault)) = reply else { return Ok(()) };
        self.send(&message);
        fault.map_or(Ok(()), Err)
    }

    fn known(&self, kind: u32, relid: Relid) -> Result<(), GuestFault> {
        if self.channels.contains_key(&relid) {
            Ok(())
        } else {
            Err(GuestFault::UnknownChannel { kind, relid })
        }
    }

    fn channel(&mut self, kind: u32, relid: Relid) -> Result<&mut Channel, GuestFault> {
        self.channels.get_mut(&relid).ok_or(GuestFault::UnknownChannel { kind, relid })
    }

    fn check_vp(&self, kind: u32, vp: u32) -> Result<(), GuestFault> {
        if vp < self.vps { Ok(()) } else { Err(GuestFault::BadVp { kind, vp }) }
    }

    fn contact(&mut self, contact: InitiateContact) -> Result<(), GuestFault> {
        self.check_vp(vmbus::message::kind::INITIATE_CONTACT, contact.target_vp)?;
        // A guest that was connected has come up anew without saying good-bye (a crash kernel).
        self.go_down(Then::Contact(contact));
        Ok(())
    }

    fn accept_contact(&mut self, contact: InitiateContact) {
        let vp = contact.target_vp;
        self.effects.push(Effect::Discard);
        let Some(version) = Version::negotiate(contact.version, Version::NEWEST) else {
            // The refusal still needs the VP that it goes to.
            self.connection = Connection::GoingDown { vp, then: Then::Nothing };
            self.send(&HostMessage::VersionResponse(VersionResponse::refused()));
            return;
        };
        let id = if version.names_message_sint() { MESSAGE_CONNECTION_ID_5 } else { 0 };
        self.connection = Connection::Up { version, vp, offers_requested: false };
        self.send(&HostMessage::VersionResponse(VersionResponse::accepted(id)));
    }

    fn request_offers(&mut self) {
        if let Connection::Up { offers_requested, .. } = &mut self.connection {
            *offers_requested = true;
        }
        for channel in self.channels.values_mut().filter(|c| !c.rescinded) {
            channel.known = true;
            self.effects.push(Effect::Send(HostMessage::Offer(channel.offer).encode()));
        }
        self.send(&HostMessage::AllOffersDelivered);
    }

    fn teardown(&mut self, kind: u32, relid: Relid, gpadl: u32) -> Result<(), GuestFault> {
        if self.channel(kind, relid)?.ring_gpadl() == Some(gpadl) {
            return Err(GuestFault::BadGpadl { kind, gpadl });
        }
        // Nobody's consent is needed, and the guest is told when it is done.
        self.unshare(Some(relid), Some(gpadl));
        self.gpadls.teardown(kind, relid, gpadl)?;
        self.finish_teardowns();
        Ok(())
    }

    fn finish_teardowns(&mut self) {
        let gone = self.gpadls.take_torn_down();
        // A kernel that has been reset, or replaced by a crash kernel, is not answered.
        let waits = match self.connection {
            Connection::Up { .. } | Connection::GoingDown { then: Then::UnloadResponse, .. } => true,
            Connection::None | Connection::GoingDown { .. } => false,
        };
        for gpadl in gone.into_iter().filter(|_| waits) {
            self.send(&HostMessage::GpadlTorndown(gpadl));
        }
    }

    fn open(&mut self, kind: u32, open: &OpenChannel) -> Result<(), GuestFault> {
        let relid = open.relid;
        let vps = self.vps;
        let channel = self.channel(kind, relid)?;
        let refused = if channel.state != State::Idle || channel.rescinded {
            Err("it is open, or on the way, or gone")
        } else if open.target_vp >= vps {
            Err("its target VP does not exist")
        } else {
            self.gpadls.claim_ring(relid, open.ring_gpadl, open.downstream_page_offset)
        };
        match refused {
            Ok(pages) => {
                let channel = self.channel(kind, relid)?;
                channel.state = State::Opening { open_id: open.open_id, gpadl: open.ring_gpadl };
                let (primary, subchannel) =
                    (channel.primary.unwrap_or(relid), channel.offer.sub_channel_index);
                self.effects.push(Effect::Open(Open {
                    relid,
                    primary,
                    subchannel,
                    pages,
                    to_host_pages: open.downstream_page_offset,
                    target_vp: open.target_vp,
                    user_data: open.user_data.to_vec(),
                }));
                Ok(())
            }
            Err(reason) => {
                let status = STATUS_UNSUCCESSFUL;
                self.send(&HostMessage::OpenResult(OpenResult { relid, open_id: open.open_id, status }));
                Err(GuestFault::OpenRefused { relid, reason })
            }
        }
    }

    fn close(&mut self, kind: u32, relid: Relid) -> Result<(), GuestFault> {
        self.known(kind, relid)?;
        if self.begin_close(relid) { Ok(()) } else { Err(GuestFault::BadState { kind, relid }) }
    }

    /// Has the device let go of the channel, if it has it. A guest that still waits for the channel to open is told no.
    fn begin_close(&mut self, relid: Relid) -> bool {
        self.rescind_subchannels(relid);
        let Some(channel) = self.channels.get_mut(&relid) else { return false };
        let opening = match channel.state {
            State::Opening { open_id, .. } => Some(open_id),
            _ => None,
        };
        let told = channel.begin_close();
        if let Some(open_id) = opening {
            let status = STATUS_UNSUCCESSFUL;
            self.send(&HostMessage::OpenResult(OpenResult { relid, open_id, status }));
        }
        if told {
            self.effects.push(Effect::Close(relid));
        }
        told
    }

    fn modify(&mut self, kind: u32, modify: ModifyChannel, version: Version) -> Result<(), GuestFault> {
        let ModifyChannel { relid, target_vp: vp } = modify;
        let checked = self.check_vp(kind, vp).and_then(|()| {
            let channel = self.channel(kind, relid)?;
            if matches!(channel.state, State::Open { .. }) {
                Ok(())
            } else {
                Err(GuestFault::BadState { kind, relid })
            }
        });
        if checked.is_ok() {
            self.effects.push(Effect::Retarget(relid, vp));
        }
        if version.answers_modify_channel() {
            let status = if checked.is_ok() { 0 } else { STATUS_UNSUCCESSFUL };
            self.send(&HostMessage::ModifyChannelResponse { relid, status });
        }
        checked
    }

    fn released(&mut self, kind: u32, relid: Relid) -> Result<(), GuestFault> {
        let channel = self.channel(kind, relid)?;
        channel.known = false;
        // A sub-channel that the guest did not want is not offered again as the same channel.
        channel.rescinded |= channel.primary.is_some();
        self.forget();
        Ok(())
    }

    fn go_down(&mut self, then: Then) {
        let vp = match then {
            Then::Contact(contact) => contact.target_vp,
            _ => self.message_vp().unwrap_or(0),
        };
        self.connection = Connection::GoingDown { vp, then };
        self.unshare(None, None);
        let mut close = Vec::new();
        for (relid, channel) in &mut self.channels {
            channel.known = false;
            // The next guest opens the primary channel before there are any.
            channel.rescinded |= channel.primary.is_some();
            if channel.begin_close() {
                close.push(*relid);
            }
        }
        self.effects.extend(close.into_iter().map(Effect::Close));
        self.forget();
        self.finish_going_down();
    }

    /// Frees the relids of channels that are over on both sides, and the GPADLs that nobody will tear down any more.
    fn forget(&mut self) {
        for (relid, _) in self.channels.extract_if(.., |_, c| c.is_over()) {
            self.gpadls.forget(relid);
        }
    }

    fn finish_going_down(&mut self) {
        let Connection::GoingDown { then, .. } = self.connection else { return };
        if !self.is_quiet() {
            return;
        }
        self.gpadls.clear();
        match then {
            Then::Nothing => {}
            Then::UnloadResponse => self.send(&HostMessage::UnloadResponse),
            Then::Contact(contact) => return self.accept_contact(contact),
        }
        // The VP is kept: the reply that was just queued goes there.
        if let Connection::GoingDown { then, .. } = &mut self.connection {
            *then = Then::Nothing;
        }
    }
}
