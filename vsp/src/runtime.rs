//! The main loop: one thread, one epoll, turns of bounded length.
//!
//! A turn waits for something to happen, reads what the core has to say, takes at most [`Device::batch`] packets from
//! each channel, and publishes what was completed. However fast a guest sends, the core is heard every 50 microseconds at
//! least (`polling`), or after the turn that took longer, whatever the process's role is; when the core is gone, so is the
//! process.

mod adoption;
mod early;
mod mapping;
mod memory;
mod opening;
mod passthrough;
mod succession;
mod wait;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use ipc::message::{CONTROL_VERSION, ToCore, ToVsp};
use ipc::socket::{Peer, SocketError};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;
use vmbus::packet::PacketHeader;

use self::adoption::Adoption;
use self::early::Early;
use self::mapping::Mapper;
use self::memory::Fetcher;
use self::wait::Waited;
use crate::attach::{AttachError, hello, join};
use crate::channels::{ChannelId, Channels, NewChannel};
use crate::control::Control;
use crate::device::{Device, Packet};
use crate::notify::Notifier;
use crate::polling::Polling;
use crate::request::Request;
use crate::role::Role;
use crate::slot::{Next, Pause};

/// Most packets taken from one channel in one turn, unless a device [says otherwise](Device::batch): one submission and one
/// publication. Large enough that neither is felt, small enough that the guest works on the first answers of a full queue while the
/// device works on the rest, and that a storm on one channel delays the others and the core by some tens of microseconds.
pub const BATCH: usize = 16;

/// The same of a predecessor's requests. The guest has been waiting for all of them: the first answers are worth more than
/// one publication for many.
const RECOVERY_BATCH: usize = 4;

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
    /// Another process serves the device.
    Retired,
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
    /// The core did not take the device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The device cannot go on.
    #[error("{0}")]
    Device(String),
}

/// What the process tells its core and its supervisor besides what the device says.
#[derive(Debug)]
pub struct Setting {
    /// Name of the device slot.
    pub name: String,
    /// Off: to measure what a ledger costs.
    pub ledger: bool,
    /// The line to the supervisor.
    pub notifier: Notifier,
}

/// A device and its channels.
#[derive(Debug)]
pub struct Runtime<D> {
    device: D,
    setting: Setting,
    role: Role,
    /// The core says when it has given us all channels.
    announces: bool,
    /// Whether it has.
    adoption: Adoption,
    channels: Channels,
    poll: Poll,
    polling: Polling,
    events: Events,
    peer: Option<Peer>,
    fetcher: Fetcher,
    mapper: Mapper,
    /// What is put off while the guest waits.
    early: Early,
    /// A packet, and behind it what was fetched for it.
    scratch: Vec<u8>,
}

impl<D: Device> Runtime<D> {
    /// Prepares the loop. Everything that the loop needs is open afterwards.
    pub fn new(device: D, setting: Setting) -> Result<Runtime<D>, RuntimeError> {
        let poll = Poll::new()?;
        for (index, number) in device.sources().into_iter().enumerate() {
            let token = Token(FIRST_SOURCE + index);
            poll.registry().register(&mut SourceFd(&number), token, Interest::READABLE)?;
        }
        Ok(Runtime {
            device,
            setting,
            role: Role::Greeting,
            announces: false,
            adoption: Adoption::Over,
            channels: Channels::new(),
            poll,
            // Asked now: later nothing of the system can be seen.
            polling: Polling::new(std::thread::available_parallelism().map_or(1, usize::from)),
            events: Events::with_capacity(64),
            peer: None,
            fetcher: Fetcher::default(),
            mapper: Mapper::default(),
            early: Early::default(),
            scratch: Vec::new(),
        })
    }

    /// Descriptors of the loop and of the device, for the compartment to keep.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = self.device.descriptors();
        all.push(self.poll.as_raw_fd());
        all.extend(self.setting.notifier.descriptor());
        all
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Says hello. The answer is heard in a turn, like everything that the core says from now on.
    pub fn greet(&mut self, peer: Peer) -> Result<(), RuntimeError> {
        let hello = hello(&self.setting.name, &self.device, self.setting.ledger);
        self.poll.registry().register(&mut SourceFd(&peer.as_raw_fd()), CONTROL, Interest::READABLE)?;
        self.peer = Some(peer);
        self.tell(&hello)
    }

    /// One turn. Waits at most `timeout` (`None`: for ever) if there is nothing to do.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<Flow, RuntimeError> {
        if self.wait(timeout)? == Waited::Interrupted {
            return Ok(Flow::Continue);
        }
        let mut core_speaks = self.fetcher.has_kept();
        for event in &self.events {
            match event.token() {
                CONTROL => core_speaks = true,
                // The kick eventfd is never read: epoll reports each new write of an edge-triggered one by
                // itself, and the ring says how much there is.
                Token(number) if number >= FIRST_CHANNEL => self.channels.kicked(number - FIRST_CHANNEL),
                Token(_) => {}
            }
        }
        if core_speaks {
            match self.listen()? {
                Flow::Continue => {}
                over => return Ok(over),
            }
        }
        // After what the core has said: a channel that it has given, or taken, is there or gone before anything is done about what the
        // sources bring.
        for event in &self.events {
            if let Token(number @ FIRST_SOURCE..FIRST_CHANNEL) = event.token() {
                self.device.ready(number - FIRST_SOURCE, &mut self.channels);
            }
        }
        self.refuse_gpadls();
        self.refuse_orders();
        if matches!(self.role, Role::Fencing(_)) {
            self.fence()?;
        }
        if self.takes() {
            // To begin with the next requests takes the longer the slower the resource is; what has ended need not wait for that.
            self.publish()?;
            (0..self.channels.slots()).try_for_each(|slot| self.take_batch(slot))?;
        }
        self.end_adoption();
        self.deliver_accesses();
        if self.device.wake_at().is_some_and(|then| then <= Instant::now()) {
            self.device.submit(&mut self.channels);
        }
        self.publish()?;
        self.channels.wake();
        self.report_controls()?;
        self.report_closed()?;
        self.say()?;
        if matches!(self.role, Role::Quiescing) {
            self.hand_over()?;
        }
        Ok(Flow::Continue)
    }

    /// Takes packets from one channel, publishes that they are taken, and has the device start on them.
    fn take_batch(&mut self, slot: usize) -> Result<(), RuntimeError> {
        let Some(id) = self.channels.start_batch(slot) else { return Ok(()) };
        let recovers = self.channels.is_recovering(id);
        let batch = if recovers { RECOVERY_BATCH } else { self.device.batch() };
        let mut pause = Pause::Turn;
        for _ in 0..batch {
            if recovers && !self.channels.may_go_on(id) {
                break;
            }
            let Runtime { channels, device, peer, fetcher, scratch, .. } = self;
            let next = channels.next(id, scratch, &mut |channel, header, offset, scratch| {
                fetcher.fetch(device, peer.as_ref(), (channel, offset), header, scratch);
            });
            match next {
                Next::Packet(header, ticket) => {
                    self.channels.enter(id, &ticket);
                    let packet = packet(&header, &self.scratch);
                    self.device.packet(packet, Request::new(id, ticket), &mut self.channels);
                    self.channels.leave(id);
                }
                Next::Reject(header, ticket) => {
                    self.channels.enter(id, &ticket);
                    let packet = header.as_ref().map(|header| packet(header, &self.scratch));
                    self.device.reject(packet, Request::new(id, ticket), &mut self.channels);
                    self.channels.leave(id);
                }
                Next::Done => {}
                Next::Stop(why) => {
                    pause = why;
                    break;
                }
            }
            if self.channels.awaits_gpadls() {
                break;
            }
        }
        self.channels.end_batch(id, pause);
        self.deliver_returns(id);
        self.device.submit(&mut self.channels);
        // A turn over all channels may be long; one batch is not.
        self.setting.notifier.alive();
        // Not at the end of the turn: the guest need not wait for other channels' batches.
        self.publish()?;
        // It has had no answer for a while, and what has ended at once need not wait for the other channels' requests to be begun. After what was
        // answered before is visible, as always: devices count on that.
        if recovers && self.device.poll(&mut self.channels) {
            self.publish()?;
        }
        Ok(())
    }

    /// Publishes what was completed; before that, what the core has to know before the guest does.
    fn publish(&mut self) -> Result<(), RuntimeError> {
        if let Some(count) = self.channels.take_subchannels() {
            self.tell(&ToCore::OfferSubchannels { count })?;
        }
        self.report_gpadls()?;
        self.report_orders()?;
        self.channels.flush();
        if self.deliver_room() {
            // What the device has put there need not wait for the next turn.
            self.report_gpadls()?;
            self.report_orders()?;
            self.channels.flush();
        }
        Ok(())
    }

    /// Reads all that the core has sent.
    fn listen(&mut self) -> Result<Flow, RuntimeError> {
        loop {
            let Some(peer) = &self.peer else { return Ok(Flow::Continue) };
            let heard = self.fetcher.take_kept().unwrap_or_else(|| peer.try_recv::<ToVsp>());
            let (message, fds) = match heard {
                Ok(heard) => heard,
                Err(SocketError::WouldBlock) => return Ok(Flow::Continue),
                Err(SocketError::Closed) => return Ok(Flow::CoreGone),
                Err(error) => return Err(RuntimeError::Control(error)),
            };
            match message {
                ToVsp::Welcome { version, vm, vps, ram, standby } => {
                    let vm = join(version, vm, vps, ram, fds)?;
                    self.announces = version >= CONTROL_VERSION;
                    self.fetcher.welcomed(version);
                    self.mapper.welcomed(version);
                    self.welcomed(vm, standby)?;
                }
                ToVsp::Refused { reason } => return Err(AttachError::Refused(reason).into()),
                _ if matches!(self.role, Role::Greeting) => return Err(AttachError::NotWelcome.into()),
                ToVsp::Serve { predecessor } => self.serve(predecessor),
                ToVsp::Adopted {} => self.adoption.announced(),
                ToVsp::Quiesce {} => {
                    // Whoever only waits for the resource has nothing to end, and answers at once.
                    if matches!(self.role, Role::Serving | Role::Fencing(_)) {
                        self.early.forget();
                        self.role = Role::Quiescing;
                        self.device.quiescing();
                    }
                }
                ToVsp::Retire {} => {
                    tracing::info!("retired: a successor serves");
                    return Ok(Flow::Retired);
                }
                order @ (ToVsp::ChannelOpen { .. } | ToVsp::ChannelClose { .. } | ToVsp::Retarget { .. }) => {
                    self.ordered(order, fds)?;
                }
                ToVsp::ChannelPrepare { channel, ring } => {
                    let ledger = self.setting.ledger && self.device.ledger();
                    let new = NewChannel { core_id: channel, is_primary: false, ring, flag: 0, fds, ledger };
                    // It is said again with the order to open it, which tells the core.
                    if let Err(error) = self.channels.prepare(new) {
                        tracing::warn!(channel, "a channel cannot be prepared: {error}");
                    }
                }
                ToVsp::ChannelForget { channel } => self.channels.unprepare(channel),
                ToVsp::Control { id, payload } => {
                    let control = Control::new(id, payload, fds);
                    if self.takes() {
                        self.device.control(control, &mut self.channels);
                    } else {
                        let why = "this process does not serve the device just now";
                        control.answer(&mut self.channels, Err(why.into()));
                    }
                }
                ToVsp::GpadlShared { channel, gpadl, result } => {
                    self.gpadl_shared(channel, gpadl, result, fds);
                }
                ToVsp::MemoryMapped { gpa, result } => self.memory_mapped(gpa, result),
                ToVsp::Memory { gpa, bytes } => self.memory_found(gpa, bytes, fds),
                message @ (ToVsp::Kept { .. }
                | ToVsp::Region { .. }
                | ToVsp::RegionLost { .. }
                | ToVsp::Trapped { .. }
                | ToVsp::TrapThere { .. }
                | ToVsp::Access { .. }
                | ToVsp::InterruptReady { .. }) => self.pass(message, fds),
                // Whoever asks waits for it.
                ToVsp::Fetched { channel, .. } => {
                    tracing::warn!(channel, "something was fetched that nobody wants")
                }
            }
        }
    }

    /// The core has taken the device.
    fn welcomed(&mut self, vm: crate::device::Vm, standby: bool) -> Result<(), RuntimeError> {
        if !matches!(self.role, Role::Greeting) {
            tracing::warn!("the core welcomed this device twice");
            return Ok(());
        }
        tracing::info!(vm = vm.name, standby, "attached");
        self.device.attached(vm).map_err(RuntimeError::Device)?;
        self.role = Role::Standby;
        if standby {
            self.setting.notifier.status(true, "standing by");
        }
        Ok(())
    }

    /// Whether requests are taken.
    fn takes(&self) -> bool {
        matches!(self.role, Role::Serving) && self.adoption.lets_take()
    }

    /// Tells the core what operators are answered. What was done for them is published.
    fn report_controls(&mut self) -> Result<(), RuntimeError> {
        for (id, result) in self.channels.take_controls() {
            self.tell(&ToCore::ControlDone { id, result })?;
        }
        Ok(())
    }

    /// Tells the core which closed channels have drained.
    fn report_closed(&mut self) -> Result<(), RuntimeError> {
        // What the device gives back with a channel is the channel's.
        self.report_gpadls()?;
        self.report_orders()?;
        if !self.device.is_clean() {
            return Ok(());
        }
        while let Some(channel) = self.channels.reap(self.poll.registry()) {
            self.tell(&ToCore::Closed { channel })?;
        }
        if !self.adoption.is_pending() {
            for channel in std::mem::take(&mut self.mapper.closes) {
                self.tell(&ToCore::Closed { channel })?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, message: &ToCore) -> Result<(), RuntimeError> {
        self.tell_with(message, &[])
    }

    /// Tells the core something, behind what was put off.
    fn tell_with(&mut self, message: &ToCore, fds: &[BorrowedFd<'_>]) -> Result<(), RuntimeError> {
        self.early.take_results().into_iter().try_for_each(|result| self.send(&result, &[]))?;
        self.send(message, fds)
    }

    fn send(&self, message: &ToCore, fds: &[BorrowedFd<'_>]) -> Result<(), RuntimeError> {
        match self.peer.as_ref().map(|peer| peer.send(message, fds)) {
            // That the core is gone is noticed when it is read from.
            None | Some(Ok(()) | Err(SocketError::Closed)) => Ok(()),
            Some(Err(error)) => Err(RuntimeError::Control(error)),
        }
    }

    /// The device's way back to its guest, outside of a turn; for tests.
    #[cfg(feature = "testing")]
    pub fn with_channels<T>(&mut self, act: impl FnOnce(&mut Channels) -> T) -> T {
        act(&mut self.channels)
    }

    /// Device and way back, outside of a turn; for tests of what comes from neither guest nor core.
    #[cfg(feature = "testing")]
    pub fn with_device<T>(&mut self, act: impl FnOnce(&mut D, &mut Channels) -> T) -> T {
        act(&mut self.device, &mut self.channels)
    }

    /// How many of the channel slots are in use; for tests.
    pub fn open_channels(&self) -> usize {
        (0..self.channels.slots()).filter(|slot| self.channels.is_used(ChannelId::at(*slot))).count()
    }
}

/// The packet in the scratch memory, with what was fetched for it.
fn packet<'a>(header: &'a PacketHeader, scratch: &'a [u8]) -> Packet<'a> {
    let (bytes, fetched) = scratch.split_at((header.len as usize).min(scratch.len()));
    Packet { header, bytes, fetched }
}
