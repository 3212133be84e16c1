//! What messages do: the state of one front end.
//!
//! A [`Fault`] ends the connection, with a line in the log that says what was wrong. Nothing here waits: the end of a queue
//! ([`Answer::AfterStop`]) is answered when its requests have ended.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use ipc::event::Doorbell;
use ipc::shm::{Foreign, ForeignError, SharedMemory, ShmError};
use thiserror::Error;

use crate::face::{Face, feature};
use crate::inflight::{self, InflightError, Region};
use crate::memory::{MAX_SLOTS, MemoryError};
use crate::queue::StartError;
use crate::queues::Queues;
use crate::ring::RingError;
use crate::wire::{CONFIG_SPACE, InflightLayout, Message, protocol};

/// What of the protocol is offered.
pub(crate) const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::CONFIGURE_MEM_SLOTS;

/// A message that must not be obeyed. The front end is at fault, unless the text says otherwise.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    #[error("it wants features that were not offered: {0:#x}")]
    Features(u64),
    #[error("it wants features of the protocol that were not offered: {0:#x}")]
    Protocol(u64),
    #[error("it uses a feature of the protocol that it has not asked for ({0})")]
    NotNegotiated(&'static str),
    #[error("it speaks of queue {ring}, and there are {count}")]
    Queue { ring: u32, count: usize },
    #[error("it changes queue {0} while it runs")]
    Running(u32),
    #[error("it changes features while a queue runs")]
    FeaturesWhileRunning,
    #[error("queue {0} is to begin at {1}, which is no index")]
    Base(u32, u32),
    #[error("queue {0} cannot run: {1}")]
    Start(u32, #[source] StartError),
    #[error("a ring that runs is not in the memory any more: {0}")]
    Moved(#[source] RingError),
    #[error("an event descriptor is no eventfd")]
    NotAnEvent,
    #[error("an event descriptor cannot be used: {0}")]
    Event(#[source] io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Inflight(#[from] InflightError),
    #[error("the memory for requests in flight: {0}")]
    InflightMemory(#[source] ForeignError),
    #[error("this host gives no memory for requests in flight: {0}")]
    NoMemory(#[source] ShmError),
}

/// What is to be said to a message.
#[derive(Debug)]
pub(crate) enum Answer {
    /// That it was obeyed, if the front end wants to know.
    Done,
    /// This.
    Long(u64),
    /// This, with a descriptor.
    Inflight(InflightLayout, SharedMemory),
    /// A part of the configuration space.
    Config { offset: u32, flags: u32, bytes: Vec<u8> },
    /// Where this queue ends, once nothing of it is in flight.
    AfterStop(u16),
    /// That it was not obeyed, if the front end wants to know: its guest's driver is at fault, not itself.
    Refused(String),
}

/// What the loop has to do besides.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    /// Not to be watched any more.
    pub forget: Option<Doorbell>,
    /// To be watched, for this queue.
    pub watch: Option<u16>,
    /// This queue has been started.
    pub started: Option<u16>,
}

/// One front end's state besides its queues.
#[derive(Debug, Default)]
pub(crate) struct Session {
    protocol: u64,
    /// Features of the driver as they were acknowledged.
    features: u64,
}

impl Session {
    /// Whether acknowledgements may be asked for.
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// Obeys a message. What there is to do besides is in `effect`, whether or not it went well.
    pub fn obey<F: Face>(
        &mut self,
        message: Message,
        face: &mut F,
        queues: &mut Queues,
        effect: &mut Effect,
    ) -> Result<Answer, Fault> {
        let mut may_start = None;
        match message {
            Message::GetFeatures => return Ok(Answer::Long(face.features() | feature::RING)),
            Message::SetFeatures(features) => self.set_features(features, face, queues)?,
            Message::SetOwner | Message::ResetOwner => {}
            Message::GetProtocolFeatures => return Ok(Answer::Long(PROTOCOL)),
            Message::SetProtocolFeatures(features) => {
                if features & !PROTOCOL != 0 {
                    return Err(Fault::Protocol(features & !PROTOCOL));
                }
                self.protocol = features;
            }
            Message::GetQueueNum => return Ok(Answer::Long(queues.slots.len() as u64)),
            Message::GetMaxMemSlots => return Ok(Answer::Long(MAX_SLOTS as u64)),
            Message::SetMemTable(table) => {
                queues.publish_all();
                let runs = queues.any_live();
                queues.memory.replace(table, runs)?;
                queues.memory_has_changed();
                queues.move_rings().map_err(Fault::Moved)?;
            }
            Message::AddMemReg(region, fd) => {
                self.needs(protocol::CONFIGURE_MEM_SLOTS, "memory slots")?;
                let runs = queues.any_live();
                queues.memory.add(region, fd, runs)?;
                queues.memory_has_changed();
            }
            Message::RemMemReg(region) => {
                self.needs(protocol::CONFIGURE_MEM_SLOTS, "memory slots")?;
                let runs = queues.any_live();
                queues.memory.remove(region, runs)?;
            }
            Message::GetConfig { offset, len, flags } => {
                let mut bytes = [0; CONFIG_SPACE];
                let bytes = &mut bytes[..(len as usize).min(CONFIG_SPACE)];
                face.config(offset as usize, bytes);
                return Ok(Answer::Config { offset, flags, bytes: bytes.to_vec() });
            }
            Message::SetConfig { offset, bytes, .. } => {
                if let Err(why) = face.set_config(offset as usize, &bytes, queues) {
                    return Ok(Answer::Refused(why));
                }
            }
            Message::GetInflightFd(wanted) => return self.inflight(wanted, queues),
            Message::SetInflightFd(layout, fd) => self.set_inflight(layout, fd, queues)?,
            Message::SetVringNum { ring, num } => {
                idle_slot(queues, ring)?.entries = num;
            }
            Message::SetVringAddr { ring, address } => {
                idle_slot(queues, ring)?.address = Some(address);
                may_start = Some(ring);
            }
            Message::SetVringBase { ring, base } => {
                let index = u16::try_from(base).map_err(|_| Fault::Base(ring, base))?;
                idle_slot(queues, ring)?.base = index;
            }
            Message::SetVringKick { ring, fd } => {
                let bell = bell(fd)?;
                let slot = slot(queues, ring)?;
                effect.forget = slot.kick.replace(bell);
                effect.watch = Some(ring as u16);
                may_start = Some(ring);
            }
            Message::SetVringCall { ring, fd } => {
                let bell = fd.map(bell).transpose()?;
                slot(queues, ring)?.call = bell;
                // What it should have been told meanwhile.
                queues.publish(ring as u16);
            }
            Message::SetVringErr { ring, fd } => slot(queues, ring)?.err = fd.map(bell).transpose()?,
            Message::SetVringEnable { ring, enable } => {
                // QEMU's NIC says it before it has said which features it uses.
                slot(queues, ring)?;
                queues.enable(ring as u16, enable);
                may_start = Some(ring);
            }
            Message::GetVringBase { ring } => {
                slot(queues, ring)?;
                return Ok(Answer::AfterStop(ring as u16));
            }
        }
        if let Some(ring) = may_start
            && queues.try_start(ring as u16).map_err(|error| Fault::Start(ring, error))?
        {
            effect.started = Some(ring as u16);
        }
        Ok(Answer::Done)
    }

    fn set_features<F: Face>(
        &mut self,
        features: u64,
        face: &mut F,
        queues: &mut Queues,
    ) -> Result<(), Fault> {
        let unknown = features & !(face.features() | feature::RING);
        if unknown != 0 {
            return Err(Fault::Features(unknown));
        }
        if features == self.features {
            return Ok(());
        }
        if queues.any_live() {
            return Err(Fault::FeaturesWhileRunning);
        }
        self.features = features;
        queues.set_features(features);
        face.negotiated(features);
        Ok(())
    }

    fn inflight(&self, wanted: InflightLayout, queues: &Queues) -> Result<Answer, Fault> {
        self.needs(protocol::INFLIGHT_SHMFD, "requests in flight")?;
        let InflightLayout { queues: count, entries, .. } = wanted;
        let size = inflight::bytes_offered(count, entries)
            .filter(|_| usize::from(count) <= queues.slots.len())
            .ok_or(InflightError::Layout { size: 0, queues: count, entries })?;
        // Others map whole pages of it.
        let size = size.next_multiple_of(4096);
        let memory = SharedMemory::create("inflight", size).map_err(Fault::NoMemory)?;
        Ok(Answer::Inflight(InflightLayout { size, offset: 0, queues: count, entries }, memory))
    }

    fn set_inflight(&self, layout: InflightLayout, fd: OwnedFd, queues: &mut Queues) -> Result<(), Fault> {
        self.needs(protocol::INFLIGHT_SHMFD, "requests in flight")?;
        if queues.any_live() {
            return Err(Fault::FeaturesWhileRunning);
        }
        let memory = Foreign::new(fd, layout.offset, layout.size).map_err(Fault::InflightMemory)?;
        queues.set_region(Region::new(memory, layout)?);
        Ok(())
    }

    fn needs(&self, wanted: u64, name: &'static str) -> Result<(), Fault> {
        if self.protocol & wanted == 0 { Err(Fault::NotNegotiated(name)) } else { Ok(()) }
    }
}

fn slot(queues: &mut Queues, ring: u32) -> Result<&mut crate::queue::Slot, Fault> {
    let count = queues.slots.len();
    queues.slots.get_mut(ring as usize).ok_or(Fault::Queue { ring, count })
}

fn idle_slot(queues: &mut Queues, ring: u32) -> Result<&mut crate::queue::Slot, Fault> {
    let slot = slot(queues, ring)?;
    if slot.live.is_some() { Err(Fault::Running(ring)) } else { Ok(slot) }
}

/// An eventfd, as far as that can be told: a file that has no type. Writing to anything else could take as long as its owner likes.
fn bell(fd: OwnedFd) -> Result<Doorbell, Fault> {
    let file = File::from(fd);
    let mode = file.metadata().map_err(Fault::Event)?.mode();
    if mode & nix::libc::S_IFMT != 0 {
        return Err(Fault::NotAnEvent);
    }
    Doorbell::from_fd(file.into()).map_err(Fault::Event)
}
