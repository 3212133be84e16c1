//! Guest memory that the core hands out: the pages of GPADLs, and copies of what a packet names.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use ipc::message::{GPADL_VERSION, MAX_FETCH, ToCore, ToVsp};
use ipc::shm::{Mapping, SharedMemory};
use ipc::socket::{Peer, SocketError};
use vmbus::packet::PacketHeader;

use super::{Runtime, RuntimeError};
use crate::channels::Ask;
use crate::device::Device;

/// What the core has said, or why it could not be heard.
type Heard = Result<(ToVsp, Vec<OwnedFd>), SocketError>;

/// The line to the core's fetch service.
#[derive(Debug, Default)]
pub(super) struct Fetcher {
    /// The core has it.
    is_offered: bool,
    /// Where it puts things.
    memory: Option<Mapping>,
    /// What the core said while an answer was waited for: heard in the next turn.
    kept: VecDeque<Heard>,
}

impl Fetcher {
    pub fn welcomed(&mut self, version: u32) {
        self.is_offered = version >= GPADL_VERSION;
    }

    /// What was said meanwhile.
    pub fn take_kept(&mut self) -> Option<Heard> {
        self.kept.pop_front()
    }

    pub fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Appends what the device wants of the memory that a packet names to the packet in `scratch`. Nothing, if it cannot be had: the
    /// device sees that, and a core that has gone is noticed when it is listened to.
    pub fn fetch(
        &mut self,
        device: &impl Device,
        peer: Option<&Peer>,
        (channel, offset): (u32, u32),
        header: &PacketHeader,
        scratch: &mut Vec<u8>,
    ) {
        let Some(peer) = peer.filter(|_| self.is_offered) else { return };
        let len = device.fetches(header, scratch).min(MAX_FETCH);
        if len == 0 {
            return;
        }
        match self.ask(peer, channel, offset, len) {
            Ok(Ok(found)) => self.read(found.min(len), scratch),
            Ok(Err(reason)) => tracing::debug!(channel, "nothing was fetched: {reason}"),
            Err(error) => {
                // Nobody may ask again: the answer to this question would be taken for the next one's.
                self.is_offered = false;
                self.kept.push_back(Err(error));
            }
        }
    }

    /// Keeps what is heard later. Guests decide how often they retarget channels, and each time has descriptors: only the last word
    /// on a channel counts. Of everything else there is no more than we or operators have asked for.
    fn keep(&mut self, message: ToVsp, fds: Vec<OwnedFd>) {
        if let ToVsp::Retarget { channel, .. } = message {
            let is_stale =
                |heard: &Heard| matches!(heard, Ok((ToVsp::Retarget { channel: c, .. }, _)) if *c == channel);
            self.kept.retain(|heard| !is_stale(heard));
        }
        self.kept.push_back(Ok((message, fds)));
    }

    fn read(&self, found: u32, scratch: &mut Vec<u8>) {
        let Some(memory) = &self.memory else { return };
        let packet = scratch.len();
        scratch.resize(packet + (found as usize).min(memory.len()), 0);
        memory.read(0, &mut scratch[packet..]);
    }

    /// Asks, and waits. The core answers at once: it copies memory, no more.
    fn ask(
        &mut self,
        peer: &Peer,
        channel: u32,
        offset: u32,
        len: u32,
    ) -> Result<Result<u32, String>, SocketError> {
        peer.send(&ToCore::Fetch { channel, offset, len }, &[])?;
        loop {
            match peer.recv::<ToVsp>()? {
                (ToVsp::Fetched { channel: answered, result }, mut fds) if answered == channel => {
                    if let Some(fd) = fds.pop() {
                        self.memory = map(fd);
                    }
                    return Ok(result);
                }
                (message, fds) => self.keep(message, fds),
            }
        }
    }
}

fn map(fd: OwnedFd) -> Option<Mapping> {
    let memory = SharedMemory::from_fd(fd, u64::from(MAX_FETCH));
    match memory.and_then(|memory| Mapping::new(&memory, 0, memory.len())) {
        Ok(mapping) => Some(mapping),
        Err(error) => {
            tracing::error!("what the core fetches cannot be seen: {error}");
            None
        }
    }
}

impl<D: Device> Runtime<D> {
    /// Tells the core what the device wants of GPADLs. Not before all channels have been taken over: a device that has its buffer may lend of
    /// it, and what a guest has on a channel that is still to come it does not know.
    pub(super) fn report_gpadls(&mut self) -> Result<(), RuntimeError> {
        if !self.adoption.lets_take() {
            return Ok(());
        }
        for (channel, gpadl, ask) in self.channels.take_asks() {
            match ask {
                Ask::Share if self.fetcher.is_offered => self.tell(&ToCore::ShareGpadl { channel, gpadl })?,
                Ask::Share => self.channels.refuse_gpadl(channel, gpadl),
                Ask::Return if self.fetcher.is_offered => {
                    self.tell(&ToCore::ReturnGpadl { channel, gpadl })?
                }
                Ask::Return => {}
            }
        }
        Ok(())
    }

    /// The core has answered for a GPADL.
    pub(super) fn gpadl_shared(
        &mut self,
        channel: u32,
        gpadl: u32,
        result: Result<u64, String>,
        mut fds: Vec<OwnedFd>,
    ) {
        let Some(id) = self.channels.gpadl_answered(channel, gpadl) else { return };
        let pages = result.and_then(|bytes| {
            let fd = fds.pop().ok_or("the core shares pages and sends none")?;
            SharedMemory::from_fd(fd, bytes).map_err(|error| error.to_string())
        });
        self.device.gpadl_shared(id, gpadl, pages, &mut self.channels);
    }

    /// Answers for GPADLs in place of a core that is too old to be asked.
    pub(super) fn refuse_gpadls(&mut self) {
        while let Some((id, gpadl)) = self.channels.take_refused() {
            let why = "this VM's core is too old to share a GPADL".to_owned();
            self.device.gpadl_shared(id, gpadl, Err(why), &mut self.channels);
        }
    }

    /// Tells the device which of its loans on a channel have come back.
    pub(super) fn deliver_returns(&mut self, id: crate::ChannelId) {
        while let Some(returned) = self.channels.take_returned(id) {
            self.device.returned(id, returned.loan, returned.payload(), &mut self.channels);
        }
    }

    /// Tells the device where there is room again; whether there was.
    pub(super) fn deliver_room(&mut self) -> bool {
        let mut any = false;
        while let Some(id) = self.channels.take_room() {
            any = true;
            self.device.room(id, &mut self.channels);
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::Channels;
    use crate::device::Packet;
    use crate::request::Request;

    struct Wants;

    impl Device for Wants {
        fn offer(&self) -> ipc::message::Offer {
            ipc::message::Offer::default()
        }

        fn fetches(&self, _: &PacketHeader, _: &[u8]) -> u32 {
            8
        }

        fn packet(&mut self, _: Packet<'_>, _: Request, _: &mut Channels) {}
    }

    /// A fetcher that has asked for something, and heard this instead of an answer, or before it.
    fn asked(says: impl FnOnce(&Peer)) -> Fetcher {
        let (core, vsp) = Peer::pair().unwrap();
        let mut fetcher = Fetcher::default();
        fetcher.welcomed(GPADL_VERSION);
        says(&core);
        let descriptor = [9, 0, 2, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let header = PacketHeader::of_prefix(&descriptor).unwrap();
        fetcher.fetch(&Wants, Some(&vsp), (1, 0), &header, &mut descriptor.to_vec());
        fetcher
    }

    #[test]
    fn a_guest_that_retargets_without_end_fills_nothing_meanwhile() {
        let retarget = |channel, target_vp| ToVsp::Retarget { channel, target_vp };
        let mut fetcher = asked(|core| {
            for vp in 0..50 {
                core.send(&retarget(1, vp), &[]).unwrap();
                core.send(&retarget(2, vp), &[]).unwrap();
            }
            core.send(&ToVsp::ChannelClose { channel: 2 }, &[]).unwrap();
            core.send(&retarget(1, 50), &[]).unwrap();
            core.send(&ToVsp::Fetched { channel: 1, result: Err("no".into()) }, &[]).unwrap();
        });
        let mut kept = std::iter::from_fn(|| fetcher.take_kept()).map(|heard| heard.unwrap().0);
        let expected = [retarget(2, 49), ToVsp::ChannelClose { channel: 2 }, retarget(1, 50)];
        assert!(kept.by_ref().eq(expected), "in order, and the last word only");
    }

    #[test]
    fn a_core_that_cannot_be_understood_is_not_asked_again() {
        let mut fetcher = asked(|core| core.send_bytes(b"what?", &[]).unwrap());
        assert!(!fetcher.is_offered && fetcher.has_kept());
        assert!(matches!(fetcher.take_kept(), Some(Err(SocketError::Malformed(_)))));
    }
}
