//! The open channels of the NIC, by their numbers: 0 is the primary one, the others are sub-channels.

use std::collections::VecDeque;

use vsp::ChannelId;
use vsp::ipc::message::MAX_SUBCHANNELS;

use super::receive::Filled;
use super::transmit::Held;

/// An open channel.
#[derive(Debug)]
pub(super) struct Port {
    /// What the runtime calls it.
    pub id: ChannelId,
    /// Requests whose frames the backend does not take for now, oldest first.
    pub held: VecDeque<Held>,
    /// A block with frames that is not the guest's yet.
    pub filled: Option<Filled>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Ports {
    list: Vec<Option<Port>>,
    open: usize,
}

impl Ports {
    /// A channel is open.
    pub fn insert(&mut self, number: u16, id: ChannelId) {
        let place = usize::from(number.min(MAX_SUBCHANNELS));
        if self.list.len() <= place {
            self.list.resize_with(place + 1, || None);
        }
        self.list[place] = Some(Port { id, held: VecDeque::new(), filled: None });
        self.count();
    }

    /// A channel is open no more.
    pub fn remove(&mut self, id: ChannelId) -> Option<(u16, Port)> {
        let number = self.number(id)?;
        let port = self.list.get_mut(usize::from(number))?.take()?;
        self.count();
        Some((number, port))
    }

    /// None is.
    pub fn clear(&mut self) {
        self.list.clear();
        self.open = 0;
    }

    fn count(&mut self) {
        self.open = self.list.iter().flatten().count();
    }

    /// Its number.
    pub fn number(&self, id: ChannelId) -> Option<u16> {
        let place = self.list.iter().position(|port| port.as_ref().is_some_and(|port| port.id == id))?;
        u16::try_from(place).ok()
    }

    /// The channel with a number.
    pub fn get_mut(&mut self, number: u16) -> Option<&mut Port> {
        self.list.get_mut(usize::from(number))?.as_mut()
    }

    /// The same.
    pub fn get(&self, number: u16) -> Option<&Port> {
        self.list.get(usize::from(number))?.as_ref()
    }

    /// What the runtime calls the primary channel.
    pub fn primary(&self) -> Option<ChannelId> {
        self.get(0).map(|port| port.id)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open
    }

    /// How many numbers there are: what [`Ports::get`] has to be asked for to see all.
    pub fn numbers(&self) -> u16 {
        self.list.len() as u16
    }

    /// The channel that this queue of the backend's feeds: by its number among all numbers; the primary one for those that
    /// are not open (yet, or any more).
    pub fn of_queue(&self, queue: usize) -> u16 {
        self.or_primary((queue % self.list.len().max(1)) as u16)
    }

    /// This channel if it is open, else the primary one.
    pub fn or_primary(&self, number: u16) -> u16 {
        if self.get(number).is_some() { number } else { 0 }
    }

    /// Whether any has a block that is not the guest's yet.
    pub fn any_filled(&self) -> bool {
        self.list.iter().flatten().any(|port| port.filled.is_some())
    }

    /// Whether any has requests that wait for the backend.
    pub fn any_held(&self) -> bool {
        self.list.iter().flatten().any(|port| !port.held.is_empty())
    }
}
