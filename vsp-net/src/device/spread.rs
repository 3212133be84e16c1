//! Frames of one queue, spread over channels by their hashes as the guest wants it ("receive-side scaling"). A frame's channel is not
//! known before it has been read, so it is read into memory of ours first; one that its channel has no place for stays there, and
//! those behind it in the backend. (A backend with a queue for each channel spreads frames itself.)

use vsp::Channels;

use super::Net;
use super::receive::{FRAMES_A_TURN, Filled, Placed};
use crate::backend::{LONGEST_FRAME, Received, broken};
use crate::hash::Toeplitz;
use crate::headers::Layout;
use crate::rndis::frame::{self, RECEIVE_HEADROOM};

/// A frame that was read before it was known where to.
#[derive(Debug)]
pub(super) struct Staged {
    number: u16,
    len: usize,
    placed: Placed,
}

impl Net {
    /// One queue's frames, to the channels that their hashes lead to. True: something was done.
    pub(super) fn spread(&mut self, channels: &mut Channels) -> bool {
        let (mut any, mut used) = (false, [false; 64]);
        for _ in 0..FRAMES_A_TURN {
            if self.receive.staged.is_none() && !self.stage() {
                break;
            }
            let Some(staged) = self.receive.staged.take() else {
                any = true;
                continue;
            };
            let number = self.ports.or_primary(staged.number);
            if !self.has_place(number, staged.len, channels) {
                self.receive.staged = Some(staged);
                self.wait(0);
                break;
            }
            any = true;
            self.receive.unsettled = true;
            self.receive.queues[0].waits = false;
            if let Some(used) = used.get_mut(usize::from(number)) {
                *used = true;
            }
            self.unstage(number, &staged);
        }
        for (number, _) in used.iter().enumerate().filter(|(_, used)| **used) {
            self.lend_filled(number as u16, channels);
        }
        any
    }

    /// Reads a frame into memory of ours. False: there is none. One that the guest does not want is not there afterwards.
    fn stage(&mut self) -> bool {
        let staging = self.receive.staging.clone();
        let Ok(body) = staging.span(0, LONGEST_FRAME) else { return false };
        match self.backend.receive(0, [body]) {
            Err(error) => broken(&error),
            Ok(Received::Nothing) => {
                self.receive.queues[0].readable = false;
                false
            }
            Ok(Received::Dropped) => {
                self.state.nic.statistics.receive.errors += 1;
                true
            }
            Ok(Received::Frame { vnet, len }) => {
                self.receive.unsettled = true;
                let len = len.min(LONGEST_FRAME);
                let placed = self.place(&vnet, body, len);
                self.receive.staged = placed.map(|(placed, number)| Staged { number, len, placed });
                true
            }
        }
    }

    /// Whether a channel has a block with room for a frame, or can have one.
    fn has_place(&mut self, number: u16, len: usize, channels: &mut Channels) -> bool {
        let (size, needed) = (self.block_size(), RECEIVE_HEADROOM + len);
        let fits = |filled: &Filled| filled.has_room(size, needed);
        if self.ports.get(number).is_some_and(|port| port.filled.as_ref().is_some_and(fits)) {
            return true;
        }
        let Some(block) = self.take_block(number, channels) else { return false };
        match self.ports.get_mut(number) {
            Some(port) => port.filled = Some(Filled::new(block)),
            None => self.receive.blocks.give_back(block),
        }
        true
    }

    /// Copies the frame that was read to where it belongs.
    fn unstage(&mut self, number: u16, staged: &Staged) {
        let size = self.block_size();
        let (Some(pages), Some(port)) = (&self.receive.pages, self.ports.get_mut(number)) else { return };
        let Some(filled) = &mut port.filled else { return };
        let at = filled.block() as usize * size as usize + filled.used;
        let data_at = RECEIVE_HEADROOM + staged.placed.shift;
        let header = frame::header_at(data_at, staged.len - staged.placed.shift, &staged.placed.info);
        let mut copied = pages.copy_in(at, &header).is_ok();
        let mut bytes = [0; 4096];
        for from in (0..staged.len).step_by(bytes.len()) {
            let part = &mut bytes[..(staged.len - from).min(4096)];
            copied &= self.receive.staging.copy_out(from, part).is_ok();
            copied &= pages.copy_in(at + RECEIVE_HEADROOM + from, part).is_ok();
        }
        if copied {
            filled.push(size, RECEIVE_HEADROOM + staged.len);
        }
    }

    /// The channel that a frame's hash leads to, and the hash.
    pub(super) fn channel_of(&self, head: &[u8]) -> (u16, Option<u32>) {
        let hashed = || {
            let rss = self.state.nic.rss.as_ref()?;
            let hash = self.receive.hash.as_ref()?.frame(&Layout::of(head)?, head, rss.types)?;
            Some((rss.channel(hash), hash))
        };
        match hashed() {
            Some((number, hash)) => (self.ports.or_primary(number), Some(hash)),
            None => (0, None),
        }
    }

    /// What spreads frames among channels is what the guest has said last.
    pub(super) fn renew_hash(&mut self) {
        let one = self.backend.queues() == 1;
        let rss = self.state.nic.rss.as_ref().filter(|_| one);
        self.receive.hash = rss.map(|rss| Toeplitz::new(&rss.key));
    }
}
