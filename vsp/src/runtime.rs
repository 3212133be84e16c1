//! The main loop: one thread, one epoll, turns of bounded length.
//!
//! A turn waits for something to happen, reads what the core has to say, takes at most [`BATCH`] packets from
//! each channel, and publishes what was completed. However fast a guest sends, the core is heard every turn.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use ipc::message::{STATUS_OK, STATUS_REFUSED, ToCore, ToVsp};
use ipc::socket::{Peer, SocketError};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;

use crate::channel::Taken;
use crate::channels::{BROKEN, ChannelId, Channels, NewChannel};
use crate::device::{Device, OpenRequest, Packet, Vm};
use crate::request::Request;

/// Most packets taken from one channel in one turn. Large enough to make one submission and one publication
/// of a full queue (Linux keeps some 30 to 60 requests a channel in flight), small enough that a storm on one
/// channel delays the others and the core by well under a millisecond.
pub const BATCH: usize = 64;

const CONTROL: Token = Token(0);
const FIRST_SOURCE: usize = 1;
const FIRST_CHANNEL: usize = 1 << 16;

/// Whether there will be another turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Yes.
    Continue,
    /// The core is gone.
    CoreGone,
}

/// What ends a device process.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// epoll does not work.
    #[error("cannot wait for events: {0}")]
    Poll(#[from] io::Error),
    /// The control socket does not work, or the core does not follow the protocol.
    #[error("control socket: {0}")]
    Control(#[source] SocketError),
    /// The device did not take the VM.
    #[error("{0}")]
    Device(String),
}

/// A device and its channels.
#[derive(Debug)]
pub struct Runtime<D> {
    device: D,
    channels: Channels,
    poll: Poll,
    events: Events,
    peer: Option<Peer>,
    scratch: Vec<u8>,
}

impl<D: Device> Runtime<D> {
    /// Prepares the loop. Everything that the loop needs is open afterwards.
    pub fn new(device: D) -> Result<Runtime<D>, RuntimeError> {
        let poll = Poll::new()?;
        for (index, number) in device.sources().into_iter().enumerate() {
            let token = Token(FIRST_SOURCE + index);
            poll.registry().register(&mut SourceFd(&number), token, Interest::READABLE)?;
        }
        let events = Events::with_capacity(64);
        Ok(Runtime { device, channels: Channels::new(), poll, events, peer: None, scratch: Vec::new() })
    }

    /// Descriptors of the loop and of the device, for the compartment to keep.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = self.device.descriptors();
        all.push(self.poll.as_raw_fd());
        all
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The core has welcomed us: from now on it is heard.
    pub fn attached(&mut self, peer: Peer, vm: Vm) -> Result<(), RuntimeError> {
        self.device.attached(vm).map_err(RuntimeError::Device)?;
        self.poll.registry().register(&mut SourceFd(&peer.as_raw_fd()), CONTROL, Interest::READABLE)?;
        self.peer = Some(peer);
        Ok(())
    }

    /// One turn. Waits at most `timeout` (`None`: for ever) if there is nothing to do.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<Flow, RuntimeError> {
        let timeout = if self.channels.any_ready() { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Flow::Continue),
            other => other?,
        }
        let mut core_speaks = false;
        for event in &self.events {
            match event.token() {
                CONTROL => core_speaks = true,
                // The kick eventfd is never read: epoll reports each new write of an edge-triggered one by
                // itself, and the ring says how much there is.
                Token(number) if number >= FIRST_CHANNEL => self.channels.kicked(number - FIRST_CHANNEL),
                Token(number) => self.device.ready(number - FIRST_SOURCE, &mut self.channels),
            }
        }
        if core_speaks && self.listen()? == Flow::CoreGone {
            return Ok(Flow::CoreGone);
        }
        for slot in 0..self.channels.slots() {
            self.take_batch(slot);
        }
        self.channels.flush();
        self.report_closed()?;
        Ok(Flow::Continue)
    }

    /// Takes packets from one channel, publishes that they are taken, and has the device start on them.
    fn take_batch(&mut self, slot: usize) {
        let Some(id) = self.channels.start_batch(slot) else { return };
        let mut last = Taken::Wait;
        for _ in 0..BATCH {
            last = self.channels.take(id, &mut self.scratch);
            let Taken::Packet(header, ticket) = &last else { break };
            let packet = Packet { header, bytes: &self.scratch };
            self.device.packet(packet, Request::new(id, *ticket), &mut self.channels);
        }
        self.channels.end_batch(id, last);
        self.device.submit(&mut self.channels);
    }

    /// Reads all that the core has sent.
    fn listen(&mut self) -> Result<Flow, RuntimeError> {
        loop {
            let Some(peer) = &self.peer else { return Ok(Flow::Continue) };
            let (message, fds) = match peer.try_recv::<ToVsp>() {
                Ok(received) => received,
                Err(SocketError::WouldBlock) => return Ok(Flow::Continue),
                Err(SocketError::Closed) => return Ok(Flow::CoreGone),
                Err(error) => return Err(RuntimeError::Control(error)),
            };
            match message {
                ToVsp::ChannelOpen { channel, subchannel, ring, target_vp, flag, user_data } => {
                    let request = OpenRequest { subchannel, target_vp, user_data };
                    let new = NewChannel { core_id: channel, ring, flag, fds };
                    let status = self.open(new, &request);
                    self.tell(&ToCore::OpenResult { channel, status, reason: None })?;
                }
                ToVsp::ChannelClose { channel } => match self.channels.close(channel) {
                    Some(id) => {
                        self.device.closing(id);
                        // What was completed before the close is still the guest's, if it looks.
                        self.report_closed()?;
                    }
                    // It failed to open, or is closed already: nothing of ours is in flight.
                    None => self.tell(&ToCore::Closed { channel })?,
                },
                ToVsp::Retarget { channel, target_vp, .. } => {
                    if let Err(error) = self.channels.retarget(channel, fds) {
                        tracing::error!(channel, target_vp, "interrupts cannot be moved: {error}");
                    }
                }
                ToVsp::Refused { reason } => {
                    return Err(RuntimeError::Device(format!("the core says: {reason}")));
                }
                ToVsp::Welcome { .. } => tracing::warn!("the core welcomed this device twice"),
                ToVsp::Serve { .. } | ToVsp::Quiesce {} | ToVsp::Retire {} => {}
            }
        }
    }

    /// Opens a channel; the status for the guest.
    fn open(&mut self, new: NewChannel, request: &OpenRequest) -> u32 {
        let core_id = new.core_id;
        let id = match self.channels.open(new, self.device.depth()) {
            Ok(id) => id,
            Err(error) => {
                if let Some(times) = BROKEN.another() {
                    tracing::warn!(channel = core_id, times, "a channel cannot be opened: {error}");
                }
                return STATUS_REFUSED;
            }
        };
        if let Err(refused) = self.device.open(id, request) {
            self.channels.remove(id);
            return refused.status;
        }
        let token = Token(FIRST_CHANNEL + id.slot());
        if let Err(error) = self.channels.watch(id, self.poll.registry(), token) {
            tracing::error!(channel = core_id, "a channel cannot be watched: {error}");
            self.device.closing(id);
            self.channels.remove(id);
            return STATUS_REFUSED;
        }
        STATUS_OK
    }

    /// Tells the core which closed channels have drained.
    fn report_closed(&mut self) -> Result<(), RuntimeError> {
        while let Some(channel) = self.channels.reap(self.poll.registry()) {
            self.tell(&ToCore::Closed { channel })?;
        }
        Ok(())
    }

    fn tell(&self, message: &ToCore) -> Result<(), RuntimeError> {
        match self.peer.as_ref().map(|peer| peer.send(message, &[])) {
            // That the core is gone is noticed when it is read from.
            None | Some(Ok(()) | Err(SocketError::Closed)) => Ok(()),
            Some(Err(error)) => Err(RuntimeError::Control(error)),
        }
    }

    /// How many of the channel slots are in use; for tests.
    pub fn open_channels(&self) -> usize {
        (0..self.channels.slots()).filter(|slot| self.channels.is_used(ChannelId::at(*slot))).count()
    }
}
