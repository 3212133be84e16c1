//! One open channel: its rings and ledger, its doorbells, and what it is waiting for.

use std::os::fd::OwnedFd;

use ipc::event::Doorbell;
use ipc::ledger::LedgerMapping;
use ipc::shm::{EventFlags, PAGE, RingMapping, SharedMemory, VMBUS_SINT};
use logs::Ration;
use sandbox::crash::Registration;
use vmbus::packet::PacketHeader;
use vmbus::ring::RingError;

use crate::channel::{Channel, Rerun, Taken, Ticket};
use crate::channels::OpenError;

/// How often guests have broken channels, or opened what is none.
pub(crate) static BROKEN: Ration = Ration::new();

/// What a channel is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The ring was empty; the guest will ring the doorbell.
    Idle,
    /// The ring was empty; the guest will not ring the doorbell, the loop looks. Interrupts are masked.
    Watched,
    /// The ring is to be looked at in this turn. Interrupts are masked.
    Ready,
    /// Nothing is taken until completions have left. Interrupts are masked.
    Stalled,
    /// The guest broke the ring: nothing is taken, nothing is answered, until it closes the channel.
    Failed,
    /// The guest closed the channel; requests are in flight still.
    Closing,
}

/// How the guest is signalled.
#[derive(Debug)]
pub(crate) struct Interrupt {
    bell: Doorbell,
    flags: EventFlags,
}

impl Interrupt {
    pub fn new(bell: OwnedFd, flags: OwnedFd) -> Result<Interrupt, OpenError> {
        let page = SharedMemory::from_fd(flags, PAGE as u64)?;
        Ok(Interrupt { bell: Doorbell::from_fd(bell)?, flags: EventFlags::new(&page)? })
    }

    /// Sets the channel's flag and interrupts the VP. The eventfd is written even if the flag was set:
    /// whoever set it may have died before the interrupt.
    pub fn signal(&self, flag: u32) {
        self.flags.set(VMBUS_SINT, flag);
        if let Err(error) = self.bell.signal() {
            tracing::error!("the guest cannot be interrupted: {error}");
        }
    }
}

/// An open channel.
#[derive(Debug)]
pub(crate) struct Slot {
    pub core_id: u32,
    pub is_primary: bool,
    pub state: State,
    /// Goes before the ledger does.
    pub _stamp: Option<Registration>,
    pub channel: Channel<RingMapping, LedgerMapping>,
    pub has_ledger: bool,
    /// A predecessor crashed and nobody knows of which request: they run one by one, and nothing beside them.
    pub careful: bool,
    /// Requests that the device has.
    pub with_device: u32,
    pub kick: Doorbell,
    pub interrupt: Interrupt,
    pub flag: u32,
}

impl Slot {
    pub fn answers(&self) -> bool {
        matches!(self.state, State::Idle | State::Watched | State::Ready | State::Stalled)
    }

    /// The guest broke the ring: says so, once.
    pub fn fail(&mut self, error: &dyn std::fmt::Display) {
        if self.answers() {
            if let Some(times) = BROKEN.another() {
                tracing::error!(
                    channel = self.core_id,
                    times,
                    "the guest broke this channel, it is not served any more: {error}"
                );
            }
            self.state = State::Failed;
            self.channel.abandon_backlog();
        }
    }

    /// Lets taking go on if it was paused and need not be any more.
    pub fn resume(&mut self) {
        if self.state == State::Stalled && self.channel.may_take() {
            self.state = State::Ready;
        }
    }

    /// Whether no other channel may do anything meanwhile.
    pub fn is_alone(&self) -> bool {
        self.careful && self.answers() && self.channel.recovering()
    }

    /// Whether the next request is one that a predecessor has begun with.
    pub fn has_begun(&self) -> bool {
        self.channel.has_begun() && self.answers()
    }

    /// Publishes all completions and signals the guest if it has to be.
    pub fn flush(&mut self) {
        match self.channel.publish_completions() {
            Ok(()) => self.resume(),
            Err(error) => self.fail(&error),
        }
        if self.channel.take_prompt_signal() {
            self.interrupt.signal(self.flag);
        }
    }

    /// Wakes a guest that may sleep on a predecessor's signal, if nothing has been sent to it yet.
    pub fn wake(&mut self) {
        if self.channel.take_signal() {
            self.interrupt.signal(self.flag);
        }
    }

    /// Makes a state the device's, behind everything that was sent so far.
    pub fn save_state(&mut self, state: &[u8]) -> bool {
        let saved = self.channel.save_state(state);
        if self.channel.take_signal() {
            self.interrupt.signal(self.flag);
        }
        saved
    }

    /// The next piece of work: what a predecessor has left first, then what the guest has sent.
    pub fn next(&mut self, scratch: &mut Vec<u8>, fetch: &mut Fetch<'_>) -> Next {
        if self.channel.recovering() {
            match self.channel.next_rerun(scratch) {
                Rerun::Packet(header, ticket) => return self.hand_out(Next::Packet(header, ticket)),
                Rerun::Reject(header, ticket, attempts) => return self.reject(header, ticket, attempts),
                Rerun::Unreadable(ticket) => {
                    tracing::error!(
                        channel = self.core_id,
                        id = ticket.transaction_id,
                        "a request was damaged in the ledger, it fails"
                    );
                    return self.hand_out(Next::Reject(None, ticket));
                }
                Rerun::Outcome(ticket) => {
                    if let Err(error) = self.channel.complete(ticket, scratch, None) {
                        self.fail(&error);
                    }
                    return Next::Done;
                }
                Rerun::Wait => return Next::Stop(Pause::Wait),
                Rerun::None => {}
            }
        }
        let core_id = self.core_id;
        let taken = self.channel.take_fetching(scratch, |header, offset, scratch| {
            fetch(core_id, header, offset, scratch);
        });
        match taken {
            Taken::Returned => Next::Done,
            Taken::Packet(header, ticket) => self.hand_out(Next::Packet(header, ticket)),
            Taken::Reject(header, ticket, attempts) => self.reject(header, ticket, attempts),
            Taken::Empty => Next::Stop(Pause::Empty),
            Taken::Wait => Next::Stop(Pause::Wait),
            Taken::Failed(error) => Next::Stop(Pause::Failed(error)),
        }
    }

    fn reject(&mut self, header: PacketHeader, ticket: Ticket, attempts: u32) -> Next {
        tracing::error!(
            channel = self.core_id,
            id = ticket.transaction_id,
            attempts,
            "a request has killed as many processes as it was tried by, it fails"
        );
        self.hand_out(Next::Reject(Some(header), ticket))
    }

    fn hand_out(&mut self, next: Next) -> Next {
        self.with_device += 1;
        next
    }
}

/// Brings what a GPA-direct packet names: the channel's number for the core, the packet's header, where it begins in the ring, and the
/// packet, behind which it goes.
pub(crate) type Fetch<'a> = dyn FnMut(u32, &PacketHeader, u32, &mut Vec<u8>) + 'a;

/// What [`Channels::next`] found.
#[derive(Debug)]
pub(crate) enum Next {
    /// A request for the device; the packet is in the scratch memory.
    Packet(PacketHeader, Ticket),
    /// A request to be failed; the packet, if it can be read, is in the scratch memory.
    Reject(Option<PacketHeader>, Ticket),
    /// Something that is over already.
    Done,
    /// Nothing more now.
    Stop(Pause),
}

/// Why nothing is taken.
#[derive(Debug)]
pub(crate) enum Pause {
    /// It is another turn's.
    Turn,
    /// The ring is empty.
    Empty,
    /// Something has to be completed first.
    Wait,
    /// The guest has broken the ring.
    Failed(RingError),
}
