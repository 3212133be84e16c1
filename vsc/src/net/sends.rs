//! Which sends are under way.

use crate::error::Error;

/// The transaction id of a packet that we sent: its place in the table plus 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub u64);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    /// The answer to an NVSP message: a completion with a message of its own.
    Nvsp,
    /// The completion of an RNDIS packet, after which what carried it is free.
    Rndis {
        /// Section of the send buffer.
        section: Option<u32>,
        /// Guest pages, by their first one's address.
        pages: Option<u64>,
        /// It is a control message's.
        control: bool,
    },
}

/// The table of sends under way. Places are used again at once, as the driver's are.
#[derive(Debug)]
pub(super) struct Sends {
    places: Vec<Option<Pending>>,
    free: Vec<u32>,
}

impl Sends {
    pub fn new(depth: usize) -> Self {
        Self { places: vec![None; depth], free: (0..depth as u32).rev().collect() }
    }

    pub fn start(&mut self, pending: Pending) -> Option<SendId> {
        let place = self.free.pop()?;
        self.places[place as usize] = Some(pending);
        Some(SendId(u64::from(place) + 1))
    }

    /// Ends a send. One that is not under way is an error: invented, or completed twice.
    pub fn finish(&mut self, id: u64) -> Result<Pending, Error> {
        let place = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        let pending = place
            .and_then(|place| self.places.get_mut(place))
            .and_then(Option::take)
            .ok_or(Error::UnknownCompletion(id))?;
        self.free.push((id - 1) as u32);
        Ok(pending)
    }

    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_counts_once() {
        let mut sends = Sends::new(2);
        let (a, b) = (sends.start(Pending::Nvsp).expect("room"), sends.start(Pending::Nvsp).expect("room"));
        assert!(sends.start(Pending::Nvsp).is_none() && !sends.has_room());
        assert!(sends.finish(a.0).is_ok());
        assert!(matches!(sends.finish(a.0), Err(Error::UnknownCompletion(_))), "twice");
        for invented in [0, 3, u64::MAX] {
            assert!(matches!(sends.finish(invented), Err(Error::UnknownCompletion(_))));
        }
        assert_eq!(sends.start(Pending::Nvsp), Some(a), "ids are used again at once");
        assert!(sends.finish(b.0).is_ok());
        assert_eq!(sends.in_flight(), 1);
    }
}
