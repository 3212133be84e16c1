//! Which requests are under way.

use crate::error::Error;

/// The transaction id of a request: its place in the table plus 1, since 0 is the controller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The table of requests under way. The lowest free place is taken first, so ids are used again at once.
#[derive(Debug)]
pub struct Requests {
    /// The command's first byte, for each request under way.
    places: Vec<Option<u8>>,
}

impl Requests {
    pub fn new(depth: usize) -> Self {
        Self { places: vec![None; depth] }
    }

    pub fn start(&mut self, opcode: u8) -> Result<RequestId, Error> {
        let free = self.places.iter().position(Option::is_none);
        let place = free.ok_or_else(|| Error::Protocol("more requests than the queue is deep".into()))?;
        self.places[place] = Some(opcode);
        Ok(RequestId(place as u64 + 1))
    }

    /// Ends a request; returns its command's first byte.
    pub fn finish(&mut self, id: u64) -> Result<u8, Error> {
        let place = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        place
            .and_then(|place| self.places.get_mut(place))
            .and_then(Option::take)
            .ok_or(Error::UnknownCompletion(id))
    }

    pub fn in_flight(&self) -> usize {
        self.places.iter().flatten().count()
    }

    pub fn has_room(&self) -> bool {
        self.places.contains(&None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_counts_once() {
        let mut requests = Requests::new(2);
        let (a, b) = (requests.start(1).expect("room"), requests.start(2).expect("room"));
        assert!(requests.start(3).is_err(), "full");
        assert!(matches!(requests.finish(a.0), Ok(1)));
        assert!(matches!(requests.finish(a.0), Err(Error::UnknownCompletion(_))), "twice");
        assert!(matches!(requests.finish(0), Err(Error::UnknownCompletion(0))), "invented");
        assert!(matches!(requests.finish(u64::MAX), Err(Error::UnknownCompletion(_))), "invented");
        assert_eq!(requests.start(3).expect("room"), a, "ids are used again at once");
        assert_eq!(requests.in_flight(), 2);
        assert!(matches!(requests.finish(b.0), Ok(2)));
    }
}
