//! What guest and device agree on before frames go: the version, the buffers, the channels.
//!
//! What was agreed is in the ledger in the same step as the answer that says so. Buffers are asked for at the core, which
//! takes a turn; no packet comes meanwhile.

use vsp::ipc::shm::PagesMapping;
use vsp::{ChannelId, Channels, Request, SharedMemory};

use super::state::{Buffer, Phase};
use super::{Net, blocks, transmit};
use crate::nvsp::{GuestMessage, HostMessage, ReceiveSection, SEND_TABLE_LEN, Status, Version};

/// The number of the request for sub-channels that asks for some (`NVSP_SUBCHANNEL_ALLOCATE`).
const ALLOCATE: u32 = 1;

/// Which of the two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Receive,
    Send,
}

/// A buffer that the core has been asked for.
#[derive(Debug)]
pub(super) struct Sharing {
    which: Which,
    gpadl: u32,
    /// The guest's name for it.
    id: u16,
    /// Whose answer waits; `None`: the guest has its answer, from a predecessor.
    pub request: Option<Request>,
}

impl Net {
    /// The version that answers are made for. Before there is one, the guest has none to be strict about.
    pub(super) fn version(&self) -> Version {
        self.state.version.unwrap_or(Version::V1)
    }

    /// A message that is not about frames or questions, from the primary channel.
    pub(super) fn introduce(&mut self, message: GuestMessage, request: Request, channels: &mut Channels) {
        match message {
            GuestMessage::Init { min, max } => {
                let chosen = match self.state.phase {
                    Phase::Opened => Version::choose(min, max),
                    _ => Err(Status::Fail),
                };
                if let Ok(version) = chosen {
                    (self.state.version, self.state.phase) = (Some(version), Phase::Versioned);
                    self.stale = true;
                }
                let status = chosen.err().unwrap_or(Status::Success);
                let answer = HostMessage::InitComplete { status }.encode(self.version());
                self.answer(request, &answer, channels);
            }
            GuestMessage::NdisVersion { major, minor } => {
                self.state.nic.set_ndis_version(major, minor);
                self.stale = true;
                self.answer(request, &[], channels);
            }
            GuestMessage::NdisConfig { mtu, .. } => {
                self.state.nic.set_config_mtu(mtu);
                self.stale = true;
                self.answer(request, &[], channels);
            }
            GuestMessage::SendReceiveBuffer { gpadl, id } => {
                self.share(Which::Receive, gpadl, id, request, channels);
            }
            GuestMessage::SendSendBuffer { gpadl, id } => {
                self.share(Which::Send, gpadl, id, request, channels);
            }
            GuestMessage::RevokeReceiveBuffer { .. } => {
                self.revoke(Which::Receive, channels);
                self.answer(request, &[], channels);
            }
            GuestMessage::RevokeSendBuffer { .. } => {
                self.revoke(Which::Send, channels);
                self.answer(request, &[], channels);
            }
            GuestMessage::Subchannel { operation, count } => {
                let (status, count) = self.promise(operation, count, channels);
                let answer = HostMessage::SubchannelComplete { status, count }.encode(self.version());
                self.answer(request, &answer, channels);
            }
            // There is no virtual function to switch to; Linux waits for an answer of no bytes.
            GuestMessage::SwitchDataPath { .. } => self.answer(request, &[], channels),
            GuestMessage::RndisPacket(_)
            | GuestMessage::RndisPacketComplete { .. }
            | GuestMessage::Unknown(_) => {
                self.stats.malformed += 1;
                self.answer(request, &[], channels);
            }
        }
    }

    /// The guest has a buffer for us: asks the core for its pages.
    fn share(&mut self, which: Which, gpadl: u32, id: u16, request: Request, channels: &mut Channels) {
        let has = match which {
            Which::Receive => self.state.receive.is_some(),
            Which::Send => self.state.send.is_some(),
        };
        if self.state.phase == Phase::Opened || has || self.sharing.iter().any(|one| one.which == which) {
            self.stats.malformed += 1;
            return self.refuse(which, request, channels);
        }
        channels.share_gpadl(request.channel(), gpadl);
        self.sharing.push(Sharing { which, gpadl, id, request: Some(request) });
    }

    /// A predecessor has agreed on buffers: asks for their pages again.
    pub(super) fn share_again(&mut self, channel: ChannelId, channels: &mut Channels) {
        for (which, buffer) in [(Which::Receive, self.state.receive), (Which::Send, self.state.send)] {
            let Some(Buffer { gpadl, id, .. }) = buffer else { continue };
            channels.share_gpadl(channel, gpadl);
            self.sharing.push(Sharing { which, gpadl, id, request: None });
        }
    }

    /// The core's answer.
    pub(super) fn shared(
        &mut self,
        channel: ChannelId,
        gpadl: u32,
        pages: Result<SharedMemory, String>,
        channels: &mut Channels,
    ) {
        let Some(place) = self.sharing.iter().position(|one| one.gpadl == gpadl) else { return };
        let Sharing { which, id, request, .. } = self.sharing.remove(place);
        let mapped = pages.and_then(|pages| PagesMapping::new(&pages).map_err(|error| error.to_string()));
        let mapped =
            mapped.and_then(|pages| self.divide(which, gpadl, id, &pages).map(|buffer| (pages, buffer)));
        match (mapped, request) {
            (Ok((pages, buffer)), request) => {
                self.map(which, pages, buffer);
                if let Some(request) = request {
                    self.stale = true;
                    self.accept(which, buffer, request, channels);
                }
            }
            (Err(reason), Some(request)) => {
                tracing::warn!("the guest's {which:?} buffer is refused: {reason}");
                channels.return_gpadl(channel, gpadl);
                self.refuse(which, request, channels);
            }
            // The guest took it away while nobody served: it has no use for it any more.
            (Err(reason), None) => {
                tracing::warn!("the guest's {which:?} buffer is gone: {reason}");
                self.revoke(which, channels);
            }
        }
    }

    /// How a buffer is divided: as the guest was told, or for the first time.
    fn divide(&self, which: Which, gpadl: u32, id: u16, pages: &PagesMapping) -> Result<Buffer, String> {
        let told = match which {
            Which::Receive => self.state.receive,
            Which::Send => self.state.send,
        };
        if let Some(told) = told {
            let needed = u64::from(told.size) * u64::from(told.count);
            return if needed <= pages.len() as u64 { Ok(told) } else { Err("it has become smaller".into()) };
        }
        let divided = match which {
            Which::Receive => blocks::divide(pages.len()),
            Which::Send => {
                let nic = &self.state.nic;
                let size = transmit::section_size(nic.offloads, nic.mtu, self.ram.is_some());
                let count =
                    u32::try_from(pages.len() / size as usize).unwrap_or(u32::MAX).min(u16::MAX.into());
                Some((size, count))
            }
        };
        let (size, count) = divided.ok_or_else(|| format!("{} bytes are too few", pages.len()))?;
        Ok(Buffer { gpadl, id, size, count })
    }

    /// A buffer is in use from now on.
    fn map(&mut self, which: Which, pages: PagesMapping, buffer: Buffer) {
        match which {
            Which::Receive => {
                self.receive.pages = Some(pages);
                self.receive.blocks.set_count(buffer.count);
                self.state.receive = Some(buffer);
            }
            Which::Send => {
                self.transmit.pages = Some(pages);
                self.state.send = Some(buffer);
            }
        }
    }

    fn accept(&mut self, which: Which, buffer: Buffer, request: Request, channels: &mut Channels) {
        let status = Status::Success;
        let answer = match which {
            Which::Receive => {
                let Buffer { size, count, .. } = buffer;
                let section = ReceiveSection { offset: 0, len: size, count, end: size * count };
                HostMessage::ReceiveBufferComplete { status, section: Some(section) }
            }
            Which::Send => HostMessage::SendBufferComplete { status, section_size: buffer.size },
        };
        let answer = answer.encode(self.version());
        self.answer(request, &answer, channels);
    }

    fn refuse(&mut self, which: Which, request: Request, channels: &mut Channels) {
        let status = Status::Fail;
        let answer = match which {
            Which::Receive => HostMessage::ReceiveBufferComplete { status, section: None },
            Which::Send => HostMessage::SendBufferComplete { status, section_size: 0 },
        };
        let answer = answer.encode(self.version());
        self.answer(request, &answer, channels);
    }

    /// A buffer is in use no more.
    fn revoke(&mut self, which: Which, channels: &mut Channels) {
        let buffer = match which {
            Which::Receive => {
                self.receive.pages = None;
                self.receive.blocks.set_count(0);
                self.forget_filled();
                self.state.receive.take()
            }
            Which::Send => {
                self.transmit.pages = None;
                self.state.send.take()
            }
        };
        if let Some(buffer) = buffer {
            self.stale = true;
            if let Some(primary) = self.ports.primary() {
                channels.return_gpadl(primary, buffer.gpadl);
            }
        }
    }

    /// Blocks that were filled for a buffer which is gone.
    fn forget_filled(&mut self) {
        for number in 0..self.ports.numbers() {
            if let Some(port) = self.ports.get_mut(number) {
                port.filled = None;
            }
        }
    }

    /// The guest wants channels: how many it can have.
    fn promise(&mut self, operation: u32, count: u32, channels: &mut Channels) -> (Status, u32) {
        // Each channel needs a block of its own, besides one for answers.
        let blocks = self.state.receive.map_or(0, |buffer| buffer.count).saturating_sub(2);
        let most = u32::from(self.max_subchannels).min(blocks);
        let fits = operation == ALLOCATE && count > 0 && most > 0;
        if !fits || self.state.phase != Phase::Running || self.version() < Version::V5 {
            return (Status::Fail, 0);
        }
        let count = count.min(most) as u16;
        // Again, if a predecessor has done it: those that are offered already stay as they are.
        channels.offer_subchannels(count);
        self.state.subchannels = count;
        self.stale = true;
        (Status::Success, count.into())
    }

    /// Says which channel to send by, once all that were promised are open. Linux knows it by itself.
    pub(super) fn tell_table(&mut self, channels: &mut Channels) {
        if !self.owes_table {
            return;
        }
        self.owes_table = false;
        let open = self.ports.open();
        if let Some(primary) = self.ports.primary()
            && open > 1
            && open == usize::from(self.state.subchannels) + 1
            && self.version() >= Version::V5
        {
            let mut table = [0; SEND_TABLE_LEN];
            table.iter_mut().enumerate().for_each(|(place, entry)| *entry = (place % open) as u32);
            let message = HostMessage::IndirectionTable(table).encode(self.version());
            // Without room it is not said: nothing depends on it.
            channels.send(primary, 0, &message);
        }
    }
}
